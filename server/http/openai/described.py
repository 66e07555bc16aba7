"""The paths of OpenAI's images API for `/openapi.json`."""

from typing import Any

from server import schema
from server.app import App
from server.http.openai.asked import MULTIPART, NAMES, WITHOUT_EFFECT, EditOptions, Options
from server.http.openai.routes import EDITS, GENERATIONS, MODELS
from server.http.openapi import JSON, REFUSALS, Paths, answer, operation, parameter
from server.http.rest import KEYED
from server.http.streams import DESCRIBED, EVENTS
from server.schema import Schema

TEXT: Schema = {"type": "string"}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


_IMAGE = _object(b64_json=TEXT, url=TEXT, id=TEXT)
_IMAGES = _object(
    "created data",
    created={"type": "integer"},
    data={"type": "array", "items": _IMAGE},
    notes={"type": "array", "items": TEXT},
)
_MODEL = _object("id object created owned_by", id=TEXT, object={"const": "model"}, owned_by=TEXT)
_MODELS = _object("object data", object={"const": "list"}, data={"type": "array", "items": _MODEL})
_ERROR = _object("error", error=_object("message code", message=TEXT, code=TEXT))


def described(app: App) -> Paths:
    """The paths of these routes."""
    generation = _request(app, Options, "generate_image")
    edit = _request(app, EditOptions, "edit_image")
    name = parameter("model", "path", "The name of a model.")
    return {
        GENERATIONS: {"post": _making("openai_generate", "Pictures from words", {JSON: generation})},
        EDITS: {"post": _making("openai_edit", "Pictures from pictures", {JSON: edit, MULTIPART: edit})},
        MODELS: {"get": operation("openai_models", "The models there are", _answers(_MODELS))},
        f"{MODELS}/{{model}}": {
            "get": operation("openai_model", "One model", _answers(_MODEL), parameters=[name])
        },
    }


def _request(app: App, options: type[Options], tool: str) -> Schema:
    """The schema of a request: OpenAI's fields, and those of the tool under the names they have here."""
    made = schema.plain(options.model_json_schema())
    own = schema.input_schema(app.tools[tool], app.card())["properties"]
    hidden = {*NAMES, *made["properties"]}
    ignored = {name: {"description": f"Ignored: {instead}"} for name, instead in WITHOUT_EFFECT.items()}
    rest = {name: field for name, field in own.items() if name not in hidden}
    return made | {"properties": made["properties"] | rest | ignored, "additionalProperties": False}


def _making(name: str, summary: str, body: dict[str, Schema]) -> dict[str, Any]:
    answers = _answers(_IMAGES)
    answers[200]["content"][EVENTS] = {"schema": DESCRIBED}
    answers[202] = answer("The job was taken on.", {JSON: _IMAGES})
    about = "As OpenAI's images API has it, with the parameters of the tools as further fields."
    return operation(name, summary, answers, about=about, body=body, parameters=[KEYED])


def _answers(result: Schema) -> dict[int, dict[str, Any]]:
    """The result, and errors in OpenAI's form."""
    refusals = {status: answer(words, {JSON: _ERROR}) for status, words in REFUSALS.items()}
    return {200: answer("The result.", {JSON: result})} | refusals
