"""What a caller may name: the six forms, and hostile input for each."""

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from server.app import App
from server.caller import Caller
from server.context import CallContext
from server.references import References
from storage import ImageStore, Limits, StoredImage
from tests.server.core.conftest import ANN
from tools.base import ToolError

pytestmark = pytest.mark.anyio


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
    "path", ["../secret.png", "/etc/passwd", "file:///etc/passwd", "sub/../../secret.png", "/", "..", "~/x"]
)
async def test_a_path_out_of_the_folders_is_forbidden_with_the_folders_that_are_not(
    resolve: Callable, home: Path, path: str
) -> None:
    error = await refused(resolve, path)
    if path == "~/x":
        assert error.code == "image_not_found"  # a name like any other: no home folder is looked up
    else:
        assert error.code == "forbidden" and str(home) in str(error)


async def test_whether_a_forbidden_file_exists_is_not_told(resolve: Callable) -> None:
    there, absent = [await refused(resolve, f"../{name}.png") for name in ("secret", "absent")]
    assert str(there).replace("secret", "absent") == str(absent)


async def test_links_that_lead_out_are_forbidden_and_those_that_stay_are_followed(
    resolve: Callable, home: Path
) -> None:
    (home / "out.png").symlink_to(home.parent / "secret.png")
    (home / "up").symlink_to(home.parent)
    (home / "loop").symlink_to("loop")
    (home / "in.png").symlink_to("red.png")
    for path in ("out.png", "up/secret.png", "loop"):
        assert (await refused(resolve, path)).code == "forbidden"
    assert (await resolve("in.png")).width == 16


async def test_what_is_no_regular_file_is_refused_without_waiting(resolve: Callable, home: Path) -> None:
    os.mkfifo(home / "pipe")
    (home / "folder").mkdir()
    for name in ("pipe", "folder"):
        assert (await refused(resolve, name)).code == "image_rejected"
    assert (await refused(resolve, "absent.png")).code == "image_not_found"


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
            await References(store, None).resolve(f"data:image/png;base64,{'A' * 3000}", "image", ())
    assert error.value.code == "image_rejected" and "3,022" in str(error.value)


async def test_a_file_is_measured_before_it_is_read(home: Path, tmp_path: Path) -> None:
    with (home / "big.png").open("wb") as file:
        file.truncate(2**40)
    with ImageStore(tmp_path / "small", limits=Limits(bytes=1000)) as store:
        with pytest.raises(ToolError) as error:
            await References(store, None).resolve("big.png", "image", (home,))
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
    monkeypatch.setattr(app.store, "_matching", lambda digits: rows)
    error = await refused(resolve, "01234567")
    assert error.code == "invalid_argument"
    assert all(str(image.id) in str(error) for image in images)


async def test_a_lora_outside_the_folders_is_forbidden(app: App, home: Path) -> None:
    context = CallContext(app, replace(ANN, folders=(home,)))
    assert context.allowed_path("red.png", "lora") == str(home / "red.png")
    with pytest.raises(ToolError, match="lora: "):
        context.allowed_path("../secret.png", "lora")
