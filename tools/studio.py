"""The two things that the model does: make images, write text. Four tools ask for them in their own words.

A recipe that was carried out before is answered from the store; any other one goes to the queue, and what
comes out is stored with the record of how it was made.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from anyio import to_thread

from omnigen2.task import Outcome, Task
from storage import ImageStore, Record
from tools.base import Context, JobTimes, Result, Work
from tools.recipe import Recipe, identity
from tools.results import Answer, ImagesResult, TextResult, effective

R = TypeVar("R", ImagesResult, TextResult)
_KEEPING = threading.Lock()
"""Held from looking for an equal record to having stored one."""


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
    store = context.store
    if recipe.fixed and (found := await to_thread.run_sync(partial(_recall, recipe, store, kind, started))):
        return found
    store.refuse_if_read_only()

    def load() -> Task:
        return recipe.task([store.open(image.id) for image in recipe.inputs])

    def finish(outcome: Outcome, times: JobTimes) -> Result:
        timings = _timings(started, outcome.timings, times)
        record = _keep(recipe, outcome, timings, context)
        return kind.of(Answer(record, timings, times.job_id, notes=recipe.notes), store)

    def accepted(job_id: str) -> Result:
        queued = kind.accepted(job_id, recipe.card.id, effective(recipe.parameters, recipe.params.seed))
        return queued.model_copy(update={"notes": recipe.notes})

    outline = recipe.task(recipe.inputs)
    work = Work(recipe.tool, recipe.request.model, outline, load, recipe.inputs, finish, accepted)
    result = await context.run(work, background=recipe.request.background)
    assert isinstance(result, kind)
    return result


def _recall(recipe: Recipe, store: ImageStore, kind: type[R], started: float) -> R | None:
    """The result of an equal request, if there was one and its images are still here."""
    record = store.find_equal(**recipe.key)
    if record is None:
        return None
    timings = {"total_ms": _ms_since(started)}
    return kind.of(Answer(record, timings, cached=True, notes=recipe.notes), store)


def _keep(recipe: Recipe, outcome: Outcome, timings: Mapping[str, float], context: Context) -> Record:
    """Store what came out, and how it came about: the pictures, and the record that names them.

    Of equal requests that were under way at once, the first to be stored answers all: on a GPU their pixels
    may differ by rounding, but the same call must not give two ids.
    """
    card = (outcome.card or recipe.card).model_copy(update={"id": recipe.card.id})  # as it was asked for
    key = recipe.key | identity(card)
    with _KEEPING if recipe.fixed else nullcontext():
        first = context.store.find_equal(**key) if recipe.fixed else None
        return first or context.store.put_made(
            outcome.pictures,
            **key,
            text=outcome.text or None,
            code=_code_version(),
            principal=context.principal,
            timings=timings,
            notes=outcome.notes or None,
        )


def _timings(started: float, stages: Mapping[str, float], times: JobTimes) -> dict[str, float]:
    phases = {"queued_ms": times.queued_ms, "load_ms": times.load_ms} | dict(stages)
    phases["total_ms"] = _ms_since(started)
    return {name: round(value, 1) for name, value in phases.items()}


def _ms_since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 1)


@cache
def _code_version() -> str | None:
    try:
        return version("omnigen2-mcp")
    except PackageNotFoundError:  # run from a folder that nobody installed
        return None
