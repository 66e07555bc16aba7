"""A plugin with what the official conformance suite asks of a server that it tests.

The names and contents are those of the suite's "Server Implementation Requirements".
"""

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from pydantic import ConfigDict, create_model

from server.hookspecs import hookimpl
from server.offers import Argument, Prompt, Resource
from tools.base import Audio, Block, Context, Embedded, Picture, Request, Result, Tool, ToolError

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
WAV = base64.b64decode("UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAAAAA==")
EMBEDDED = Embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
MIXED = Embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
CONTENTS: dict[str, tuple[str, tuple[Block, ...]]] = {
    "test_simple_text": ("This is a simple text response for testing.", ()),
    "test_image_content": ("A red pixel.", (Picture(PNG, "image/png"),)),
    "test_audio_content": ("Silence.", (Audio(WAV, "audio/wav"),)),
    "test_embedded_resource": ("A resource.", (EMBEDDED,)),
    "test_multiple_content_types": ("Multiple content types test:", (Picture(PNG, "image/png"), MIXED)),
}
"""Tools that answer with a text and further content."""


class Nothing(Request):
    """No arguments."""


Address = create_model("address", street=(str, ""), city=(str, ""))
"""The suite looks for a definition of this name."""


class Person(Request):
    """A request whose schema has references."""

    model_config = ConfigDict(json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"})

    name: str = ""
    """What they are called."""
    address: Address | None = None  # type: ignore[valid-type]
    """Where they live."""


class Answer(Result):
    """A text, and what the tool of that name has beside it."""

    text: str
    tool: str = ""

    def line(self) -> str:
        return self.text

    def blocks(self) -> tuple[Block, ...]:
        return CONTENTS[self.tool][1] if self.tool else ()


def tool(
    name: str,
    run: Callable[[Any, Context], Awaitable[Any]],
    request: type[Request] = Nothing,
) -> Tool[Any, Any]:
    words = f"A fixture of the conformance suite: {name.replace('_', ' ')}."
    return Tool(name, name.replace("_", "-"), "Fixture", words, request, Answer, run)


async def fail(request: Nothing, context: Context) -> Answer:
    raise ToolError("invalid_argument", "This tool intentionally returns an error for testing")


async def report(request: Nothing, context: Context) -> Answer:
    for step in (0, 50, 100):
        await context.progress(step, 100)
        await anyio.sleep(0.05)
    return Answer(text="Done.")


async def greet(request: Person, context: Context) -> Answer:
    return Answer(text=f"{request.name}, {request.address}")


@hookimpl
def register_tools(register: Callable[[Tool[Any, Any]], None]) -> None:
    def answering(name: str) -> Callable[[Nothing, Context], Awaitable[Answer]]:
        async def answer(request: Nothing, context: Context) -> Answer:
            return Answer(text=CONTENTS[name][0], tool=name)

        return answer

    for name in CONTENTS:
        register(tool(name, answering(name)))
    register(tool("test_error_handling", fail))
    register(tool("test_tool_with_progress", report))
    register(tool("json_schema_2020_12_tool", greet, Person))


@hookimpl
def register_prompts(register: Callable[[Prompt], None]) -> None:
    def embedding(given: Mapping[str, str]) -> list[Block]:
        resource = Embedded(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
        return [resource, "Please process the embedded resource above."]

    def showing(given: Mapping[str, str]) -> list[Block]:
        return [Picture(PNG, "image/png"), "Please analyze the image above."]

    def offer(name: str, text: Any, *arguments: str) -> None:
        register(
            Prompt(name, "Fixture", "A prompt.", tuple(Argument(one, "A value") for one in arguments), text)
        )

    offer("test_simple_prompt", "This is a simple prompt for testing.")
    offer("test_prompt_with_arguments", "Prompt with arguments: arg1='$arg1', arg2='$arg2'", "arg1", "arg2")
    offer("test_prompt_with_embedded_resource", embedding, "resourceUri")
    offer("test_prompt_with_image", showing)


@hookimpl
def register_resources(register: Callable[[Resource], None]) -> None:
    async def text(values: Mapping[str, str]) -> str:
        return "This is the content of the static text resource."

    async def pixel(values: Mapping[str, str]) -> bytes:
        return PNG

    async def data(values: Mapping[str, str]) -> str:
        return json.dumps({"id": values["id"], "templateTest": True, "data": f"Data for ID: {values['id']}"})

    for uri, name, mime_type, read in (
        ("test://static-text", "text", "text/plain", text),
        ("test://static-binary", "binary", "image/png", pixel),
        ("test://template/{id}/data", "data", "application/json", data),
    ):
        register(Resource(uri, name, "Fixture", "A fixture.", mime_type, read))
