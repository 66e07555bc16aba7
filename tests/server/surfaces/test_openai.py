"""What the images API says of itself; what it does, `tests/clients/test_openai.py` sees with the client."""

import pytest
from jsonschema import Draft202012Validator

from server.app import App
from server.http import openai

pytestmark = pytest.mark.anyio


async def test_the_paths_are_described_with_the_parameters_of_the_tools(app: App) -> None:
    async with app:
        paths = openai.described(app)
    schema = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["prompt", "image"]
    assert {"n", "size", "seed", "steps", "image_guidance_scale", "stream"} <= set(schema["properties"])
    assert not {"instruction", "num_images", "images"} & set(schema["properties"])
