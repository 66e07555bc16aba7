"""Builder of an edit example: the changed scene, its specification, and the wording of the changes."""

from dataclasses import dataclass

import numpy as np

from omnigen2.nano.world.refer import Reference, refer
from omnigen2.nano.world.scene import Scene, Thing, fits
from omnigen2.nano.world.spec import Combination, SceneSpec, ThingSpec, unchanged_spec
from omnigen2.nano.world.words import Speaker


@dataclass(frozen=True)
class Wording:
    """The wording of one change: a whole sentence, and if possible the complement of `make` ("it red")."""

    kind: str
    sentence: str
    complement: str | None = None


class EditBuilder:
    """The target of an edit, built change by change.

    `things[i]` has the specification `specs[i]` and is None once it is removed; `free` holds the indices of
    things that no change has touched yet.
    """

    def __init__(self, rng: np.random.Generator, scene: Scene):
        self.rng = rng
        self.speaker = Speaker(rng)
        self.scene = scene
        self.background = scene.background
        self.things: list[Thing | None] = list(scene.things)
        self.specs: list[ThingSpec] = [unchanged_spec(thing) for thing in scene.things]
        self.free = list(range(len(scene.things)))
        self.relations: list[tuple[int, str, int]] = []
        self.combos: list[Combination] = []

    def refer(self, many: float = 0.0) -> Reference | None:
        """A reference to an untouched thing, which counts as touched from then on; see `refer.refer`."""
        reference = refer(self.speaker, self.scene, self.free, many)
        for i in reference.indices if reference else ():
            self.free.remove(i)
        return reference

    def set(self, index: int, thing: Thing, spec: ThingSpec, situation: str) -> None:
        """Replace a thing and its specification, and record the combination in this situation."""
        self.things[index], self.specs[index] = thing, spec
        self.combos.append((thing.colour, thing.shape, situation))

    def others(self, index: int | None = None) -> list[Thing]:
        """The things that are present now, without one of them."""
        return [thing for i, thing in enumerate(self.things) if thing and i != index]

    def target(self) -> Scene | None:
        """The finished scene, or None if a thing would touch another or match the background."""
        things = tuple(self.others())
        for i, thing in enumerate(things):
            if thing.colour == self.background or not fits(thing, things[:i]):
                return None
        return Scene(self.background, things)

    def spec(self) -> SceneSpec:
        """The specification of the finished scene."""
        kept = [i for i, thing in enumerate(self.things) if thing]
        relations = tuple((kept.index(i), relation, kept.index(j)) for i, relation, j in self.relations)
        return SceneSpec(self.background, tuple(self.specs[i] for i in kept), relations)
