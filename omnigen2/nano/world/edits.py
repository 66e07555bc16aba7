"""Edit examples: a random scene, one to three changes, everything else unchanged.

Each change is a function of an `EditBuilder` that updates the target and the specification and returns the
wording, or None if the random draw cannot be realised; the caller then draws again.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from omnigen2.nano.world.edit_builder import EditBuilder, Wording
from omnigen2.nano.world.layout import SPOTS, beside, first_free, moved
from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing, fits, pick, sample_scene
from omnigen2.nano.world.spec import (
    PLACES,
    RELATIONS,
    SIZE_RANGES,
    Example,
    kind_spec,
)
from omnigen2.nano.world.words import Speaker, with_article

ORDER = tuple(SIZES)
_VERBS = frozenset(
    "add change color colour convert delete draw enlarge erase get give grow insert make move paint place put"
    " recolor recolour reduce remove replace resize scale shift shrink swap switch take turn use".split()
)


def _recolour(edit: EditBuilder) -> Wording | None:
    reference = edit.refer(many=0.4)
    if reference is None:
        return None
    colour = pick(edit.rng, [c for c in COLOURS if c != edit.background])
    if any(edit.scene.things[i].colour == colour for i in reference.indices):
        return None
    for i in reference.indices:
        thing = replace(edit.scene.things[i], colour=colour)
        edit.set(i, thing, replace(edit.specs[i], colour=colour), "recolour")
    r, c = reference.words, edit.speaker.colour(colour)
    forms = [f"{verb} {r} {c}" for verb in ("make", "make", "turn", "paint", "color", "colour")]
    forms += [
        f"recolor {r} {c}",
        f"recolor {r} to {c}",
        f"recolour {r} to {c}",
        f"change {r} to {c}",
        f"dye {r} {c}",
    ]
    forms += [f"change the {tint} of {r} to {c}" for tint in ("color", "color", "colour")]
    forms += [
        f"set the color of {r} to {c}",
        f"{r} should be {c}",
        f"I want {r} to be {c}",
        f"paint {r} in {c}",
    ]
    if not reference.plural:
        noun = edit.scene.things[reference.indices[0]].shape
        forms += [f"turn {r} into {with_article(f'{c} {noun}')}", f"make {r} {with_article(f'{c} {noun}')}"]
        forms += [f"change {r}'s color to {c}"] if r != "it" else []
        forms += [f"{r} should be {c} instead", f"make {r} {c} instead"]
    return Wording("recolour", edit.speaker.pick(*forms), f"{r} {c}")


def _reshape(edit: EditBuilder) -> Wording | None:
    reference = edit.refer(many=0.25)
    if reference is None:
        return None
    shape = pick(edit.rng, SHAPES)
    if any(edit.scene.things[i].shape == shape for i in reference.indices):
        return None
    for i in reference.indices:
        edit.set(
            i, replace(edit.scene.things[i], shape=shape), replace(edit.specs[i], shape=shape), "reshape"
        )
    noun = edit.speaker.noun(shape, reference.plural)
    r, into = reference.words, noun if reference.plural else with_article(noun)
    forms = [f"{verb} {r} into {into}" for verb in ("turn", "turn", "change", "transform", "convert", "make")]
    forms += [
        f"change {r} to {into}",
        f"replace {r} with {into}",
        f"make {r} {into}",
        f"convert {r} to {into}",
    ]
    forms += [f"{r} should become {into}", f"{r} should be {into}", f"swap {r} for {into}"]
    forms += [f"make {r} {into} instead", f"{r} should be {into} instead"]
    return Wording("reshape", edit.speaker.pick(*forms), f"{r} {into}")


def _replace(edit: EditBuilder) -> Wording | None:
    reference = edit.refer()
    if reference is None:
        return None
    (i,) = reference.indices
    thing = edit.scene.things[i]
    shape, colour = pick(edit.rng, SHAPES), pick(edit.rng, tuple(COLOURS))
    if thing.shape == shape or colour in (thing.colour, edit.background):
        return None
    spec = replace(edit.specs[i], shape=shape, colour=colour)
    edit.set(i, replace(thing, shape=shape, colour=colour), spec, "replace")
    r, into = reference.words, with_article(edit.speaker.words(shape, colour))
    forms = [
        f"replace {r} with {into}",
        f"replace {r} by {into}",
        f"turn {r} into {into}",
        f"swap {r} for {into}",
    ]
    return Wording("replace", edit.speaker.pick(*forms, f"change {r} into {into}", f"change {r} to {into}"))


def _resize(edit: EditBuilder) -> Wording | None:
    reference = edit.refer(many=0.15)
    if reference is None:
        return None
    things = [edit.scene.things[i] for i in reference.indices]
    if len({thing.size for thing in things}) > 1:
        return None
    size = pick(edit.rng, ORDER)
    step = ORDER.index(size) - ORDER.index(things[0].size)
    if step == 0:
        return None
    relative = abs(step) == 1 and edit.speaker.chance(0.65)
    for i, thing in zip(reference.indices, things, strict=True):
        least, most = (thing.radius * 1.15, 1.0) if step > 0 else (0.0, thing.radius / 1.15)
        limits = (least, most) if relative else SIZE_RANGES[size]
        edit.set(i, replace(thing, size=size, scale=1.0), replace(edit.specs[i], radius=limits), "resize")
    r, say = reference.words, edit.speaker
    if not relative:
        adjective = say.size(size)
        forms = (f"make {r} {adjective}", f"resize {r} to {adjective}", f"{r} should be {adjective}")
        return Wording(
            "resize", say.pick(*forms, f"change the size of {r} to {adjective}"), f"{r} {adjective}"
        )
    if step > 0:
        adjective = say.pick("bigger", "bigger", "larger", "larger")
        forms = (f"enlarge {r}", f"increase the size of {r}", f"scale up {r}", f"scale {r} up", f"grow {r}")
    else:
        adjective = say.pick("smaller", "smaller", "littler", "tinier") if say.chance(0.15) else "smaller"
        forms = (
            f"shrink {r}",
            f"shrink {r}",
            f"reduce the size of {r}",
            f"scale down {r}",
            f"reduce {r} in size",
        )
    return Wording("resize", say.pick(*[f"make {r} {adjective}"] * 5, *forms), f"{r} {adjective}")


def _remove(edit: EditBuilder) -> Wording | None:
    reference = edit.refer(many=0.3)
    if reference is None:
        return None
    for i in reference.indices:
        thing = edit.scene.things[i]
        edit.combos.append((thing.colour, thing.shape, "remove"))
        edit.things[i] = None
    verbs = (
        "remove",
        "remove",
        "remove",
        "delete",
        "delete",
        "erase",
        "get rid of",
        "take away",
        "take out",
        "drop",
    )
    forms = [f"{verb} {reference.words}" for verb in verbs]
    return Wording(
        "remove", edit.speaker.pick(*forms, f"take {reference.words} away", f"{reference.words} should go")
    )


def _add(edit: EditBuilder) -> Wording | None:
    say, rng = edit.speaker, edit.rng
    if len(edit.others()) > 3:
        return None
    size = pick(rng, ORDER) if say.chance(0.25) else None
    colour = pick(rng, [c for c in COLOURS if c != edit.background])
    new = Thing(pick(rng, SHAPES), colour, size or "medium", 0.5, 0.5)
    thing_words = say.several(1, new.shape, colour, size)
    verb = say.pick("add", "add", "add", "put", "place", "insert", "draw")
    form = rng.random()
    if form < 0.6:
        return _add_at(edit, new, size, f"{verb} {thing_words}")
    if form < 0.8:
        return _add_beside(edit, new, size, f"{verb} {thing_words}")
    thing = first_free(new, edit.others())
    if thing is None and size is None:
        thing = first_free(replace(new, size="small"), edit.others())
    if thing is None:
        return None
    edit.things.append(thing)
    edit.specs.append(kind_spec(thing, size is not None))
    edit.combos.append((thing.colour, thing.shape, "add"))
    verb = say.pick("add", "add", "insert", "draw")
    where = say.pick("", "", "", " to the picture", " to the image", " somewhere", " to it")
    return Wording("add", f"{verb} {thing_words}{where}")


def _add_at(edit: EditBuilder, new: Thing, size: str | None, words: str) -> Wording | None:
    """Add a thing at a named place."""
    place = pick(edit.rng, tuple(PLACES))
    x, y = SPOTS[place]
    thing = replace(new, x=x, y=y)
    if size is None and not fits(thing, edit.others()):
        thing = replace(thing, size="small")
    if not fits(thing, edit.others()):
        return None
    edit.things.append(thing)
    edit.specs.append(kind_spec(thing, size is not None, place))
    edit.combos.append((thing.colour, thing.shape, f"add {place}"))
    return Wording("add", f"{words} {edit.speaker.place(place)}")


def _add_beside(edit: EditBuilder, new: Thing, size: str | None, words: str) -> Wording | None:
    """Add a thing in a relation to an existing one."""
    reference, relation = edit.refer(), pick(edit.rng, RELATIONS)
    if reference is None:
        return None
    (i,) = reference.indices
    for trial in (new, replace(new, size="small")) if size is None else (new,):
        x, y = beside(relation, edit.scene.things[i], trial.reach)
        thing = replace(trial, x=x, y=y)
        if fits(thing, edit.others()):
            edit.relations.append((len(edit.things), relation, i))
            edit.things.append(thing)
            edit.specs.append(kind_spec(thing, size is not None))
            edit.combos.append((thing.colour, thing.shape, f"add {relation}"))
            return Wording("add", f"{words} {edit.speaker.relation(relation)} {reference.words}")
    return None


def _move(edit: EditBuilder) -> Wording | None:
    reference, place = edit.refer(), pick(edit.rng, tuple(PLACES))
    if reference is None:
        return None
    (i,) = reference.indices
    thing = edit.scene.things[i]
    x, y = moved(thing, place)
    goal = replace(thing, x=x, y=y)
    if max(abs(goal.x - thing.x), abs(goal.y - thing.y)) < 0.15 or not fits(goal, edit.others(i)):
        return None
    edit.set(i, goal, replace(edit.specs[i], x=PLACES[place][0], y=PLACES[place][1]), f"move {place}")
    return Wording("move", _say_move(edit.speaker, reference.words, place))


def _say_move(say: Speaker, words: str, place: str) -> str:
    if place == "centre":
        goal = say.pick("to the center", "to the middle", "into the middle", "to the centre")
    elif " " in place:
        vertical, side = place.split()
        corner = f"{say.pick(vertical, vertical, 'upper' if vertical == 'top' else 'lower')} {side}"
        goal = say.pick(f"to the {corner}", f"to the {corner} corner", f"into the {corner} corner")
    else:
        goal = say.pick(f"to the {place}", f"to the {place}", f"to the {place} side", f"to the {place} edge")
    if say.chance(0.15):
        return f"{say.pick('put', 'place')} {words} {say.place(place)}"
    return f"{say.pick('move', 'move', 'move', 'shift', 'bring')} {words} {goal}"


def _background(edit: EditBuilder) -> Wording | None:
    colour = pick(edit.rng, tuple(COLOURS))
    if colour == edit.scene.background:
        return None
    edit.background = colour
    c = edit.speaker.colour(colour)
    forms = [f"{verb} the background to {c}" for verb in ("change", "change", "set", "recolor", "switch")]
    forms += [f"{verb} the background {c}" for verb in ("make", "make", "turn", "paint", "color", "colour")]
    forms += [f"change the background color to {c}", f"use {with_article(c)} background", f"{c} background"]
    forms += [
        f"the background should be {c}",
        f"replace the background with {c}",
        f"give it {with_article(c)} background",
    ]
    forms += [f"put it on {with_article(c)} background", f"change the background colour to {c}"]
    old = edit.speaker.colour(edit.scene.background)
    new = edit.speaker.pick(f"{with_article(c)} one", f"{with_article(c)} background", c)
    forms += [
        f"{verb} the {old} background {to} {new}" for verb, to in (("replace", "with"), ("swap", "for"))
    ]
    forms += [f"swap the background for {new}", f"turn the {old} background {c}"]
    forms += [f"change the {old} background to {c}", f"turn the background into {c}"]
    return Wording("background", edit.speaker.pick(*forms), f"the background {c}")


Change = Callable[[EditBuilder], Wording | None]
_CHANGES: tuple[tuple[Change, float], ...] = (
    (_recolour, 0.2),
    (_reshape, 0.12),
    (_replace, 0.04),
    (_resize, 0.14),
    (_remove, 0.11),
    (_add, 0.16),
    (_move, 0.17),
    (_background, 0.12),
)
_WEIGHTS = np.cumsum([weight for _, weight in _CHANGES])


def make_edit(rng: np.random.Generator) -> Example:
    """A random edit example; a quarter of them makes several changes at once."""
    count = 1 if rng.random() < 0.74 else 2 if rng.random() < 0.75 else 3
    while True:
        # Several scenes are tried for each draw of changes, or those that seldom fit would be rare.
        changes = [_CHANGES[int(i)][0] for i in np.searchsorted(_WEIGHTS, rng.random(count) * _WEIGHTS[-1])]
        if changes.count(_background) > 1 or changes.count(_add) > 1:
            continue
        for _ in range(20):
            example = _try_edit(rng, sample_scene(rng), changes)
            if example is not None:
                return example


def _try_edit(rng: np.random.Generator, scene: Scene, changes: list[Change]) -> Example | None:
    edit = EditBuilder(rng, scene)
    wordings = []
    for change in changes:
        words = change(edit)
        if words is None:
            return None
        wordings.append(words)
    target = edit.target()
    if target is None:
        return None
    text = edit.speaker.finish(_join(edit.speaker, wordings) + edit.speaker.untouched())
    kind = wordings[0].kind if len(wordings) == 1 else "several"
    return Example("edit", kind, text, (scene,), target, None, edit.spec(), tuple(edit.combos))


def _join(speaker: Speaker, wordings: list[Wording]) -> str:
    """The wording of several changes: with one verb for all where each has a complement, or else sentence by
    sentence."""
    complements = [change.complement for change in wordings if change.complement]
    if len(wordings) > 1 and len(complements) == len(wordings) and speaker.chance(0.5):
        words = speaker.pick("make ", "make ", "make ", "I want ") + speaker.pick(
            " and ", " and ", ", "
        ).join(complements)
        return words
    joints = (" and ", " and ", " and ", ", ", ", and ", ", then ", " and then ", ". ", "; ")
    text = wordings[0].sentence
    for change in wordings[1:]:
        text += speaker.pick(*joints) + change.sentence
    # Only imperatives can follow "could you"; "the star should be red" cannot.
    asks = text.split()[0] in _VERBS and speaker.chance(0.06)
    return f"{speaker.pick('could you', 'can you', 'I want you to')} {text}" if asks else text
