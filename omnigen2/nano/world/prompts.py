"""Examples of text to image: a scene is wished for, what is left open is drawn in the tidy way.

A shape whose colour is left open is drawn red (blue on red); everything else left open is in `layout`.
"""

from collections.abc import Callable

import numpy as np

from omnigen2.nano.world.layout import SPOTS, Spot, arrangement, pair, plain_background, shifted
from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing, pick
from omnigen2.nano.world.wanted import PLACES, RELATIONS, Combination, Example, Want, Wanted, want_kind
from omnigen2.nano.world.words import NUMBERS, Speaker, listing

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIDES = {"left of": ("left", "right"), "above": ("top", "bottom")}
Kind = tuple[str, str | None, str | None]  # shape, colour or open, size or open


class Wish:
    """A prompt in the making: what is named, and where the tidy picture puts it."""

    def __init__(self, rng: np.random.Generator):
        self.speaker = Speaker(rng)
        self.rng = rng
        colours = list(COLOURS)
        rng.shuffle(colours)
        self.background = colours.pop() if self.speaker.chance(0.7) else None
        self.free = colours
        self.things: list[Thing] = []
        self.wants: list[Want] = []
        self.combos: list[Combination] = []
        self.relations: tuple[tuple[int, str, int], ...] = ()

    def kind(self, opening: float = 0.0, sized: float = 0.3) -> Kind:
        """Draw a kind of thing; its colour stays open with probability `opening`."""
        colour = None if self.speaker.chance(opening) else self.free[int(self.rng.integers(len(self.free)))]
        size = pick(self.rng, tuple(SIZES)) if self.speaker.chance(sized) else None
        return pick(self.rng, SHAPES), colour, size

    def put(self, kind: Kind, spot: Spot, situation: str | None = None, place: str | None = None) -> None:
        """Put one thing of the kind at the spot; only what is named is wanted."""
        shape, colour, size = kind
        thing = Thing(
            shape, colour or ("blue" if self.background == "red" else "red"), size or "medium", *spot
        )
        want = want_kind(thing, size is not None, place)
        self.things.append(thing)
        self.wants.append(want if colour else Want(want.shape, None, want.radius, want.x, want.y))
        if situation and colour:
            self.combos.append((colour, shape, situation))

    def say(self, kind: Kind, count: int = 1) -> str:
        shape, colour, size = kind
        return self.speaker.several(count, shape, colour, size)

    def example(self, kind: str, content: str) -> Example:
        """Add the background to the content and close the example."""
        text = self._on_background(content)
        background = self.background or plain_background(t.colour for t in self.things)
        target = Scene(background, shifted(self.rng, self.things))
        wanted = Wanted(self.background, tuple(self.wants), self.relations)
        finished = self.speaker.finish(self.speaker.opening() + text)
        return Example("generate", kind, finished, (), target, None, wanted, tuple(self.combos))

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


def _one(wish: Wish) -> Example:
    kind = wish.kind(opening=0.12, sized=0.4)
    wish.put(kind, arrangement(1)[0])
    return wish.example("size" if kind[2] else "one", wish.say(kind))


def _place(wish: Wish) -> Example:
    kind, place = wish.kind(opening=0.06, sized=0.2), pick(wish.rng, tuple(PLACES))
    wish.put(kind, SPOTS[place], place, place)
    thing, where = wish.say(kind), wish.speaker.place(place)
    return wish.example("place", f"{thing} {where}" if wish.speaker.chance(0.8) else f"{where}, {thing}")


def _count(wish: Wish) -> Example:
    kind, count = wish.kind(opening=0.08), int(wish.rng.integers(2, 5))
    for spot in arrangement(count):
        wish.put(kind, spot, NUMBERS[count])
    return wish.example("count", wish.say(kind, count))


def _pair(wish: Wish) -> Example:
    kinds = [wish.kind(sized=0.2) for _ in range(3 if wish.speaker.chance(0.3) else 2)]
    for kind, spot in zip(kinds, arrangement(len(kinds)), strict=True):
        wish.put(kind, spot)
    content = listing([wish.say(kind) for kind in kinds], oxford=wish.speaker.chance(0.5))
    if len(kinds) == 2 and wish.speaker.chance(0.25):
        joint = wish.speaker.pick("next to", "beside", "with", "and also", "plus")
        content = f"{wish.say(kinds[0])} {joint} {wish.say(kinds[1])}"
    return wish.example("pair" if len(kinds) == 2 else "trio", content)


def _groups(wish: Wish) -> Example:
    counts = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))[int(wish.rng.integers(5))]
    kinds = [wish.kind(sized=0.15) for _ in counts]
    spots = iter(arrangement(sum(counts)))
    for kind, count in zip(kinds, counts, strict=True):
        for _ in range(count):
            wish.put(kind, next(spots))
    parts = [wish.say(kind, count) for kind, count in zip(kinds, counts, strict=True)]
    return wish.example("groups", listing(parts))


def _relation(wish: Wish) -> Example:
    relation = pick(wish.rng, RELATIONS)
    a, b = wish.kind(sized=0.15), wish.kind(sized=0.15)
    first, second = pair(relation)
    wish.put(a, first, relation)
    wish.put(b, second, INVERSE[relation])
    wish.relations = ((0, relation, 1),)
    return wish.example("relation", _say_relation(wish, a, relation, b))


def _say_relation(wish: Wish, a: Kind, relation: str, b: Kind) -> str:
    """Word `a relation b` in one of the orders people use."""
    speaker = wish.speaker
    one, other, words = wish.say(a), wish.say(b), speaker.relation(relation)
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
    order = [f"{wish.say(a)} {here}", f"{wish.say(b)} {there}"]
    if speaker.chance(0.2):
        order.reverse()
    return speaker.pick(" and ", ", ").join(order)


_KINDS: tuple[tuple[Callable[[Wish], Example], float], ...] = (
    (_one, 0.2),
    (_place, 0.16),
    (_count, 0.17),
    (_pair, 0.12),
    (_groups, 0.08),
    (_relation, 0.27),
)
_WEIGHTS = np.cumsum([weight for _, weight in _KINDS])


def make_generate(rng: np.random.Generator) -> Example:
    """Return a random text-to-image example."""
    return _KINDS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))][0](Wish(rng))
