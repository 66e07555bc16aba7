"""The contract between tools and the surfaces that offer them: what a tool is, and what it may use.

A tool is a value. MCP schema, REST route, command line and reference page derive from it; a surface never
asks which tool it has in hand. This module knows no tool, no server and no model.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, WithJsonSchema

from omnigen2.adapters.folder import AdapterFolder
from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import Params
from omnigen2.task import Outcome, Task
from storage import Record, StoredImage, StoreView
from tools.errors import Code as Code
from tools.errors import ToolError as ToolError

JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
OUTLIVES_THE_CALL = "outlives the call"
"""Mark of a parameter that makes sense only where the server outlives the call."""


DETAIL = "detail"
"""Mark in the JSON schema of a field of a result that an agent in a conversation is not sent."""
Detail = Field(json_schema_extra={DETAIL: True})
"""Marks such a field: `uri: Annotated[str, Detail]`. Programs get it, and it can be asked for."""


class Request(Params):
    """What was asked. Image references are strings; `None` means that the model decides."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture that is small enough to travel inside a result."""

    data: bytes
    mime_type: str


@dataclass(frozen=True)
class Audio:
    """An encoded recording."""

    data: bytes
    mime_type: str


@dataclass(frozen=True)
class Embedded:
    """A resource that travels inside a result or a prompt."""

    uri: str
    mime_type: str
    content: str | bytes


Block = str | Picture | Audio | Embedded
"""A piece of content for a model: text, a picture, a recording, or a resource."""


class Result(BaseModel):
    """The result of a call: the structured content of an answer, without pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    detailed: ClassVar[bool] = False
    """Whether the details (`DETAIL`) are what this result is asked for: then agents are sent them, too."""

    notes: tuple[str, ...] = ()
    """What you should know about this result: what was cut, reduced, replaced or ignored."""

    def summary(self) -> str:
        """The result and its notes: every fact a model needs, as many hosts show it only this text."""
        line = self.line()
        return ("\n" if "\n" in line else " ").join([line, *self.notes])

    def line(self) -> str:
        """The result without its notes: ids (`short_id`), sizes, seeds, states."""
        raise NotImplementedError

    def linked(self) -> tuple[str, ...]:
        """Ids of the images to offer as resource links, for the user to open."""
        return ()

    def named(self) -> tuple[str, ...]:
        """Ids of all images in it, for those who want files of them."""
        return self.linked()

    def previewed(self) -> tuple[str, ...]:
        """Ids of the images to show as small previews."""
        return ()

    def pictures(self) -> tuple[Picture, ...]:
        """Pictures to show as they are, beside the previews."""
        return ()

    def blocks(self) -> tuple[Block, ...]:
        """Further content for the model, after summary, pictures and links."""
        return ()

    @classmethod
    def brings_content(cls) -> bool:
        """Whether results of this kind come with pictures or other content beside their text."""
        kinds = ("previewed", "pictures", "blocks")
        return any(getattr(cls, name) is not getattr(Result, name) for name in kinds)

    def to_journal(self) -> str:
        """JSON from which `from_journal` gives this result again, also to later versions."""
        return self.model_dump_json()

    @classmethod
    def from_journal(cls, text: str, store: StoreView, job_id: str) -> Self:
        """The result of a job whose `to_journal` is `text`.

        Raises:
            ValueError, LookupError: `text` was written by another version, and cannot be read.
            StoreError: what it refers to cannot be read.
        """
        return cls.model_validate_json(text)


def short_id(image: str) -> str:
    """The first 12 digits of an image's id: as good as all of them in a later call, and shorter."""
    return image.removeprefix("sha256:")[:12]


Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Result)


AnyResult = Annotated[SerializeAsAny[Result], WithJsonSchema({"type": "object"})]


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    code: Code
    message: str
    advice: str

    @classmethod
    def of(cls, error: ToolError) -> Self:
        """The fields of an error."""
        return cls(code=error.code, message=error.message, advice=error.advice)

    def raised(self) -> ToolError:
        """The error, to be raised."""
        return ToolError(self.code, self.message, self.advice)


NO_JOB = ""
"""Job id in the progress of a call that queues no work."""


class JobStatus(Result):
    """Where a job stands at one moment: what the server knows, what every surface reports."""

    job_id: str
    status: JobState
    """`interrupted`: the server was stopped before it was done; make the call again."""
    position: int
    """Jobs ahead of it in the queue."""
    stage: str
    """What is being done; `paused`: another model has the device for some seconds."""
    step: int
    steps: int
    eta_seconds: float | None
    """Estimate of the time until it is done."""
    result: AnyResult | None
    """When it is done: what the tool answers to a caller who waits."""
    error: JobError | None
    """When it failed: why."""
    preview: Picture | None = Field(exclude=True)
    """The picture so far, if one was asked for."""

    @classmethod
    def new(cls, job_id: str) -> Self:
        """A job that was just queued."""
        return cls(
            job_id=job_id, status="queued", position=0, stage="", step=0, steps=0,
            eta_seconds=None, result=None, error=None, preview=None,
        )  # fmt: skip

    def changed(self, **fields: Any) -> Self:
        """The same job with other values of some fields; they are not validated."""
        return self.model_copy(update=fields)

    def line(self) -> str:
        if self.result is not None:
            return f"Job {self.job_id} is {self.status}. {self.result.summary()}"
        if self.error is not None:
            return f"Job {self.job_id} is {self.status}: {self.error.message} {self.error.advice}".rstrip()
        where = f", {self.position} ahead of it" if self.status == "queued" and self.position else ""
        if self.stage:
            where += f", {self.stage} {self.step} of {self.steps}" if self.steps else f", {self.stage}"
        eta = "" if self.eta_seconds is None else f", about {self.eta_seconds:.0f} s left"
        return f"Job {self.job_id} is {self.status}{where}{eta}."

    def linked(self) -> tuple[str, ...]:
        return self.result.linked() if self.result else ()

    def named(self) -> tuple[str, ...]:
        return self.result.named() if self.result else ()

    def previewed(self) -> tuple[str, ...]:
        return self.result.previewed() if self.result else ()

    def pictures(self) -> tuple[Picture, ...]:
        if self.result is not None:
            return self.result.pictures()
        return (self.preview,) if self.preview else ()

    def blocks(self) -> tuple[Block, ...]:
        return self.result.blocks() if self.result else ()


OpenFile = tuple[Path, BinaryIO]
"""Where a file is, and the file, open for reading."""
NewFile = tuple[Path, Callable[[bytes], None]]
"""Where a file will be, and a function that writes it: completely, or not at all."""
Pick = Callable[[Sequence[str]], str]
"""Chooses from the names in a folder."""


class Context(Protocol):
    """All that a running tool may use. The server implements it; one is made for every call."""

    store: StoreView
    adapters: AdapterFolder  # those that the host offers by name
    principal: str
    """On whose behalf the call is made."""
    own_addresses: tuple[str, ...]
    """Addresses of the server that the caller may use for stored images, see `parse_reference`."""

    def card(self, model: str | None) -> ModelCard:
        """The card of `model`, or of the default model. No weights are read.

        Raises:
            ToolError: `invalid_argument`, with the models there are.
        """
        ...

    async def look_up(
        self, model: str | None, references: Mapping[str, str], *, wait: bool
    ) -> tuple[ModelCard, bool, tuple[StoredImage, ...]]:
        """The card of `model` and the images that a request names, by field; one worker thread for both.

        The second value says whether the card has the digest of the weights as they are now. To find out may
        take until the model is loaded; it is False then without `wait`, or if the caller cannot wait so long.

        Raises:
            ToolError: `invalid_argument`, with the models there are; `not_ready`: the model cannot be loaded;
                what `resolve` raises.
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

    def new_file(self, path: str, field: str, *, replace: bool) -> AbstractContextManager[NewFile]:
        """A file that the caller may make; on entering, it is found out whether it can be written.

        No link is followed. Without `replace`, no file that exists is touched.

        Raises:
            ToolError: `forbidden`, naming `field` and what is allowed.
            OSError: it cannot be written: `FileExistsError`, `FileNotFoundError` without its folder, ...
        """
        ...

    def show(self, image: StoredImage, pixels: Image | None, record: Record) -> None:
        """Pass on an image of the answer, so that its link needs no reading, nor its preview, with `pixels`.

        Callable from worker threads.
        """
        ...

    async def progress(self, step: int, steps: int = 0, stage: str = "") -> None:
        """Tell the caller how far a call is that queues no `Work`; `steps` is 0 while they are not counted.

        On a worker thread: `anyio.from_thread.run(context.progress, step, steps, stage)`.
        """
        ...

    async def run(self, work: "Work", *, background: bool) -> Result:
        """Give the result of an equal earlier request; or queue `work`, wait for it and give its result.

        The caller sees progress meanwhile. With `background`, work that is queued gives
        `work.accepted(job_id)` at once and goes on without its caller; otherwise it is cancelled when its
        caller goes away. A caller who is not told of progress gets `work.accepted(job_id)` before its client
        gives up waiting.

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
    """A piece of work for a model, as a tool gives it to the queue. The functions run on worker threads."""

    tool: str
    model: str | None
    """Name of the model; None is the default model."""
    task: Task
    """The task with image sizes in the place of its images."""
    inputs: tuple[StoredImage, ...]
    """Images that must not be collected before it is done."""
    recall: Callable[[], Result | None]
    """The result of an equal earlier request, if there is one. Raises StoreReadOnly if a new one could not be
    stored."""
    load: Callable[[], Task]
    """The task with its images decoded; called once the model has room for it."""
    store: Callable[[Outcome, str, Mapping[str, float]], Result]
    """Store an outcome, and make its result from the job's id and the milliseconds it waited: `queued_ms`,
    and `load_ms` for its model. Called once, never after a cancellation."""
    accepted: Callable[[str], Result]
    """The answer to a caller who does not wait, from the job's id. Called on the event loop."""


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
    """Raises `ToolError`, or an error of the store, which its caller translates."""
    defaults: Callable[[ModelCard], Params] | None = None
    """Which of the model's defaults its parameters have; None: no parameter is the model's."""
    advice: Callable[[ModelCard], str] | None = None
    """Which of the model's advice goes with its description; None: it does not ask the model."""
    read_only: bool = False
    """It changes nothing that a later call could see."""
    destructive: bool = False
    """It may undo or end something."""
    idempotent: bool = False
    """Calling it twice does no more than calling it once."""
    open_world: bool = False
    """It may reach outside this machine, beyond fetching the images that its request names."""
