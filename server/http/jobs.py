"""Jobs over HTTP: which there are, where each stands, its events, and how to end it."""

import base64
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server import schema
from server.app import App
from server.caller import Caller
from server.context import CallContext
from server.errors import answering
from server.http.openapi import JSON, Paths, answer, operation, parameter
from server.http.refusals import refusal
from server.http.streams import DESCRIBED, EVENTS, EventStream, while_connected
from server.journal import Entry
from server.status import progress_event
from server.watching import HEARTBEAT_S, watch
from tools.base import JobError, JobStatus, ToolError

JOBS = "/v1/jobs"
MOST = 100
"""Jobs in one list."""
PREVIEWS = 4
"""Previews in the events of a job, if the client does not say how many."""
MOST_PREVIEWS = 16
END = "end"
"""Id of the last event."""
MOST_DIGITS = 10
TEXT: dict[str, Any] = {"type": "string"}


def routes(app: App, caller: Callable[[Request], Caller]) -> list[Route]:
    """Routes for all jobs, for one of them, and for its events."""

    async def jobs(request: Request) -> Response:
        who = caller(request)
        try:
            with answering("jobs", who.client, app.counts):
                limit = _number(request, "limit", MOST, MOST)
                entries = await to_thread.run_sync(
                    app.dispatcher.journal.newest, who.principal, limit, request.query_params.get("before")
                )
                return JSONResponse({"jobs": [_listed(app, entry, who) for entry in entries]})
        except ToolError as error:
            return refusal(error)

    async def job(request: Request) -> Response:
        who, name = caller(request), request.path_params["job"]
        try:
            with answering("job", who.client, app.counts):
                context = CallContext(app, who)
                ending = request.method == "DELETE"
                status = await (context.cancel(name) if ending else context.job(name))
                await to_thread.run_sync(app.store_of(who.principal).check, status.linked())
                return JSONResponse(schema.dump(status, who.address_of) | _preview(status))
        except ToolError as error:
            return _refused(error)

    return [
        Route(JOBS, jobs),
        Route(f"{JOBS}/{{job}}", job, methods=["GET", "DELETE"]),
        Route(f"{JOBS}/{{job}}/events", Events(app, caller), methods=["GET"]),
    ]


class Events:
    """The ASGI application behind the events of one job."""

    def __init__(self, app: App, caller: Callable[[Request], Caller]) -> None:
        self._app, self._caller = app, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what happens to the job until it has ended, beginning after the `Last-Event-ID`."""
        request = Request(scope, receive)
        who, last = self._caller(request), request.headers.get("last-event-id", "")
        context = CallContext(self._app, who)
        try:
            with answering("job events", who.client, self._app.counts):
                previews = _number(request, "previews", PREVIEWS, MOST_PREVIEWS, least=0)
                status = await context.job(request.path_params["job"])
        except ToolError as error:
            await _refused(error)(scope, receive, send)
            return
        if last == END:  # the client has all of it; 204 tells it not to come back
            await Response(status_code=204)(scope, receive, send)
            return
        since = int(last) if last.isascii() and last.isdigit() and len(last) < MOST_DIGITS else -1

        async def events() -> None:
            stream = EventStream(send)
            await stream.begin()
            await self._follow(status.job_id, context, stream, since, previews)
            await self._end(status.job_id, context, stream, who)

        await while_connected(receive, events)

    async def _follow(
        self, job_id: str, context: CallContext, stream: EventStream, since: int, previews: int
    ) -> None:
        """Send the progress of a job until it has ended."""
        while True:
            job = self._app.dispatcher.find(job_id, context.principal)
            if job is not None:
                # A version from before a restart may be larger than all there are.
                since = since if since <= job.version else -1
                lane = self._app.dispatcher.lane(job)
                async with aclosing(watch(job, lane, since, previews)) as states:
                    async for version, status in states:
                        told = progress_event(status) | _preview(status)
                        await stream.event("progress", told, id=str(version))
                return
            with suppress(ToolError):  # said by what comes last
                status = await context.job(job_id)
                if status.status in ("queued", "running"):  # in another process
                    await stream.event("progress", progress_event(status))
                    await anyio.sleep(HEARTBEAT_S)
                    continue
            return

    async def _end(self, job_id: str, context: CallContext, stream: EventStream, who: Caller) -> None:
        """Send how a job ended."""
        try:
            status = await context.job(job_id)
            if status.error is not None:
                raise status.error.raised()
            assert status.result is not None
            result = schema.dump(status.result, who.address_of)
            await stream.event("result", result, id=END, more=False)
        except ToolError as error:
            await stream.event("error", schema.dump_error(error), id=END, more=False)


def _listed(app: App, entry: Entry, who: Caller) -> dict[str, Any]:
    """A job in a list: where it stands, without its result."""
    job = app.dispatcher.find(entry.id, who.principal)
    if job is not None:
        status = app.dispatcher.lane(job).status(job)
    else:
        error = JobError.of(entry.error) if entry.error else None
        status = JobStatus.new(entry.id).changed(status=entry.state, error=error)
    return schema.dump(status.changed(result=None)) | {"tool": entry.tool, "created": entry.created}


def _preview(status: JobStatus) -> dict[str, str]:
    """The picture so far, if there is one, as a data: URI."""
    if status.preview is None:
        return {}
    encoded = base64.b64encode(status.preview.data).decode()
    return {"preview": f"data:{status.preview.mime_type};base64,{encoded}"}


def _number(request: Request, name: str, usual: int, most: int, least: int = 1) -> int:
    """A number in the query. Raises ToolError."""
    text = request.query_params.get(name, str(usual))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < MOST_DIGITS else -1
    if not least <= number <= most:
        allowed = f"a whole number from {least} to {most}"
        raise ToolError(
            "invalid_argument", f"{name}: must be {allowed} (given: {text[:80]!r}).", "Correct it."
        )
    return number


def _refused(error: ToolError) -> Response:
    """A refusal; that there is no such job is what else would be a wrong argument."""
    return refusal(error, 404 if error.code == "invalid_argument" else None)


def described(_: App) -> Paths:
    """The paths of jobs."""
    status = schema.plain(JobStatus.model_json_schema(mode="serialization"))
    status["required"] = []  # what is None is left out
    status["properties"]["preview"] = TEXT | {"description": "The picture so far, as a data: URI."}
    listed = status | {"properties": status["properties"] | {"tool": TEXT, "created": {"type": "integer"}}}
    jobs = {"type": "object", "properties": {"jobs": {"type": "array", "items": listed}}}
    name = parameter("job", "path", "The job_id of an earlier answer.", maxLength=100)
    number = {"type": "integer", "minimum": 1, "maximum": MOST, "default": MOST}
    some = {"type": "integer", "minimum": 0, "maximum": MOST_PREVIEWS, "default": PREVIEWS}
    paging = [
        parameter("limit", "query", "How many at most.", **number),
        parameter("before", "query", "Only those older than the job of this id."),
    ]
    following = [
        name,
        parameter("previews", "query", "How many events have a preview at most.", **some),
        parameter("Last-Event-ID", "header", "The last event that came; the answer goes on after it."),
    ]
    told = answer("`progress`, as often as there is any; last `result` or `error`.", {EVENTS: DESCRIBED})
    every = {200: answer("Jobs.", {JSON: jobs})}
    one = {200: answer("Where it stands; its result when it is done.", {JSON: status})}
    return {
        JOBS: {"get": operation("list_jobs", "Your jobs, newest first", every, parameters=paging)},
        f"{JOBS}/{{job}}": {
            "get": operation("read_job", "A job", one, parameters=[name]),
            "delete": operation("end_job", "Cancel a job, unless it has ended", one, parameters=[name]),
        },
        f"{JOBS}/{{job}}/events": {
            "get": operation(
                "follow_job",
                "What happens to a job",
                {200: told, 204: answer("All of it came already.")},
                parameters=following,
            )
        },
    }
