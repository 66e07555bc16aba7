"""/metrics: numbers for an operator, in the text format of Prometheus.

Labels have few values: tools, states, codes, routes, statuses. None holds a prompt, an id or a name.
"""

from collections.abc import Iterator
from typing import NamedTuple

from anyio import to_thread
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.app import App
from server.counts import Counted
from server.http.openapi import Paths, answer, operation

METRICS = "/metrics"


class _Count(NamedTuple):
    what: Counted
    about: str
    labels: tuple[str, ...] = ()


COUNTS = (
    _Count(
        "calls",
        "Calls of tools, MCP methods, images and jobs: ok, or the code of the error.",
        ("call", "code"),
    ),
    _Count("jobs", "Jobs that ended, by tool and last state.", ("tool", "state")),
    _Count("job_steps", "Denoising steps, or tokens, of the jobs that ended."),
    _Count("job_seconds", "Seconds that the jobs that are done spent in each phase.", ("phase",)),
    _Count("equal_results", "Requests answered with the result of an equal earlier one."),
    _Count(
        "http_answers",
        "Answers over HTTP. The route is empty where none was found or the guard refused.",
        ("route", "status"),
    ),
)


class AppCollector(Collector):
    """The numbers of one app, read when they are asked for."""

    def __init__(self, app: App) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        """The counts, and how things are now."""
        for what, about, labels in COUNTS:
            family = CounterMetricFamily(f"omnigen2_{what}", about, labels=labels)
            counted = self._app.counts.of(what)
            for values, number in (counted or ({} if labels else {(): 0.0})).items():
                family.add_metric(values, number)
            yield family
        dispatcher, usage = self._app.dispatcher, self._app.store.usage()
        for name, about, number in (
            ("jobs_queued", "Jobs that wait.", dispatcher.count("queued")),
            ("jobs_running", "Jobs at work.", dispatcher.count("running")),
            ("store_images", "Images in the store.", usage.images),
            ("store_bytes", "Bytes of images and records in the store.", usage.bytes),
            (
                "device_bytes",
                "Bytes that the loaded models keep on their devices.",
                self._app.manager.memory_bytes(),
            ),
        ):
            yield GaugeMetricFamily(f"omnigen2_{name}", about, value=number)


def routes(app: App, _: object) -> list[Route]:
    """The route of the numbers."""
    registry = CollectorRegistry()
    registry.register(AppCollector(app))
    ProcessCollector(registry=registry)

    async def metrics(_: Request) -> Response:
        text = await to_thread.run_sync(generate_latest, registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [Route(METRICS, metrics)]


def described(_: App) -> Paths:
    """The path of the numbers."""
    text = answer("Prometheus' text format.", {"text/plain": {"type": "string"}})
    about = "Where tokens are needed, it needs one that may read."
    return {METRICS: {"get": operation("metrics", "Numbers for an operator", {200: text}, about=about)}}
