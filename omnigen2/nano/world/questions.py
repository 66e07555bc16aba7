"""Understanding examples: captions, and questions with one short correct answer.

Answers are short, lower case and from a closed set. A question is used only if its answer is unambiguous: no
thing near the border between two places, and exactly one thing that the wording can mean.
"""

from collections.abc import Callable

import numpy as np

from omnigen2.nano.world.judge import CLEAR
from omnigen2.nano.world.refer import refer
from omnigen2.nano.world.scene import COLOURS, SHAPES, Scene, Thing, pick, sample_scene
from omnigen2.nano.world.spec import Example
from omnigen2.nano.world.words import CANNOT_TELL, NUMBERS, Speaker, caption, kinds

_CAPTION = (
    "describe the image", "describe this image", "describe this picture", "describe the picture",
    "what is in the image", "what is in this picture", "what's in the image", "what do you see",
    "what does the image show", "what can you see in this image", "what is shown here", "caption this image",
    "give a caption", "write a caption for the picture", "please describe this image", "tell me what you see",
    "describe what you see", "what is this", "describe", "describe the image briefly",
)  # fmt: skip
OUTSIDE = (
    "what is the dog doing",
    "is there a cat",
    "what colour is the car",
    "who painted this",
    "what time is it",
    "where was this picture taken",
    "how old is the person",
    "what does the sign say",
    "what is the weather like",
    "how many people are there",
    "what is the woman wearing",
    "is the man happy",
    "what brand is this",
    "what is the name of the artist",
    "what is behind the house",
    "what text is written",
    "how much does it cost",
    "which city is this",
    "what animal is this",
    "is it day or night",
    "what is the boy holding",
    "how many trees are there",
    "what material is it made of",
    "how heavy is it",
    "is there a hexagon",
    "what year is it",
    "who is in the picture",
    "what is the dog's name",
)
"""Questions about what ShapeWorld does not have."""
_EDGE = 0.06  # a thing nearer than this to the line between two places has no place


def make_describe(rng: np.random.Generator) -> Example:
    """A random caption example."""
    scene = sample_scene(rng)
    speaker = Speaker(rng)
    text = pick(rng, _CAPTION)
    text = speaker.finish(text, question=text.startswith("what"))
    return Example("describe", _kind(scene), text, (scene,), answer=caption(scene), combos=_combos(scene))


def _kind(scene: Scene) -> str:
    """`counted` if a caption must count equal things, otherwise the number of things in words."""
    equal = len(kinds(scene)) < len(scene.things)
    return "counted" if equal else NUMBERS[len(scene.things)]


def make_ask(rng: np.random.Generator) -> Example:
    """A random question example about one to five images."""
    while True:
        kind, make = _KINDS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))]
        speaker = Speaker(rng)
        asked = make(speaker)
        if asked is None:
            continue
        scenes, question, answer = asked
        combos = tuple(combo for scene in scenes for combo in _combos(scene))
        text = speaker.finish(question, question=True)
        return Example("ask", kind, text, scenes, answer=answer, combos=combos)


Asked = tuple[tuple[Scene, ...], str, str] | None


def place_of(thing: Thing) -> str | None:
    """The cell of a 3 x 3 grid that a thing lies in (`top left`, `centre`); None near a border of cells."""
    names = []
    for value, low, high in ((thing.y, "top", "bottom"), (thing.x, "left", "right")):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < _EDGE:
            return None
        names.append(low if value < 1 / 3 else high if value > 2 / 3 else "")
    return " ".join(filter(None, names)) or "centre"


def _combos(scene: Scene) -> tuple[tuple[str, str, str], ...]:
    return tuple((thing.colour, thing.shape, "seen") for thing in scene.things)


def _in(speaker: Speaker, index: int, count: int) -> str:
    """A wording for the image, empty or general if there is only one."""
    if count == 1:
        return speaker.pick("", "", "", " in the image", " in the picture", " in this image")
    return f" in {speaker.image(index, count)}"


def _scenes(speaker: Speaker) -> tuple[tuple[Scene, ...], int]:
    """One random scene, or sometimes several, and the index of the one that is asked about."""
    count = 1 if speaker.chance(0.75) else int(speaker.rng.integers(2, 6))
    scenes = tuple(sample_scene(speaker.rng, 1, 4 if count == 1 else 2) for _ in range(count))
    return scenes, int(speaker.rng.integers(count))


def _pointed(speaker: Speaker, scene: Scene) -> tuple[Thing, str] | None:
    reference = refer(speaker, scene, range(len(scene.things)))
    if reference is None:
        return None
    return scene.things[reference.indices[0]], reference.words


def _colour(speaker: Speaker) -> Asked:
    scenes, at = _scenes(speaker)
    pointed = _pointed(speaker, scenes[at])
    if pointed is None or any(colour in pointed[1].lower() for colour in (*COLOURS, "grey")):
        return None
    thing, words = pointed
    c, where = speaker.pick("colour", "color"), _in(speaker, at, len(scenes))
    question = speaker.pick(
        f"what {c} is {words}{where}", f"what is the {c} of {words}{where}", f"which {c} is {words}{where}",
        f"which {c} does {words}{where} have", f"tell me the {c} of {words}{where}",
    )  # fmt: skip
    return scenes, question, thing.colour


def _background(speaker: Speaker) -> Asked:
    scenes, at = _scenes(speaker)
    c, where = speaker.pick("colour", "color"), _in(speaker, at, len(scenes))
    question = speaker.pick(
        f"what {c} is the background{where}", f"what is the background {c}{where}",
        f"which {c} is the background{where}", f"what is the {c} of the background{where}",
    )  # fmt: skip
    return scenes, question, scenes[at].background


def _shape(speaker: Speaker) -> Asked:
    scenes, at = _scenes(speaker)
    pointed = _pointed(speaker, scenes[at])
    if pointed is None or any(noun in pointed[1].lower() for noun in (*SHAPES, "dis", "ball", "box", "disk")):
        return None
    thing, words = pointed
    where = _in(speaker, at, len(scenes))
    question = speaker.pick(
        f"what shape is {words}{where}",
        f"which shape is {words}{where}",
        f"what is the shape of {words}{where}",
        f"which shape does {words}{where} have",
    )
    return scenes, question, thing.shape


def _count(speaker: Speaker) -> Asked:
    scenes, at = _scenes(speaker)
    things = scenes[at].things
    like = things[int(speaker.rng.integers(len(things)))] if speaker.chance(0.8) else None
    shape = like.shape if like else pick(speaker.rng, SHAPES)
    colour = (like.colour if like else pick(speaker.rng, tuple(COLOURS))) if speaker.chance(0.35) else None
    anything = speaker.chance(0.25)
    words = speaker.words(None if anything else shape, None if anything else colour, plural=True)
    count = sum(anything or (t.shape == shape and colour in (None, t.colour)) for t in things)
    where = _in(speaker, at, len(scenes))
    question = speaker.pick(
        f"how many {words} are there{where}",
        f"how many {words} do you see{where}",
        f"how many {words}{where}",
        f"count the {words}{where}",
        f"what is the number of {words}{where}",
    )
    return scenes, question, NUMBERS[count] if count else "none"


def _where(speaker: Speaker) -> Asked:
    scenes, at = _scenes(speaker)
    pointed = _pointed(speaker, scenes[at])
    if pointed is None or any(
        side in pointed[1] for side in ("left", "right", "top", "bottom", "upper", "lower")
    ):
        return None
    thing, words = pointed
    place = place_of(thing)
    if place is None:
        return None
    where = _in(speaker, at, len(scenes))
    question = speaker.pick(
        f"where is {words}{where}",
        f"where is {words} located{where}",
        f"where can I find {words}{where}",
        f"in which part is {words}{where}",
    )
    return scenes, question, place


def _exists(speaker: Speaker) -> Asked:
    scenes, at = _scenes(speaker)
    things = scenes[at].things
    there = things[int(speaker.rng.integers(len(things)))]
    shape, colour = there.shape, there.colour
    if speaker.chance(0.5):
        shape, colour = pick(speaker.rng, SHAPES), pick(speaker.rng, tuple(COLOURS))
        shape, colour = (shape, there.colour) if speaker.chance(0.5) else (there.shape, colour)
    tint = colour if speaker.chance(0.7) else None
    found = any(t.shape == shape and tint in (None, t.colour) for t in things)
    words, where = speaker.words(shape, tint), _in(speaker, at, len(scenes))
    article = "an" if words[0] in "aeiou" else "a"
    question = speaker.pick(
        f"is there {article} {words}{where}", f"do you see {article} {words}{where}",
        f"can you see {article} {words}{where}", f"is {article} {words} there{where}",
    )  # fmt: skip
    return scenes, question, "yes" if found else "no"


def _which_image(speaker: Speaker) -> Asked:
    count = int(speaker.rng.integers(2, 6))
    scenes = tuple(sample_scene(speaker.rng, 1, 2) for _ in range(count))
    at = int(speaker.rng.integers(count))
    noun = speaker.pick("image", "image", "picture", "photo")
    if speaker.chance(0.2):
        has = [scene.background == scenes[at].background for scene in scenes]
        words = f"{speaker.colour(scenes[at].background)} background"
    else:
        thing = scenes[at].things[0]
        colour = thing.colour if speaker.chance(0.7) else None
        has = [
            any(t.shape == thing.shape and colour in (None, t.colour) for t in scene.things)
            for scene in scenes
        ]
        words = speaker.words(thing.shape, colour)
    if sum(has) != 1:
        return None
    thing_words = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    verb = speaker.pick("has", "contains", "shows")
    question = speaker.pick(f"which {noun} {verb} {thing_words}", f"in which {noun} is there {thing_words}",
                            f"which {noun} is the one with {thing_words}")  # fmt: skip
    return scenes, question, f"image {at + 1}"


def _relation(speaker: Speaker) -> Asked:
    scene = sample_scene(speaker.rng, 2, 3)
    first, second = _pointed(speaker, scene), _pointed(speaker, scene)
    if first is None or second is None or first[0] == second[0]:
        return None
    dx, dy = second[0].x - first[0].x, second[0].y - first[0].y
    relation = pick(speaker.rng, ("left of", "right of", "above", "below"))
    value = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    if abs(value) < 2 * CLEAR:
        return None
    question = f"is {first[1]} {speaker.relation(relation)} {second[1]}"
    return (scene,), question, "yes" if value > 0 else "no"


def _outside(speaker: Speaker) -> Asked:
    return _scenes(speaker)[0], pick(speaker.rng, OUTSIDE), CANNOT_TELL


_KINDS: tuple[tuple[str, Callable[[Speaker], Asked]], ...] = (
    ("colour", _colour),
    ("background", _background),
    ("shape", _shape),
    ("count", _count),
    ("where", _where),
    ("exists", _exists),
    ("which_image", _which_image),
    ("relation", _relation),
    ("outside", _outside),
)
_WEIGHTS = np.cumsum([0.17, 0.08, 0.13, 0.16, 0.12, 0.14, 0.1, 0.04, 0.06])
