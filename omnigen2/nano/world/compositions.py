"""Composition examples: one picture from things, backgrounds and colours of one to five reference images.

Named things are drawn at canonical positions, medium-sized (small from three on), in the order of mention;
where the instruction changes or extends one image, the rest of that image is unchanged.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from omnigen2.nano.world.layout import Spot, arrangement, column, first_free, plain_background, row, shifted
from omnigen2.nano.world.refer import refer
from omnigen2.nano.world.scene import COLOURS, Scene, Thing, pick, sample_scene
from omnigen2.nano.world.spec import (
    RELATIONS,
    Combination,
    Example,
    SceneSpec,
    ThingSpec,
    kind_spec,
    unchanged_spec,
)
from omnigen2.nano.world.words import Speaker, listing, with_article

_BOTH = ("both", "the two")


class Sources:
    """The reference scenes, and wordings that refer to their content."""

    def __init__(self, rng: np.random.Generator, count: int):
        self.rng = rng
        self.speaker = Speaker(rng)
        crowded = rng.random() < 0.3
        self.scenes = tuple(sample_scene(rng, 1, 3 if crowded else 1) for _ in range(count))

    def image(self, index: int) -> str:
        if len(self.scenes) == 1:
            return self.speaker.pick("the image", "the picture", "the first image", "image 1")
        return self.speaker.image(index, len(self.scenes))

    def thing(self, index: int) -> tuple[Thing, str]:
        """A random thing of an image, and a wording such as `the red star from image 2`."""
        scene = self.scenes[index]
        while True:
            reference = refer(self.speaker, scene, range(len(scene.things)))
            if reference is None:
                continue
            thing, words = scene.things[reference.indices[0]], reference.words
            if words == "it":
                words = self.speaker.pick("the object", "the shape")
            image = self.image(index)
            if words.startswith("the ") and self.speaker.chance(0.12):
                return thing, f"{image}'s {words[4:]}"
            return thing, f"{words} {self.speaker.pick('from', 'from', 'of', 'in', 'in')} {image}"

    def background(self, index: int) -> str:
        """A wording for the background of an image."""
        image = self.image(index)
        return self.speaker.pick(
            f"the background of {image}", f"the background of {image}", f"the background from {image}",
            f"{image}'s background", f"the background in {image}",
        )  # fmt: skip

    def single(self) -> bool:
        """Whether every image holds one thing, so that "the objects" is unambiguous."""
        return all(len(scene.things) == 1 for scene in self.scenes)


def _drawn(things: list[Thing], spots: tuple[Spot, ...]) -> list[Thing]:
    size = "medium" if len(things) < 3 else "small"
    return [Thing(t.shape, t.colour, size, x, y) for t, (x, y) in zip(things, spots, strict=True)]


def _finish(
    sources: Sources,
    kind: str,
    text: str,
    things: list[Thing],
    background: str | None,
    situation: str,
    relations: tuple[tuple[int, str, int], ...] = (),
) -> Example | None:
    """The example whose things are drawn anew; None if one has the colour of the background."""
    if background in {thing.colour for thing in things}:
        return None
    target = Scene(background or plain_background(t.colour for t in things), shifted(sources.rng, things))
    spec = SceneSpec(background, tuple(kind_spec(thing) for thing in things), relations)
    combos = tuple((t.colour, t.shape, situation) for t in things)
    return Example("compose", kind, sources.speaker.finish(text), sources.scenes, target, None, spec, combos)


def _backdrop(sources: Sources) -> tuple[str | None, str]:
    """A background colour and its wording; (None, "") in three of four cases."""
    if not sources.speaker.chance(0.25):
        return None, ""
    colour = pick(sources.rng, tuple(COLOURS))
    return colour, f" {sources.speaker.background(colour)}"


def _members(sources: Sources) -> tuple[list[Thing], str, bool]:
    """A thing of every image, a wording for all of them, and whether they are named one by one."""
    say, count = sources.speaker, len(sources.scenes)
    if sources.single() and say.chance(0.3):
        every = say.pick(*_BOTH) if count == 2 else say.pick("all", "all the", f"the {count}")
        images = say.pick("images", "pictures", "images", "reference images")
        noun = say.noun(None, plural=True)
        words = say.pick(
            f"the {noun} from {every} {images}", f"the {noun} of {every} {images}", f"{every} {noun}"
        )
        return [scene.things[0] for scene in sources.scenes], words, False
    order = list(range(count))
    if say.chance(0.25):
        sources.rng.shuffle(order)
    chosen = [sources.thing(i) for i in order]
    return [thing for thing, _ in chosen], listing([words for _, words in chosen], say.chance(0.5)), True


def _side_by_side(sources: Sources) -> Example | None:
    things, words, _ = _members(sources)
    background, behind = _backdrop(sources)
    say = sources.speaker
    how = say.pick("side by side", "side by side", "next to each other", "beside each other", "in a row")
    verb = say.pick("put", "put", "place", "show", "arrange", "draw", "combine", "")
    relations = ((0, "beside", 1),) if len(things) == 2 else ()
    drawn = _drawn(things, row(len(things)))
    return _finish(
        sources, "side_by_side", f"{verb} {words} {how}{behind}", drawn, background, "side by side", relations
    )


def _stacked(sources: Sources) -> Example | None:
    things, words, _ = _members(sources)
    background, behind = _backdrop(sources)
    say = sources.speaker
    how = say.pick(
        "one above the other", "one above the other", "on top of each other", "in a column", "stacked"
    )
    verb = say.pick("put", "put", "place", "show", "arrange", "stack")
    relations = ((0, "stacked", 1),) if len(things) == 2 else ()
    drawn = _drawn(things, column(len(things)))
    return _finish(
        sources, "stacked", f"{verb} {words} {how}{behind}", drawn, background, "stacked", relations
    )


def _together(sources: Sources) -> Example | None:
    things, words, named = _members(sources)
    background, behind = _backdrop(sources)
    say = sources.speaker
    text = say.pick(
        f"combine {words} in one picture",
        f"put {words} together",
        f"put {words} into one image",
        f"a picture with {words}",
        f"merge {words} into one picture",
        f"{words} together",
    )
    if not named and say.chance(0.3):
        text = say.pick(
            "combine the images",
            "combine all images into one",
            "merge the pictures",
            "put everything together",
        )
    drawn = _drawn(things, row(len(things)))
    return _finish(sources, "together", text + behind, drawn, background, "together")


def _related(sources: Sources) -> Example | None:
    """A thing of one image in a relation to a thing of another."""
    say, relation = sources.speaker, pick(sources.rng, RELATIONS)
    first, second = _two(sources)
    (a, one), (b, other) = sources.thing(first), sources.thing(second)
    background, behind = _backdrop(sources)
    verb = say.pick("put", "put", "put", "place", "place", "show", "draw", "")
    text = f"{verb} {one} {say.relation(relation)} {other}{behind}"
    beside = relation in ("left of", "right of")
    kind = "side_by_side" if beside else "above"
    if beside and say.chance(0.4):
        relation, text = (
            "left of",
            f"{verb} {one} {say.pick('next to', 'beside', 'alongside')} {other}{behind}",
        )
        relations = ((0, "beside", 1),)
    else:
        relations = ((0, relation, 1),)
    spots = row(2) if beside else column(2)
    drawn = _drawn([a, b], spots if relation in ("left of", "above") else spots[::-1])
    return _finish(sources, kind, text, drawn, background, relation, relations)


def _two(sources: Sources) -> tuple[int, int]:
    """The indices of two images, mostly in ascending order."""
    first, second = sorted(int(i) for i in sources.rng.choice(len(sources.scenes), 2, replace=False))
    return (second, first) if sources.speaker.chance(0.25) else (first, second)


def _on_background(sources: Sources) -> Example | None:
    say = sources.speaker
    first, second = _two(sources)
    if say.chance(0.3):
        return _exchange_background(sources, first, second)
    thing, words = sources.thing(first)
    behind = sources.background(second)
    text = say.pick(
        f"put {words} on {behind}",
        f"put {words} on {behind}",
        f"place {words} on {behind}",
        f"{words} on {behind}",
        f"show {words} on {behind}",
        f"{words} with {behind}",
        f"use {behind} for {words}",
        f"put {words} onto {behind}",
        f"put {words} in front of {behind}",
        f"draw {words} on {behind}",
    )
    drawn = _drawn([thing], arrangement(1))
    return _finish(sources, "on_background", text, drawn, sources.scenes[second].background, "on background")


def _exchange_background(sources: Sources, first: int, second: int) -> Example | None:
    """One image, otherwise unchanged, with the background of another."""
    say, scene = sources.speaker, sources.scenes[first]
    background = sources.scenes[second].background
    if background in {thing.colour for thing in scene.things} or background == scene.background:
        return None
    image, behind = sources.image(first), sources.background(second)
    text = say.pick(f"give {image} {behind}", f"change the background of {image} to {behind}",
                    f"replace the background of {image} with {behind}", f"{image} with {behind}",
                    f"change the background of {image} to that of {sources.image(second)}",
                    f"put {image} on {behind}", f"use {behind} for {image}")  # fmt: skip
    spec = SceneSpec(background, tuple(unchanged_spec(thing) for thing in scene.things))
    combos = tuple((t.colour, t.shape, "on background") for t in scene.things)
    target = replace(scene, background=background)
    return Example("compose", "on_background", say.finish(text), sources.scenes, target, None, spec, combos)


def _pair_on_background(sources: Sources) -> Example | None:
    """Things of two images side by side on the background of a third."""
    say = sources.speaker
    order = [int(i) for i in sources.rng.permutation(len(sources.scenes))[:3]]
    if say.chance(0.7):
        order.sort()
    (a, one), (b, other) = sources.thing(order[0]), sources.thing(order[1])
    behind = sources.background(order[2])
    how = say.pick("", "side by side ", "next to each other ")
    text = f"{say.pick('put', 'place', 'show', '')} {one} and {other} {how}on {behind}"
    relations = ((0, "beside", 1),) if how else ()
    background = sources.scenes[order[2]].background
    drawn = _drawn([a, b], row(2))
    return _finish(sources, "pair_on_background", text, drawn, background, "on background", relations)


def _with_colour(sources: Sources) -> Example | None:
    say = sources.speaker
    first, second = _two(sources)
    thing, words = sources.thing(first)
    if say.chance(0.15):
        colour, other = sources.scenes[second].background, sources.background(second)
    else:
        model, other = sources.thing(second)
        colour = model.colour
        if len(sources.scenes[second].things) == 1 and say.chance(0.2):
            other = say.pick(
                f"the shape in {sources.image(second)}", f"the object of {sources.image(second)}"
            )
    if colour == thing.colour:
        return None
    tint = say.pick("color", "color", "colour")
    scene = sources.scenes[first]
    if len(scene.things) == 1 and say.chance(0.35) and colour != scene.background:
        text = say.pick(f"make {words} the {tint} of {other}", f"recolor {words} with the {tint} of {other}",
                        f"paint {words} in the {tint} of {other}", f"give {words} the {tint} of {other}",
                        f"change the {tint} of {words} to the {tint} of {other}",
                        f"make {words} the same {tint} as {other}")  # fmt: skip
        target = Scene(scene.background, (replace(thing, colour=colour),))
        spec = SceneSpec(scene.background, (ThingSpec(thing.shape, colour),))
        combos: tuple[Combination, ...] = ((colour, thing.shape, "with colour"),)
        return Example("compose", "with_colour", say.finish(text), sources.scenes, target, None, spec, combos)
    background, behind = _backdrop(sources)
    text = say.pick(
        f"{words} with the {tint} of {other}",
        f"{words} in the {tint} of {other}",
        f"draw {words} in the {tint} of {other}",
        f"draw {words} with the {tint} of {other}",
        f"show {words} in the same {tint} as {other}",
        f"{words} but in the {tint} of {other}",
    )
    if say.chance(0.1):
        text = say.pick(f"take {words} and give it the {tint} of {other}",
                        f"{words}, but its {tint} should be that of {other}")  # fmt: skip
    drawn = _drawn([replace(thing, colour=colour)], arrangement(1))
    return _finish(sources, "with_colour", text + behind, drawn, background, "with colour")


def _add(sources: Sources) -> Example | None:
    """Another image, otherwise unchanged, with an added thing of one image."""
    say = sources.speaker
    second, first = _two(sources)
    thing, words = sources.thing(first)
    scene = sources.scenes[second]
    new = first_free(Thing(thing.shape, thing.colour, "medium", 0, 0), scene.things)
    if new is None or new.colour == scene.background:
        return None
    verb, into = say.pick("add", "add", "insert", "copy"), say.pick("to", "to", "into")
    text = f"{verb} {words} {into} {sources.image(second)}"
    spec = SceneSpec(scene.background, (*(unchanged_spec(t) for t in scene.things), kind_spec(new)))
    target = Scene(scene.background, (*scene.things, new))
    combos = ((new.colour, new.shape, "add"),)
    return Example("compose", "add", say.finish(text), sources.scenes, target, None, spec, combos)


def _alone(sources: Sources) -> Example | None:
    """The only thing of an image, in its place, on a named background colour."""
    say, scene = sources.speaker, sources.scenes[0]
    colour = pick(sources.rng, tuple(COLOURS))
    if len(scene.things) != 1 or colour in (scene.things[0].colour, scene.background):
        return None
    thing, words = sources.thing(0)
    text = f"{say.pick('put', 'place', 'show', '')} {words} on {with_article(say.colour(colour))} background"
    spec = SceneSpec(colour, (kind_spec(thing),))
    combos = ((thing.colour, thing.shape, "on background"),)
    target = Scene(colour, scene.things)
    return Example("compose", "alone", say.finish(text), sources.scenes, target, None, spec, combos)


# Maker, relative frequency, and numbers of images to draw from.
_KINDS: tuple[tuple[Callable[[Sources], Example | None], float, tuple[int, ...]], ...] = (
    (_side_by_side, 0.18, (2, 2, 2, 3, 3, 4, 5)),
    (_stacked, 0.08, (2, 2, 2, 3, 4)),
    (_together, 0.09, (2, 2, 3, 4, 5)),
    (_related, 0.21, (2, 2, 2, 2, 3)),
    (_on_background, 0.18, (2, 2, 2, 2, 3)),
    (_pair_on_background, 0.06, (3,)),
    (_with_colour, 0.13, (2, 2, 2, 2, 3)),
    (_add, 0.05, (2, 2, 2, 3)),
    (_alone, 0.02, (1,)),
)
_WEIGHTS = np.cumsum([weight for _, weight, _ in _KINDS])


def make_compose(rng: np.random.Generator) -> Example:
    """A random composition example."""
    make, _, counts = _KINDS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))]
    while True:
        example = make(Sources(rng, pick(rng, counts)))
        if example is not None:
            return example
