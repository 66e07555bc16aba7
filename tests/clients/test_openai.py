"""The unmodified client of OpenAI against a server process: models, pictures, streams, errors."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.clients.conftest import CHECKPOINT, listening

TOKEN = "a-token-of-some-length"
SMALL: dict[str, Any] = {"steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a token file and a short queue."""
    folder = tmp_path_factory.mktemp("openai")
    (folder / "tokens").write_text(f"ann:{TOKEN}\n", encoding="utf-8")
    (folder / "tokens").chmod(0o600)
    environment = os.environ | {
        "OMNIGEN2_STORE": str(folder / "store"),
        "OMNIGEN2_MODEL": str(CHECKPOINT),
        "OMNIGEN2_QUEUE_SIZE": "2",
    }
    with listening(environment, "--token-file", str(folder / "tokens")) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0, timeout=200) as client:
        yield client


def opened(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def png(width: int = 32, height: int = 32, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def test_models_are_listed_and_retrieved_by_name(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert "nano" in [model.id for model in listed]
    default = listed[0].id
    assert client.models.retrieve(default).id == default
    made = client.images.generate(model=default, prompt="x", size="32x32", extra_body=SMALL)
    assert made.data


def test_pictures_are_made_in_number_size_and_format(client: OpenAI) -> None:
    made = client.images.generate(
        prompt="a red circle", n=2, size="48x32", output_format="jpeg", output_compression=80,
        quality="high", style="vivid", extra_body=SMALL | {"scheduler": "euler"},
    )  # fmt: skip
    assert made.data is not None and len(made.data) == 2
    assert [opened(image).size for image in made.data] == [(48, 32)] * 2
    assert opened(made.data[0]).format == "JPEG" and made.output_format == "jpeg"
    assert (made.size, made.background) == ("48x32", "opaque")
    extra = made.model_extra or {}
    assert extra["parameters"]["steps"] == 2 and extra["parameters"]["seed"] == 1
    assert any(note.startswith("style has no effect") for note in extra["notes"])
    addressed = client.images.generate(prompt="x", size="32x32", response_format="url", extra_body=SMALL)
    assert addressed.data and addressed.data[0].url and addressed.data[0].b64_json is None
    with urlopen(addressed.data[0].url) as picture:  # without the token
        assert Image.open(io.BytesIO(picture.read())).size == (32, 32)
    webp = client.images.generate(prompt="x", size="32x32", output_format="webp", extra_body=SMALL)
    assert webp.data and opened(webp.data[0]).format == "WEBP"


def test_one_picture_is_edited_and_two_are_composed(client: OpenAI, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    edited = client.images.edit(image=tmp_path / "red.png", prompt="make it blue", extra_body=SMALL)
    assert edited.data and opened(edited.data[0]).size == (32, 32)
    first = (edited.data[0].model_extra or {})["id"]
    files = [("red.png", png()), ("blue.webp", png(colour="blue"), "image/webp")]
    both = client.images.edit(
        image=files, prompt="side by side", size="64x32", extra_body=SMALL | {"cfg_range": [0.0, 0.5]}
    )
    assert both.data and opened(both.data[0]).size == (64, 32)
    parameters = (both.model_extra or {})["parameters"]
    assert len(parameters["images"]) == 2 and parameters["cfg_range"] == [0, 0.5]
    again = client.post(
        "/images/edits",
        body={"images": [{"file_id": first}, {"image_url": first}], "prompt": "x", **SMALL},
        cast_to=dict,
    )
    assert again["parameters"]["images"] == [first, first]


def test_a_mask_holds_an_edit_to_its_transparent_part(client: OpenAI) -> None:
    mask = Image.new("RGBA", (32, 32), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    out = io.BytesIO()
    mask.save(out, "PNG")
    masked = client.images.edit(image=png(), mask=out.getvalue(), prompt="make it blue", extra_body=SMALL)
    assert masked.data
    made = opened(masked.data[0])
    assert made.crop((16, 0, 32, 32)).getcolors() == [(16 * 32, (255, 0, 0))]
    assert made.crop((0, 0, 16, 32)).getcolors() != [(16 * 32, (255, 0, 0))]
    assert "only the masked part" in (masked.model_extra or {})["notes"][-1]
    two = [png(), png(colour="blue")]
    error = refused(openai.BadRequestError, client.images.edit, image=two, mask=out.getvalue(), prompt="x")
    assert error.param == "mask"


def test_a_stream_has_partial_images_and_the_pictures(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            prompt="y", size="32x32", stream=True, partial_images=2, extra_body=SMALL | {"steps": 100}
        )
    )
    assert [event.type for event in events[-1:]] == ["image_generation.completed"]
    *partial, last = events
    assert {event.type for event in partial} == {"image_generation.partial_image"}
    assert [event.partial_image_index for event in partial] == [0, 1]  # type: ignore[union-attr]
    assert all(opened(event).size <= (256, 256) for event in partial)
    assert opened(last).size == (32, 32) and last.size == "32x32"
    (edited,) = client.images.edit(
        image=png(), prompt="z", stream=True, partial_images=0, extra_body=SMALL | {"num_images": 1}
    )
    assert edited.type == "image_edit.completed"
    with pytest.raises(openai.APIError, match="steps: must be"):
        list(client.images.generate(prompt="y", stream=True, extra_body={"steps": 0}))


def refused(kind: type[openai.APIStatusError], call: Any, **arguments: Any) -> openai.APIStatusError:
    with pytest.raises(kind) as caught:
        call(**arguments)
    return caught.value


def test_errors_are_those_of_openai(client: OpenAI, url: str) -> None:
    generate = client.images.generate
    wrong = refused(openai.BadRequestError, generate, prompt="x", extra_body={"steps": 0})
    assert (wrong.param, wrong.type, wrong.code) == ("steps", "invalid_request_error", "invalid_argument")
    assert refused(openai.BadRequestError, generate, prompt="x", size="large").param == "size"
    assert refused(openai.BadRequestError, generate, prompt="x", n=9).param == "n"
    assert refused(openai.BadRequestError, generate, prompt="x", background="transparent").param
    unknown = refused(openai.BadRequestError, generate, prompt="x", extra_body={"stepz": 1})
    assert "did you mean steps?" in str(unknown)
    six = refused(openai.BadRequestError, client.images.edit, image=[png()] * 6, prompt="x")
    assert six.param == "image"
    missing = refused(openai.NotFoundError, generate, prompt="x", model="dall-e-3")
    assert missing.code == "model_not_found" and "nano" in str(missing)
    assert refused(openai.NotFoundError, client.models.retrieve, model="gpt-image-1").code
    gone = {"image": "0" * 64, "prompt": "x"}
    refused(openai.NotFoundError, client.post, path="/images/edits", body=gone, cast_to=dict)
    refused(openai.UnprocessableEntityError, client.images.edit, image=b"no picture", prompt="x")
    with OpenAI(base_url=f"{url}/v1", api_key="another-token-of-length", max_retries=0) as stranger:
        refused(openai.AuthenticationError, stranger.models.list)


def test_a_full_queue_is_a_rate_limit_with_the_time_to_wait(client: OpenAI) -> None:
    long = {"steps": 1000, "background": True}
    jobs = []
    with pytest.raises(openai.RateLimitError) as caught:
        for seed in range(300):
            made = client.images.generate(prompt="x", size="192x192", extra_body=long | {"seed": seed})
            jobs.append((made.model_extra or {})["job_id"])
    for job in jobs:
        client.post("/tools/cancel_job", body={"job_id": job}, cast_to=dict)
    assert int(caught.value.response.headers["retry-after"]) > 0 and caught.value.type == "rate_limit_error"
