"""Text-to-image examples: a prompt and its canonical picture.

A shape whose colour is left open is drawn red (blue on red); `layout` decides everything else left open.
"""

from collections.abc import Callable

import numpy as np

from omnigen2.nano.world.layout import SPOTS, Spot, arrangement, pair, plain_background, shifted
from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing, pick
from omnigen2.nano.world.spec import PLACES, RELATIONS, Combination, Example, SceneSpec, ThingSpec, kind_spec
from omnigen2.nano.world.words import NUMBERS, Speaker, listing

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIDES = {"left of": ("left", "right"), "above": ("top", "bottom")}
Kind = tuple[str, str | None, str | None]  # shape, colour or None, size or None


class PromptBuilder:
    """A text-to-image example, built thing by thing: target, specification and wording."""

    def __init__(self, rng: np.random.Generator):
        self.speaker = Speaker(rng)
        self.rng = rng
        colours = list(COLOURS)
        rng.shuffle(colours)
        self.background = colours.pop() if self.speaker.chance(0.7) else None
        self.free = colours
        self.things: list[Thing] = []
        self.specs: list[ThingSpec] = []
        self.combos: list[Combination] = []
        self.relations: tuple[tuple[int, str, int], ...] = ()

    def kind(self, opening: float = 0.0, sized: float = 0.3) -> Kind:
        """A random kind of thing; its colour is left open with probability `opening`, its size is given with
        probability `sized`."""
        colour = None if self.speaker.chance(opening) else self.free[int(self.rng.integers(len(self.free)))]
        size = pick(self.rng, tuple(SIZES)) if self.speaker.chance(sized) else None
        return pick(self.rng, SHAPES), colour, size

    def put(self, kind: Kind, spot: Spot, situation: str | None = None, place: str | None = None) -> None:
        """Add a thing of the kind at the spot; only properties that are named become constraints."""
        shape, colour, size = kind
        thing = Thing(
            shape, colour or ("blue" if self.background == "red" else "red"), size or "medium", *spot
        )
        spec = kind_spec(thing, size is not None, place)
        self.things.append(thing)
        self.specs.append(spec if colour else ThingSpec(spec.shape, None, spec.radius, spec.x, spec.y))
        if situation and colour:
            self.combos.append((colour, shape, situation))

    def say(self, kind: Kind, count: int = 1) -> str:
        shape, colour, size = kind
        return self.speaker.several(count, shape, colour, size)

    def example(self, kind: str, content: str) -> Example:
        """The finished example of that kind, with the background added to the wording `content`."""
        text = self._on_background(content)
        background = self.background or plain_background(t.colour for t in self.things)
        target = Scene(background, shifted(self.rng, self.things))
        spec = SceneSpec(self.background, tuple(self.specs), self.relations)
        finished = self.speaker.finish(self.speaker.opening() + text)
        return Example("generate", kind, finished, (), target, None, spec, tuple(self.combos))

    def _on_background(self, content: str) -> str:
        if self.background is None:
            return content
        say, colour = self.speaker, self.background
        form = self.rng.random()
        if form < 0.68:
            return f"{content} {say.background(colour)}"
        if form < 0.82:
            return f"{say.backdrop(colour)} with {content}{say.pick('', '', ' on it')}"
        if form < 0.9:
            return f"{content}, {say.backdrop(colour)}"
        if form < 0.95:
            return f"{say.background(colour)}, {content}"
        opening = say.pick("the background is", "background:", "the background should be", "background is")
        return f"{content}{say.pick('.', '.', ',', ' and')} {opening} {say.colour(colour)}"


def _one(prompt: PromptBuilder) -> Example:
    kind = prompt.kind(opening=0.12, sized=0.4)
    prompt.put(kind, arrangement(1)[0])
    return prompt.example("size" if kind[2] else "one", prompt.say(kind))


def _place(prompt: PromptBuilder) -> Example:
    kind, place = prompt.kind(opening=0.06, sized=0.2), pick(prompt.rng, tuple(PLACES))
    prompt.put(kind, SPOTS[place], place, place)
    thing, where = prompt.say(kind), prompt.speaker.place(place)
    return prompt.example("place", f"{thing} {where}" if prompt.speaker.chance(0.8) else f"{where}, {thing}")


def _count(prompt: PromptBuilder) -> Example:
    kind, count = prompt.kind(opening=0.08), int(prompt.rng.integers(2, 5))
    for spot in arrangement(count):
        prompt.put(kind, spot, NUMBERS[count])
    return prompt.example("count", prompt.say(kind, count))


def _pair(prompt: PromptBuilder) -> Example:
    kinds = [prompt.kind(sized=0.2) for _ in range(3 if prompt.speaker.chance(0.3) else 2)]
    for kind, spot in zip(kinds, arrangement(len(kinds)), strict=True):
        prompt.put(kind, spot)
    content = listing([prompt.say(kind) for kind in kinds], oxford=prompt.speaker.chance(0.5))
    if len(kinds) == 2 and prompt.speaker.chance(0.25):
        joint = prompt.speaker.pick("next to", "beside", "with", "and also", "plus")
        content = f"{prompt.say(kinds[0])} {joint} {prompt.say(kinds[1])}"
    return prompt.example("pair" if len(kinds) == 2 else "trio", content)


def _groups(prompt: PromptBuilder) -> Example:
    counts = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))[int(prompt.rng.integers(5))]
    kinds = [prompt.kind(sized=0.15) for _ in counts]
    spots = iter(arrangement(sum(counts)))
    for kind, count in zip(kinds, counts, strict=True):
        for _ in range(count):
            prompt.put(kind, next(spots))
    parts = [prompt.say(kind, count) for kind, count in zip(kinds, counts, strict=True)]
    return prompt.example("groups", listing(parts))


def _relation(prompt: PromptBuilder) -> Example:
    relation = pick(prompt.rng, RELATIONS)
    a, b = prompt.kind(sized=0.15), prompt.kind(sized=0.15)
    first, second = pair(relation)
    prompt.put(a, first, relation)
    prompt.put(b, second, INVERSE[relation])
    prompt.relations = ((0, relation, 1),)
    return prompt.example("relation", _say_relation(prompt, a, relation, b))


def _say_relation(prompt: PromptBuilder, a: Kind, relation: str, b: Kind) -> str:
    """A wording of `a relation b`, in one of several word orders."""
    speaker = prompt.speaker
    one, other, words = prompt.say(a), prompt.say(b), speaker.relation(relation)
    form = speaker.rng.random()
    if form < 0.62:
        return f"{one} {words} {other}"
    if form < 0.68:
        return f"{one} {speaker.pick('placed', 'that is', 'located', 'which is', 'sitting')} {words} {other}"
    if form < 0.72:
        return f"{words} {other}, {one}"
    if form < 0.76:
        return f"{other} with {one} {words} it"
    if form < 0.79 and relation in ("left of", "right of"):
        return f"{other} with {one} {speaker.pick('on its', 'to its')} {relation.split()[0]}"
    if form < 0.82:
        return f"{one} {speaker.pick('is', 'that sits', 'is placed')} {words} {other}"
    if relation not in _SIDES:
        a, b, relation = b, a, INVERSE[relation]
    here, there = (speaker.place(place) for place in _SIDES[relation])
    order = [f"{prompt.say(a)} {here}", f"{prompt.say(b)} {there}"]
    if speaker.chance(0.2):
        order.reverse()
    return speaker.pick(" and ", ", ").join(order)


_KINDS: tuple[tuple[Callable[[PromptBuilder], Example], float], ...] = (
    (_one, 0.2),
    (_place, 0.16),
    (_count, 0.17),
    (_pair, 0.12),
    (_groups, 0.08),
    (_relation, 0.27),
)
_WEIGHTS = np.cumsum([weight for _, weight in _KINDS])


def make_generate(rng: np.random.Generator) -> Example:
    """A random text-to-image example."""
    return _KINDS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))][0](PromptBuilder(rng))
