"""An edit in the making: what it changes of a scene, what is then wanted, and the words for it."""

from dataclasses import dataclass

import numpy as np

from omnigen2.nano.world.refer import Reference, refer
from omnigen2.nano.world.scene import Scene, Thing, fits
from omnigen2.nano.world.wanted import Combination, Want, Wanted, want_same
from omnigen2.nano.world.words import Speaker


@dataclass(frozen=True)
class Said:
    """One change in words: as a whole sentence, and if possible as what follows `make`."""

    kind: str
    sentence: str
    complement: str | None = None


class Draft:
    """A target in the making: `things[i]` and `wants[i]` belong together, None once removed."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        self.rng = rng
        self.speaker = Speaker(rng)
        self.scene = scene
        self.background = scene.background
        self.things: list[Thing | None] = list(scene.things)
        self.wants: list[Want] = [want_same(thing) for thing in scene.things]
        self.free = list(range(len(scene.things)))  # things that no change has touched yet
        self.relations: list[tuple[int, str, int]] = []
        self.combos: list[Combination] = []

    def refer(self, many: float = 0.0) -> Reference | None:
        """Point at an untouched thing, and count it as touched."""
        reference = refer(self.speaker, self.scene, self.free, many)
        for i in reference.indices if reference else ():
            self.free.remove(i)
        return reference

    def set(self, index: int, thing: Thing, want: Want, situation: str) -> None:
        """Change a thing and what is wanted of it."""
        self.things[index], self.wants[index] = thing, want
        self.combos.append((thing.colour, thing.shape, situation))

    def others(self, index: int | None = None) -> list[Thing]:
        """Return the things that are there now, without one of them."""
        return [thing for i, thing in enumerate(self.things) if thing and i != index]

    def target(self) -> Scene | None:
        """Return the finished scene, or None if a thing would touch another or match the background."""
        things = tuple(self.others())
        for i, thing in enumerate(things):
            if thing.colour == self.background or not fits(thing, things[:i]):
                return None
        return Scene(self.background, things)

    def wanted(self) -> Wanted:
        """Return the constraints on the finished scene."""
        kept = [i for i, thing in enumerate(self.things) if thing]
        relations = tuple((kept.index(i), relation, kept.index(j)) for i, relation, j in self.relations)
        return Wanted(self.background, tuple(self.wants[i] for i in kept), relations)
