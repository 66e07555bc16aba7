"""What a tool is, and what it may use: the contract between tools and the surfaces that offer them.

A tool is a value. MCP schema, REST route, command line and reference page derive from it; a surface never
asks which tool it has in hand. This module knows no tool, no server and no model.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import Params
from omnigen2.task import Outcome, Task
from storage import ImageStore, StoredImage

Code = Literal[
    "invalid_argument",
    "image_not_found",
    "image_rejected",
    "busy",
    "out_of_memory",
    "cancelled",
    "not_ready",
    "forbidden",
    "internal",
]
JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]


class ToolError(Exception):
    """A call that failed, in words an agent can act on: what was wrong with what, and what to do next."""

    def __init__(self, code: Code, message: str, advice: str = "", retry_after_s: int | None = None) -> None:
        """`retry_after_s`: seconds after which the same call may succeed."""
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.advice = advice
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()

    def copy(self) -> "ToolError":
        """The same without a traceback: its frames would keep alive all that was worked on."""
        return ToolError(self.code, self.message, self.advice, self.retry_after_s)


OUTLIVES_THE_CALL = "outlives the call"
"""Mark of a parameter that makes sense only where the server goes on after the call."""


class Request(Params):
    """What was asked. Image references are strings; `None` means that the model decides."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture that is small enough to travel inside a result."""

    data: bytes
    mime_type: str


class Result(BaseModel):
    """What came of a call; the structured content of an answer. Never holds pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    notes: tuple[str, ...] = ()
    """What you should know about this result: what was cut, reduced, replaced or ignored."""

    def summary(self) -> str:
        """The result and its notes, for models that read only text."""
        line = self.line()
        return ("\n" if "\n" in line else " ").join([line, *self.notes])

    def line(self) -> str:
        """The result in a sentence or two, without its notes."""
        raise NotImplementedError

    def linked(self) -> tuple[str, ...]:
        """Ids of the images to offer as resource links."""
        return ()

    def previewed(self) -> tuple[str, ...]:
        """Ids of the images to show as small previews."""
        return ()

    def pictures(self) -> tuple[Picture, ...]:
        """Pictures to show as they are, beside the previews."""
        return ()


Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Result)


class JobStatus(Protocol):
    """Where a job stands, at one moment."""

    id: str
    state: JobState
    position: int
    """Jobs ahead of it in the queue; 0 when it is next, or no longer waits."""
    stage: str
    step: int
    steps: int
    eta_seconds: float | None
    """Estimate of the time until it is done."""
    preview: Picture | None
    """What the picture looks like so far, if it was asked for."""
    result: Result | None
    error: ToolError | None


OpenFile = tuple[Path, BinaryIO]
"""Where a file is, and the file, open for reading."""
Pick = Callable[[Sequence[str]], str]
"""Chooses from the names in a folder."""


class Context(Protocol):
    """All that a running tool may use. The server implements it; one is made for every call."""

    store: ImageStore
    principal: str
    """On whose behalf the call is made."""

    def card(self, model: str | None) -> ModelCard:
        """The card of `model`, or of the default model. No weights are read.

        Raises:
            ToolError: `invalid_argument`, with the models there are.
        """
        ...

    async def identify(self, model: str | None, wait: bool = True) -> ModelCard | None:
        """The card of `model`, or of the default model, with the digest of its weights as they are now.

        Finding out may take until the model is loaded; without `wait` it is None then.

        Raises:
            ToolError: `invalid_argument`, with the models there are; `not_ready`: it cannot be loaded, or not
                while the caller waits.
        """
        ...

    async def resolve(self, reference: str, field: str) -> StoredImage:
        """The image that a reference of any allowed form means; one from outside is stored first.

        Raises:
            ToolError: `image_not_found`, `image_rejected`, `forbidden` or `invalid_argument`, naming `field`.
        """
        ...

    def open_file(self, path: str, field: str, pick: Pick | None = None) -> OpenFile:
        """Open a file that the caller may name: no link is followed, and only a regular file is opened.

        With `pick`, `path` may be a folder; `pick` chooses from the names in it.

        Raises:
            ToolError: `forbidden`, naming `field` and what is allowed.
            OSError: it cannot be read.
        """
        ...

    async def run(self, work: "Work", *, background: bool) -> Result:
        """Queue `work`, wait for it and give its result; the caller sees progress meanwhile.

        With `background` it returns `work.accepted(job_id)` at once and the job goes on without its caller;
        otherwise the job is cancelled when its caller goes away.

        Raises:
            ToolError: `busy` when the queue is full, `cancelled`, `out_of_memory`, `not_ready`, ...
        """
        ...

    async def job(self, job_id: str, wait_seconds: float = 0) -> JobStatus:
        """Where a job of this principal stands, after waiting up to `wait_seconds` for it to end.

        Asking for a running job also asks for a preview of it.

        Raises:
            ToolError: `invalid_argument`: there is no such job.
        """
        ...

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job of this principal; one that has ended stays as it is. Raises what `job` does."""
        ...


@dataclass(frozen=True)
class Work:
    """What a tool hands to the queue."""

    tool: str
    model: str | None
    """Which model is to do it; None is the default model."""
    task: Task
    """What is to be done, with values in the place of its pictures that have their sizes only."""
    load: Callable[[], Task]
    """Makes the task with its pictures; called once, on a worker thread, when the model has room for it."""
    holds: tuple[StoredImage, ...]
    """Images that must not be collected before it is done."""
    finish: Callable[[Outcome, "JobTimes"], Result]
    """Stores what came out and makes the result; called once, on a worker thread, never after a cancel."""
    accepted: Callable[[str], Result]
    """What a caller gets at once who does not wait, from the job's id."""


@dataclass(frozen=True)
class JobTimes:
    """What the queue knows about a finished job."""

    job_id: str
    queued_ms: float
    load_ms: float
    """Milliseconds spent waiting for the model to be loaded."""


@dataclass(frozen=True)
class Tool(Generic[Q, R]):
    """One thing that can be asked."""

    name: str
    """For machines: `generate_image`."""
    command: str
    """For the command line: `generate`."""
    title: str
    """For people: a few words."""
    description: str
    """For a language model: when to use it, what it needs and gives."""
    request: type[Q]
    result: type[R]
    run: Callable[[Q, Context], Awaitable[R]]
    """Raises `ToolError`, or an error of the store, which whoever calls it translates."""
    defaults: Callable[[ModelCard], Params] | None = None
    """Which of the model's defaults its parameters have; None: no parameter is the model's."""
    read_only: bool = False
    """It changes nothing that a later call could see."""
    destructive: bool = False
    """It may undo or end something."""
    idempotent: bool = False
    """Calling it twice does no more than calling it once."""
    open_world: bool = False
    """It may reach outside this machine."""
    needs_model: bool = False
    """The model must be loaded to do it."""
