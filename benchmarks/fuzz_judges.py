"""Fuzz judges: each runs code on an input of bytes and checks the outcome.

A judge returns a short name for the outcome ("stored", "refused", ...) and raises on everything that the
documentation does not allow: an undeclared exception, an undocumented answer, a broken invariant.
"""

import json
import re
import tempfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, get_args

from PIL import Image

from benchmarks.fuzz_app import FuzzedApp
from benchmarks.fuzz_values import Choices, arguments
from storage import Digest, ImageStore, Limits, codec
from storage.embedding import RECORDS, extract
from storage.errors import ImageRejected, InvalidArgument
from storage.history import MAX_RECORDS, claims_in
from storage.ingest import ingest
from storage.records import Record, make_record, parse_record
from tools.base import Code, ToolError
from tools.references import DataRef, FileRef, StoredRef, UrlRef, parse_reference

LIMITS = Limits(bytes=20_000, pixels=250_000, side=2_000)
CODES = frozenset(get_args(Code)) - {"internal"}


class Judge(Protocol):
    """Judges inputs one after the other."""

    def __call__(self, data: bytes) -> str:
        """Judge one input: a short name for the outcome. Raises if anything was not as documented."""
        ...

    def settle(self) -> None:
        """Judge the state left behind by the inputs so far."""
        ...


def refused(code: str, message: str, advice: str) -> str:
    """The outcome of a refusal, whose code must be documented, and message and advice of sensible length."""
    assert code in CODES, (code, message)
    assert 10 < len(message) < 2000 and 10 < len(advice) < 1000, (code, len(message), message[:200], advice)
    return f"refused: {code}"


# -- pictures -----------------------------------------------------------------------------------------


@dataclass
class Pictures:
    """Image files: decoding and encoding, in this process and without a store."""

    def __call__(self, data: bytes) -> str:
        extract(data)
        try:
            taken = ingest(data, LIMITS)
        except ImageRejected as error:
            return refused(error.code, error.message, error.advice)
        claims, left = claims_in(taken.history)
        assert len(claims) <= MAX_RECORDS and all(10 < len(reason) < 1000 for reason in left), left
        picture = codec.open_stored(taken.png, LIMITS)
        assert picture.mode in ("RGB", "RGBA") and not picture.info, (picture.mode, picture.info)
        assert picture.size == codec.size_of(taken.png)
        assert all(10 < len(note) < 200 and note.endswith(".") for note in taken.notes), taken.notes
        again = ingest(taken.png, Limits())
        assert again.png == taken.png and not again.notes, "equal pixels have two ids"
        return "stored"

    def settle(self) -> None:
        """Does nothing: no state is left behind."""


# -- references ---------------------------------------------------------------------------------------


@dataclass
class References:
    """Texts: parsing of image references."""

    def __call__(self, data: bytes) -> str:
        text = data.decode("utf-8", "surrogateescape")
        try:
            reference = parse_reference(text, "image")
        except ToolError as error:
            assert error.code in ("invalid_argument", "image_rejected") and "image" in error.message
            return refused(error.code, error.message, error.advice)
        match reference:
            case StoredRef(digits):
                assert re.fullmatch("[0-9a-f]{8,64}", digits)
            case DataRef(mime_type, taken):
                assert mime_type.startswith(("image/", "application/", "binary/")) or not mime_type
                assert len(taken) <= len(data)
            case FileRef(path):
                assert "\0" not in str(path)
            case UrlRef(url):
                assert url[:6].lower() == "https:" and url.isprintable() and " " not in url
        return type(reference).__name__

    def settle(self) -> None:
        """Does nothing: no state is left behind."""


# -- records ------------------------------------------------------------------------------------------


def record_fields(choices: Choices, images: list[Digest]) -> dict[str, Any]:
    """The fields of a record in JSON form, each of them valid, hostile, or left out."""
    ids = [str(image) for image in images]
    right: dict[str, Callable[[], Any]] = {
        "tool": lambda: choices.pick(
            ("label_image", "pin_image", "generate_image", "import_image", "edit_image")
        ),
        "time": lambda: datetime.now(UTC).isoformat(),
        "parameters": lambda: {
            choices.pick(("label", "pinned", "prompt", "width", choices.text(8))): choices.value()
            for _ in range(choices.below(4))
        },
        "inputs": lambda: [choices.pick(ids) for _ in range(choices.below(3))],
        "outputs": lambda: [choices.pick(ids) for _ in range(choices.below(3))],
        "text": lambda: choices.text(),
        "model": lambda: {"id": choices.text(12), "digest": choices.or_hostile(ids[0])},
        "seed": lambda: choices.below(65536),
        "numerics": lambda: "1",
        "code": lambda: "0.1.0",
        "principal": lambda: choices.text(12),
        "timings": lambda: {"total_ms": choices.or_hostile(1.5)},
        "notes": lambda: [choices.or_hostile("cut")],
    }
    fields = {
        name: choices.or_hostile(make())
        for name, make in right.items()
        if choices.mostly() or name not in ("tool", "time")
    }
    if not choices.mostly():
        fields[choices.text(8)] = choices.value()
    return fields


def as_json(choices: Choices, value: Any) -> bytes:
    """`value` as JSON or, rarely, the rest of the input bytes."""
    return choices.rest() if not choices.mostly() else json.dumps(value).encode()


@dataclass
class Records:
    """JSON: parsing and making of records; a parsed record can be written and parsed again."""

    images: list[Digest] = field(default_factory=lambda: [Digest.of(b"1"), Digest.of(b"2")])

    def __call__(self, data: bytes) -> str:
        choices = Choices(data)
        fields = record_fields(choices, self.images)
        try:
            record = parse_record(as_json(choices, fields))
            body = record.canonical
        except InvalidArgument as error:
            return refused(error.code, error.message, error.advice or "No advice is needed.")
        assert Digest.of(body) == record.id and record.request_key and isinstance(record.searched_text(), str)
        again = parse_record(body)
        assert again == record and again.id == record.id
        try:
            made = make_record(**record.model_dump())
        except InvalidArgument as error:
            return refused(error.code, error.message, error.advice)
        assert made == record and made.canonical == body
        return "read"

    def settle(self) -> None:
        """Does nothing: no state is left behind."""


# -- exports ------------------------------------------------------------------------------------------

ASKED = {"prompt": "a red circle", "seed": 7, "width": 16, "height": 16}


class Exports:
    """Image files with embedded records: import. The store must be consistent afterwards.

    So must the answers of the tools about it, including one to a request equal to an imported record.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._since: list[bytes] = []
        self._stack = stack.enter_context(ExitStack())
        self._begin()

    def __call__(self, data: bytes) -> str:
        self._since.append(data)
        return self._import(data)

    def settle(self) -> None:
        """Verify, rebuild, collect, list and reopen the store, then start with a new one.

        Raises the error of the first input that causes one without the others.
        """
        inputs, self._since = self._since, []
        try:
            self._audit()
        except Exception as fault:
            for data in inputs:
                self._begin()
                self._import(data)
                try:
                    self._audit()
                except Exception as single:
                    single.add_note(f"input: {data!r}")
                    raise
            raise AssertionError(f"only {len(inputs)} inputs together cause this: {fault!r}") from fault
        finally:
            self._begin()

    def _begin(self) -> None:
        self._stack.close()
        self._root = Path(tempfile.mkdtemp(dir=self._folder))
        self._app = FuzzedApp(self._root, self._stack)
        self._store = self._app.store
        made = json.loads(self._app.call("generate_image", ASKED).body)
        self._made = json.loads(self._store.get_record(made["record"]).canonical)
        colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
        self._images = [self._store.put(Image.new("RGB", (8, 8), colour)).id for colour in colours]
        self._pngs = [self._store.read(image) for image in self._images]

    def _import(self, data: bytes) -> str:
        choices = Choices(data)
        png = choices.pick(self._pngs)
        fields = [self._fields(choices) for _ in range(1 + choices.below(2))]
        text = as_json(choices, fields)
        body = b"iTXt" + RECORDS.encode() + b"\0\0\0\0\0" + text
        chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        incoming = self._root / "incoming"
        incoming.mkdir(exist_ok=True)
        (incoming / "one.png").write_bytes(png[:33] + chunk + png[33:])
        taken = self._store.import_(incoming)
        for record in taken.records:
            assert self._store.get_record(record).id == record
        for skipped in taken.skipped:
            assert 10 < len(skipped.reason) < 2000, skipped
        return f"{len(taken.images)} images, {len(taken.records)} records, {len(taken.skipped)} skipped"

    def _fields(self, choices: Choices) -> dict[str, Any]:
        """Fields of an arbitrary record, or a variation of one that was made here."""
        if choices.below(4):
            return record_fields(choices, self._images)
        return {name: choices.or_hostile(value) for name, value in self._made.items()} | {
            "outputs": [str(choices.pick(self._images)) for _ in range(choices.below(3))]
        }

    def _audit(self) -> None:
        store = self._store
        assert store.verify().clean, store.verify()
        store.rebuild_index()
        store.collect(dry_run=True)
        images = store.list(limit=100).images
        store.list(limit=5, query="a")
        for image in images:
            for step in store.lineage(image.id):
                assert step.record is None or isinstance(step.record, Record)
            store.notes(image.id)
        for asked in ({"limit": 50}, {"query": "a"}, {"tool": "edit_image"}):
            self._app.judged("list_images", asked)
        for image in images:
            self._app.judged("image_history", {"image": str(image.id)})
            self._app.judged("view_image", {"image": str(image.id)})
        self._app.judged("generate_image", ASKED)
        with ImageStore(store.path, limits=LIMITS) as again:
            assert again.usage() == store.usage()
            again.export([image.id for image in images], self._root / "exported")


# -- surfaces -----------------------------------------------------------------------------------------


@dataclass
class Rest:
    """HTTP requests: the whole application, in process, with a model that answers at once."""

    app: FuzzedApp

    def __call__(self, data: bytes) -> str:
        choices = Choices(data)
        tool = choices.pick(self.app.tools)
        headers = {"content-type": "application/json", "host": "127.0.0.1"}
        if not choices.mostly():
            headers["accept"] = choices.pick(("text/event-stream", "application/json", choices.text(12)))
        if not choices.mostly():
            headers[choices.pick(("host", "origin", "content-type", "if-none-match"))] = choices.text(20)
        body = as_json(choices, arguments(choices, self.app.schemas[tool], self.app.references))
        method, path = "POST", f"/v1/tools/{tool}"
        if not choices.mostly():
            method = choices.pick(("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE"))
            names = ("/images/{}", "/images/{}/preview", "/v1/tools/{}", "/{}", "/healthz", "/openapi.json")
            path = choices.pick(names).format(choices.pick((self.app.image, choices.text(70))))
        return self.app.rest(method, path, headers, body)

    def settle(self) -> None:
        """Check that the store is consistent."""
        self.app.settle()


@dataclass
class Mcp:
    """MCP messages: the same application."""

    app: FuzzedApp

    def __call__(self, data: bytes) -> str:
        choices = Choices(data)
        tool = choices.pick(self.app.tools)
        method = choices.pick(("tools/call", "tools/call", "tools/call", "resources/read", *METHODS))
        params: dict[str, Any] = {}
        if method == "tools/call":
            given = arguments(choices, self.app.schemas[tool], self.app.references)
            params = {"name": choices.or_hostile(tool), "arguments": choices.or_hostile(given)}
        elif method == "resources/read":
            uri = choices.pick((f"image://sha256/{self.app.image}", "image://sha256/", choices.text()))
            params = {"uri": choices.or_hostile(uri + choices.pick(("", "/preview", choices.text(8))))}
        elif not choices.mostly():
            params = {choices.pick(("cursor", "name", "ref", "argument", "uri")): choices.value()}
        if not choices.mostly():
            params["_meta"] = choices.or_hostile({"progressToken": choices.value()})
        message = {
            "jsonrpc": choices.or_hostile("2.0"),
            "id": choices.or_hostile(choices.below(100)),
            "method": choices.or_hostile(method),
            "params": choices.or_hostile(params),
        }
        return self.app.mcp(as_json(choices, message))

    def settle(self) -> None:
        """Check that the store is consistent."""
        self.app.settle()


METHODS = (
    "initialize", "ping", "tools/list", "resources/list", "resources/templates/list", "prompts/list",
    "prompts/get", "completion/complete", "logging/setLevel", "notifications/initialized",
    "notifications/cancelled", "server/discover", "nonsense",
)  # fmt: skip
