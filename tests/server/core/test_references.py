"""What a caller may name: the six forms, and hostile input for each."""

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from socket import AF_UNIX, socket

import anyio
import psutil
import pytest
from PIL import Image

from benchmarks.decoding import scans_bomb
from omnigen2.adapters.file import pick_adapter
from server.app import App
from server.caller import Caller
from server.context import CallContext
from server.references import References
from storage import Digest, ImageStore, Limits, StoredImage, decoder
from storage.embedding import metadata
from storage.history import claimed
from storage.records import make_record
from storage.safe_files import NotRegular
from tests.server.core.conftest import ANN, SMALL, call
from tests.swapping import link_in_the_place_of, swapping
from tools.base import ToolError

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, longer than any machine needs."""
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.01)


def png(colour: str = "red") -> bytes:
    out = BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "red.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png("black"))
    return home


@pytest.fixture
def resolve(app: App, home: Path) -> Callable[..., object]:
    async def resolve(reference: str, caller: Caller = ANN) -> StoredImage:
        return await CallContext(app, replace(caller, folders=(home,))).resolve(reference, "image")

    return resolve


async def refused(resolve: Callable[..., object], reference: str) -> ToolError:
    with pytest.raises(ToolError) as error:
        await resolve(reference)  # type: ignore[misc]
    assert str(error.value).startswith("image: ")
    return error.value


async def test_every_form_leads_to_the_same_image(app: App, resolve: Callable, home: Path) -> None:
    image = app.store.put(png())
    forms = [
        str(image.id), image.id.hex, image.id.hex[:8], image.id.uri,
        f"data:image/png;base64,{base64.b64encode(png()).decode()}",
        str(home / "red.png"), "red.png", f"file://{home}/red.png",
    ]  # fmt: skip
    assert {(await resolve(form)).id for form in forms} == {image.id}


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "/etc/passwd", "file:///etc/passwd", "sub/../../secret.png", "/", "..", "~", "~/x"],
)
async def test_a_path_out_of_the_folders_is_forbidden_with_the_folders_that_are_not(
    resolve: Callable, home: Path, path: str
) -> None:
    error = await refused(resolve, path)
    assert error.code == "forbidden" and str(home) in str(error)


async def test_a_file_brings_its_history_wherever_it_is_named(
    app: App, resolve: Callable, home: Path
) -> None:
    made = make_record(tool="generate_image", parameters={"prompt": "red"}, outputs=[Digest(b"1" * 32)])
    told = metadata(made.outputs[0], [made], None)
    Image.new("RGB", (8, 8), "red").save(home / "logo.webp", xmp=told.xmp, exif=told.exif)
    record = app.store.origin((await resolve("logo.webp")).id).record
    assert record is not None and claimed(record) == [made] and record.parameters["source"] == "logo.webp"


async def test_whether_a_forbidden_file_exists_is_not_told(resolve: Callable) -> None:
    there, absent = [await refused(resolve, f"../{name}.png") for name in ("secret", "absent")]
    assert str(there).replace("secret", "absent") == str(absent)


async def test_no_link_below_an_allowed_folder_is_followed_and_nothing_behind_it_is_told(
    resolve: Callable, home: Path
) -> None:
    (home / "out.png").symlink_to(home.parent / "secret.png")
    (home / "nowhere.png").symlink_to(home.parent / "absent.png")
    (home / "up").symlink_to(home.parent)
    (home / "loop").symlink_to("loop")
    (home / "in.png").symlink_to("red.png")
    (home / "proc").symlink_to("/proc/self/fd/0")
    for path in ("out.png", "up/secret.png", "up/absent.png", "loop", "in.png", "loop/x", "proc"):
        error = await refused(resolve, path)
        assert error.code == "forbidden" and "links are not followed" in str(error)
    there, absent = [await refused(resolve, f"{name}.png") for name in ("out", "nowhere")]
    assert str(there).replace("out", "nowhere") == str(absent)


async def test_no_outside_file_is_read_while_a_folder_is_swapped_for_a_link(
    app: App, resolve: Callable, home: Path
) -> None:
    outside = home.parent / "outside"
    for folder, colour in ((home / "sub", "red"), (outside, "black")):
        folder.mkdir()
        (folder / "x.png").write_bytes(png(colour))
    red, found = app.store.put(png()), set()
    with swapping(*link_in_the_place_of(home / "sub", outside)) as ended:
        while not ended.is_set():
            try:
                found.add((await resolve("sub/x.png")).id)
            except ToolError:
                pass
    assert found <= {red.id}


async def test_a_folder_may_be_allowed_and_named_through_a_link_that_was_there_when_it_was_allowed(
    app: App, home: Path
) -> None:
    by_link, elsewhere = home.parent / "by-link", home.parent / "elsewhere"
    by_link.symlink_to(home)
    elsewhere.mkdir()
    (elsewhere / "red.png").write_bytes(png("black"))
    context = CallContext(app, replace(ANN, folders=(by_link,)))
    names = ("red.png", str(by_link / "red.png"), str(home / "red.png"), f"/{by_link}/./x/../red.png")
    red = app.store.put(png())
    assert {(await context.resolve(name, "image")).id for name in names} == {red.id}
    by_link.unlink()
    by_link.symlink_to(elsewhere)
    assert (await context.resolve("red.png", "image")).id == red.id


async def test_what_is_no_regular_file_is_refused_without_waiting(resolve: Callable, home: Path) -> None:
    os.mkfifo(home / "pipe")
    (home / "folder").mkdir()
    with socket(AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
        for name in ("pipe", "folder", "socket", "."):
            assert (await refused(resolve, name)).code == "image_rejected"
    for name in ("absent.png", "red.png/x", "a" * 300, "a/" * 3000):
        assert (await refused(resolve, name)).code == "image_not_found"


async def test_without_folders_no_file_is_read(app: App) -> None:
    with pytest.raises(ToolError) as error:
        await CallContext(app, ANN).resolve("red.png", "image")
    assert error.value.code == "forbidden" and "from no folder" in str(error.value)


async def test_a_data_uri_is_measured_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> bytes:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("base64.b64decode", decode)
    with ImageStore(tmp_path, limits=Limits(bytes=1000)) as store:
        with pytest.raises(ToolError) as error:
            await References(None).resolve(store, f"data:image/png;base64,{'A' * 3000}", "image", ())
    assert error.value.code == "image_rejected" and "3,022" in str(error.value)


async def test_a_file_is_measured_before_it_is_read(home: Path, tmp_path: Path) -> None:
    with (home / "big.png").open("wb") as file:
        file.truncate(2**40)
    with ImageStore(tmp_path / "small", limits=Limits(bytes=1000)) as store:
        with pytest.raises(ToolError) as error:
            await References(None).resolve(store, "big.png", "image", (home,))
    assert error.value.code == "image_rejected"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("sha256:" + "0" * 64, "image_not_found"),
        ("image://sha256/" + "0" * 64, "image_not_found"),
        ("00000000", "image_not_found"),
        ("sha256:123", "invalid_argument"),
        ("data:image/png;base64,????", "invalid_argument"),
        ("data:image/png;base64,aGVsbG8=", "image_rejected"),
        ("http://127.0.0.1/x.png", "invalid_argument"),
        ("ftp://example.com/x.png", "invalid_argument"),
        ("https://example.com/x.png", "forbidden"),
        ("", "invalid_argument"),
        ("a\0b", "invalid_argument"),
        ("a" * 5000, "image_not_found"),
        ("a" * 9000, "invalid_argument"),
        ("https://example.com/" + "a" * 9000, "invalid_argument"),
    ],
)
async def test_what_names_no_image_is_refused_by_its_kind(
    resolve: Callable, reference: str, code: str
) -> None:
    assert (await refused(resolve, reference)).code == code


async def test_an_ambiguous_prefix_lists_what_it_could_mean(
    app: App, resolve: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [app.store.put(png(colour)) for colour in ("red", "blue")]
    rows = [app.store._row(image.id) for image in images]
    monkeypatch.setattr(app.store._repository, "find", lambda digits, viewer: rows)
    error = await refused(resolve, "01234567")
    assert error.code == "invalid_argument"
    assert all(str(image.id) in str(error) for image in images)


async def test_an_adapter_is_opened_as_every_other_file_is(app: App, home: Path) -> None:
    context = CallContext(app, replace(ANN, folders=(home,)))
    secret = home.parent / "secret.safetensors"
    secret.write_bytes(b"secret")
    for name in ("bad", "good"):
        (home / name).mkdir()
    (home / "bad" / "x.safetensors").symlink_to(secret)
    (home / "good" / "x.safetensors").write_bytes(b"good")
    (home / "good" / "readme").write_bytes(b"")
    os.mkfifo(home / "pipe")
    path, file = context.open_file("good", "lora", pick_adapter)
    with file:
        assert (path, file.read()) == (home / "good" / "x.safetensors", b"good")
    for given in ("bad", "bad/x.safetensors", "../secret.safetensors", str(secret)):
        with pytest.raises(ToolError, match="lora: ") as error:
            context.open_file(given, "lora", pick_adapter)
        assert error.value.code == "forbidden"
    with pytest.raises(NotRegular):
        context.open_file("pipe", "lora", pick_adapter)


async def test_the_refusal_of_an_adapter_tells_nothing_of_a_file_outside(app: App, home: Path) -> None:
    caller, secret = replace(ANN, folders=(home,)), home.parent / "secret.safetensors"
    secret.write_bytes(b"secret")
    (home / "x.safetensors").symlink_to(secret)
    os.mkfifo(home / "pipe")
    digest = hashlib.sha256(b"secret").hexdigest()
    async with app:
        for lora in (".", "x.safetensors", "x.safetensors@sha256:" + "0" * 64, str(secret), "pipe"):
            with pytest.raises(ToolError, match="lora: ") as error:
                await call(app, "generate_image", caller, prompt="x", lora=lora, **SMALL)
            assert error.value.code == ("invalid_argument" if lora == "pipe" else "forbidden")
            assert digest not in str(error.value)


async def test_a_caller_who_leaves_ends_the_decoding_of_its_picture(resolve: Callable, home: Path) -> None:
    (home / "slow.jpg").write_bytes(scans_bomb(5000, 90))
    decoder._workers.close()  # those of other tests
    await resolve("red.png")  # so that there is a worker
    [pid] = decoder._workers.pids()
    before = psutil.Process(pid).cpu_times().user
    async with anyio.create_task_group() as calls:
        calls.start_soon(resolve, "slow.jpg")
        await until(lambda: psutil.Process(pid).cpu_times().user > before + 0.1)
        calls.cancel_scope.cancel()
    assert pid not in decoder._workers.pids()


async def test_an_import_says_what_it_left_out(app: App, home: Path) -> None:
    (home / "phone.png").write_bytes(png() + b"left over")
    result = await call(app, "import_image", caller=replace(ANN, folders=(home,)), image="phone.png")
    assert result.notes == ("9 bytes that follow the picture in the file were dropped.",)
    assert result.notes[0] in result.summary()
    [made] = app.store.lineage(result.image.id)
    assert made.record is not None and made.record.notes == result.notes
