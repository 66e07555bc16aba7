"""Make and edit a picture with OpenAI's client; the server runs on this machine."""

import base64
from pathlib import Path

from openai import OpenAI

with OpenAI(base_url="http://127.0.0.1:8765/v1", api_key="none") as client:
    made = client.images.generate(prompt="a red circle", size="64x64", extra_body={"seed": 1})
    Path("circle.png").write_bytes(base64.b64decode(made.data[0].b64_json))
    edited = client.images.edit(image=Path("circle.png"), prompt="make the circle blue")
    Path("blue.png").write_bytes(base64.b64decode(edited.data[0].b64_json))
