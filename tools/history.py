"""How an image came about: the records of its lineage, and what imported files claim of the time before."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from anyio import to_thread
from pydantic import JsonValue

from storage import Ancestor, Record
from storage.history import HISTORY, claimed
from storage.records import IMPORT, LABEL, PIN
from tools.base import Context, Result, Tool, short_id
from tools.fields import ImageIn
from tools.library import EXCERPT, named, sized
from tools.results import Facts, ImageInfo, effective

IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
WORDS = ("prompt", "instruction")
"""Arguments that say what a picture is of."""
MAX_STEPS = 100
"""Most images of a lineage in one answer, and most claims."""
MAX_CLAIMED = 20_000
"""Most characters of claims in one answer: a file says what it likes."""
CLAIMED = (
    "Steps that are claimed come from files that were imported. Nothing proves them, and their images may "
    "not be stored here; their calls, in this order, make them again."
)


class ImageHistory(ImageIn):
    """Whose history."""


class Call(Facts):
    """A call that can be made as it stands."""

    tool: str
    arguments: dict[str, JsonValue]


class Step(Facts):
    """An image of the lineage, and how it came about."""

    image: ImageInfo
    label: str | None
    tool: str | None
    """The tool that made it; absent if it came from outside."""
    inputs: list[str]
    """Ids of the images it was made from."""
    model: str | None
    created: datetime
    record: str | None
    """Id of the provenance record."""
    replay: Call | None
    """Make this call to make the image again; absent if it came from outside."""


class Claim(Facts):
    """A step that happened elsewhere, as the file says from which an image of the lineage was imported.

    Nothing here proves it, and its images may not be stored here.
    """

    images: list[str]
    """Ids of the images it made."""
    tool: str
    inputs: list[str]
    model: str | None
    created: datetime
    parameters: dict[str, JsonValue] | None
    """What was asked, where that is no call that makes an image."""
    replay: Call | None
    """Make this call to make its images again."""
    told_by: str
    """Id of the imported image whose file says so."""


class History(Result):
    """The lineage of an image, oldest first; the image itself is last."""

    detailed: ClassVar[bool] = True

    steps: list[Step]
    claims: list[Claim]
    """Steps before those, oldest first, which are not proved: files that were imported say so."""

    def line(self) -> str:
        lines: list[str] = []
        for step in self.steps:
            lines += [_claim_line(claim) for claim in self.claims if claim.told_by == step.image.id]
            lines.append(_line(step))
        return "\n".join(f"{place}. {line}" for place, line in enumerate(lines, 1))

    def named(self) -> tuple[str, ...]:
        return tuple(step.image.id for step in self.steps)


async def image_history(request: ImageHistory, context: Context) -> History:
    """The nearest ancestors, `MAX_STEPS` at most, and the record that made each."""
    image = await context.resolve(request.image, "image")
    lineage = await to_thread.run_sync(context.store.lineage, image.id, MAX_STEPS)
    claims, notes = _claims(lineage)
    steps = [_step(ancestor) for ancestor in lineage]
    return History(steps=steps, claims=claims, notes=(*_left_out(lineage), *notes))


def _claims(lineage: Sequence[Ancestor]) -> tuple[list[Claim], tuple[str, ...]]:
    """What imported files claim about the time before a lineage, and notes on it."""
    told = [
        (str(ancestor.image.id), record)
        for ancestor in lineage
        for record in reversed(claimed(ancestor.record) if ancestor.record else [])
        if record.tool not in (LABEL, PIN)
    ]
    claims, room = list[Claim](), MAX_CLAIMED
    for image, record in reversed(told[-MAX_STEPS:]):  # the nearest first
        claim = _claim(image, record)
        room -= len(claim.model_dump_json())
        if room < 0:
            break
        claims.insert(0, claim)
    left = len(told) - len(claims)
    notes = (CLAIMED,) if claims else ()
    return claims, (*notes, *([f"{left} claimed steps before are too long to be listed."] if left else []))


def _claim(image: str, record: Record) -> Claim:
    call = replay(record) if record.outputs else None
    asked = {name: value for name, value in record.parameters.items() if name != HISTORY}
    return Claim(
        images=[str(digest) for digest in record.outputs],
        tool=record.tool,
        inputs=[str(digest) for digest in record.inputs],
        model=record.model.id[:EXCERPT] if record.model else None,
        created=record.time,
        parameters=None if call else asked,
        replay=call,
        told_by=image,
    )


def _claim_line(claim: Claim) -> str:
    made = ", ".join(map(short_id, claim.images)) or f"a file of {', '.join(map(short_id, claim.inputs))}"
    call = claim.replay or Call(tool=claim.tool, arguments=claim.parameters or {})
    return f"{made}, {_by(call)}, as the file of {short_id(claim.told_by)} claims"


def _left_out(lineage: Sequence[Ancestor]) -> tuple[str, ...]:
    """Where a lineage goes on that was cut off."""
    listed = {ancestor.image.id for ancestor in lineage}
    inputs = [(step, digest) for step in lineage if step.record for digest in step.record.inputs]
    cut = next((step.image.id for step, digest in inputs if digest not in listed), None)
    if len(listed) < MAX_STEPS or cut is None:
        return ()
    return (
        f"Only the {len(listed)} nearest images are listed; for older ones ask for the history of {cut}.",
    )


def _step(ancestor: Ancestor) -> Step:
    record = ancestor.record
    return Step(
        image=ImageInfo.of(ancestor.image),
        label=ancestor.image.label,
        tool=record.tool if record else None,
        inputs=[str(digest) for digest in record.inputs] if record else [],
        model=record.model.id if record and record.model else None,
        created=record.time if record else ancestor.image.created,
        record=str(ancestor.record_id) if ancestor.record_id else None,
        replay=replay(record) if record else None,
    )


def replay(record: Record) -> Call | None:
    """The call that a record is the outcome of; None for an import, whose source may be gone."""
    if record.tool == IMPORT:
        return None
    model: dict[str, JsonValue] = {"model": record.model.id} if record.model else {}
    return Call(tool=record.tool, arguments=effective(record.parameters, record.seed) | model)


def _line(step: Step) -> str:
    made = f"{sized(step.image)}{named(step.label)}"
    return f"{made}, {_by(step.replay)}" if step.replay else f"{made}, from outside"


def _by(call: Call) -> str:
    words_first = sorted(call.arguments.items(), key=lambda one: one[0] not in WORDS)
    arguments = {name: _shortened(value) for name, value in words_first}
    return f"by {call.tool} {json.dumps(arguments, ensure_ascii=False)}"


def _shortened(value: JsonValue) -> JsonValue:
    """An argument with short ids in the place of ids."""
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    return short_id(value) if isinstance(value, str) and IMAGE_ID.fullmatch(value) else value


IMAGE_HISTORY = Tool(
    name="image_history",
    command="history",
    title="Image history",
    description=(
        "How an image came about: the images it was made from, oldest first, each with the tool, all "
        "parameters, the seed and the model, as a call that makes it again. Use it to repeat or vary a step."
    ),
    request=ImageHistory,
    result=History,
    run=image_history,
    read_only=True,
    idempotent=True,
)
