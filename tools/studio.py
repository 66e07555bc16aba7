"""Runs a recipe on the model, to make images or write text; shared by the four tools of the model.

A recipe that was carried out before is answered from the store; any other one goes to the queue, and what
comes out is stored with the record of how it was made.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from omnigen2.task import Outcome, Task
from storage import Record
from tools.base import Context, Result, Work
from tools.recipe import Recipe, identity
from tools.region import pasted_back
from tools.results import ImagesResult, TextResult, effective

R = TypeVar("R", ImagesResult, TextResult)
_STORING = [threading.Lock() for _ in range(64)]
"""One is held from the search for an equal record until one is stored: the same one for equal requests, and
mostly another for others, so that their pictures are encoded side by side."""


async def make_images(recipe: Recipe, context: Context) -> ImagesResult:
    """Make the pictures of a recipe, or find them.

    Raises:
        ToolError: what `Context.run` raises.
        StoreError: an input is gone, or the store cannot take the result.
    """
    return await _carry_out(recipe, context, ImagesResult)


async def write_text(recipe: Recipe, context: Context) -> TextResult:
    """Write the text of a recipe, or find it. Raises what `make_images` does."""
    return await _carry_out(recipe, context, TextResult)


async def _carry_out(recipe: Recipe, context: Context, kind: type[R]) -> R:
    started = time.perf_counter()
    store, background = context.store, recipe.request.background

    def recall() -> Result | None:
        record = store.find_equal(**recipe.key) if recipe.fixed else None
        if record is None:
            store.refuse_if_read_only()
            return None
        images = [store.get(digest) for digest in record.outputs]
        for image in images:
            context.show(image, None, record)
        timings = {"total_ms": _ms_since(started)}
        return kind.of(record, images, timings=timings, cached=True, notes=recipe.notes)

    def load() -> Task:
        return recipe.task([store.open(image.id) for image in recipe.seen])

    def store_outcome(outcome: Outcome, job_id: str, waited: Mapping[str, float]) -> Result:
        if recipe.part is not None:
            outcome = pasted_back(outcome, recipe.part, recipe.inputs, store)
        timings = {**waited, **outcome.timings, "total_ms": _ms_since(started)}
        timings = {phase: round(ms, 1) for phase, ms in timings.items()}
        record, new = _record(recipe, outcome, timings, context)
        images = [store.get(digest) for digest in record.outputs]
        if new and not background:
            for image, pixels in zip(images, outcome.pictures, strict=True):
                context.show(image, pixels, record)
        return kind.of(record, images, timings=timings, job_id=job_id, notes=recipe.notes)

    def accepted(job_id: str) -> Result:
        queued = kind.accepted(job_id, recipe.card.id, effective(recipe.parameters, recipe.params.seed))
        return queued.model_copy(update={"notes": recipe.notes})

    work = Work(
        tool=recipe.tool,
        model=recipe.request.model,
        task=recipe.task(recipe.seen),
        inputs=recipe.inputs,
        recall=recall,
        load=load,
        store=store_outcome,
        accepted=accepted,
    )
    result = await context.run(work, background=background)
    assert isinstance(result, kind)
    return result


def _record(
    recipe: Recipe, outcome: Outcome, timings: Mapping[str, float], context: Context
) -> tuple[Record, bool]:
    """Store the pictures, and the record of how they were made; the record, and whether it is new.

    Of equal requests that ran at the same time, the first to be stored answers all: on a GPU their pixels may
    differ by rounding, but the same call must not give two ids.
    """
    card = (outcome.card or recipe.card).model_copy(update={"id": recipe.card.id})  # as it was asked for
    key = recipe.key | identity(card, recipe.params)
    equal = hash((recipe.request.words, recipe.params.seed))
    with _STORING[equal % len(_STORING)] if recipe.fixed else nullcontext():
        first = context.store.find_equal(**key) if recipe.fixed else None
        if first is not None:
            return first, False
        record = context.store.put_made(
            outcome.pictures,
            **key,
            text=outcome.text or None,
            code=code_version(),
            principal=context.principal,
            timings=timings,
            notes=outcome.notes or None,
        )
        return record, True


def _ms_since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 1)


@cache
def code_version() -> str | None:
    """The version of the program, as records keep it; None if it is not installed."""
    try:
        return version("omnigen2-mcp")
    except PackageNotFoundError:  # run from a folder, without being installed
        return None
