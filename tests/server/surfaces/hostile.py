"""What hostile and careless clients send, derived from the schemas: new parameters are covered at once."""

from collections.abc import Iterator
from typing import Any

from server.app import App
from server.schema import input_schema

Arguments = dict[str, Any]
UNKNOWN_ID = "sha256:" + "0" * 64
WRONG_TYPE = {"neither": ["a", "word"], "nor": {"a": "number"}}
BOMB = "data:image/png;base64," + "QUJD" * 2000
REFERENCES = (
    "../../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://elsewhere/share/x.png",
    "http://127.0.0.1:1/x.png",
    "https://127.0.0.1/x.png",
    "https://[::1]/x.png",
    "data:image/png;base64,!!!",
    "data:image/png;base64,%\ud800",
    "data:text/html;base64,QUJD",
    BOMB,
    UNKNOWN_ID,
    "deadbeef",
    "image://sha256/zz",
    "a\0b.png",
    "",
    "~root/.ssh/id_rsa",
    "x" * 100_000,
    "\ud800",
)
"""References that must all be refused."""


def valid(schema: dict[str, Any]) -> Arguments:
    """Arguments that a schema allows: the required ones, as small as they may be."""
    return {name: _value(schema["properties"][name]) for name in schema.get("required", ())}


def wrong(app: App) -> Iterator[tuple[str, str, Arguments]]:
    """Tool, field and arguments that must be refused with `invalid_argument`, naming the field."""
    for tool in app.tools.values():
        schema = input_schema(tool, app.card())
        right = valid(schema)
        yield tool.name, "surprise", right | {"surprise": 1}
        for name in schema.get("required", ()):
            yield tool.name, name, {key: value for key, value in right.items() if key != name}
        for name, field in schema["properties"].items():
            for value in _outside(field):
                yield tool.name, name, right | {name: value}


def references(app: App, more: tuple[str, ...] = ()) -> Iterator[tuple[str, Arguments]]:
    """Tool and arguments for every field that takes images, with every hostile reference."""
    for tool in app.tools.values():
        schema = input_schema(tool, app.card())
        for name in schema.get("required", ()):
            if name.startswith("image"):
                for text in (*REFERENCES, *more):
                    value = [text] if schema["properties"][name]["type"] == "array" else text
                    yield tool.name, valid(schema) | {name: value}


def _value(field: dict[str, Any]) -> Any:
    match field["type"]:
        case "array":
            return [_value(field["items"])] * max(1, field.get("minItems", 1))
        case "string":
            return "x"
        case "integer" | "number":
            return field.get("minimum", 0)
        case "object":
            return valid(field)
        case kind:
            raise AssertionError(f"{kind}: say what a valid one is")


def _outside(field: dict[str, Any]) -> Iterator[Any]:
    """Values that a field does not allow: another type, too small, too large, too long, no choice of it."""
    yield WRONG_TYPE
    if field["type"] in ("integer", "number"):
        yield "many"
        yield from ([field["minimum"] - 1] if "minimum" in field else [])
        yield from ([field["maximum"] + 1] if "maximum" in field else [])
    if field["type"] == "array":
        yield [WRONG_TYPE]
        yield from ([[_value(field["items"])] * (field["maxItems"] + 1)] if "maxItems" in field else [])
    if "maxLength" in field:
        yield "x" * (field["maxLength"] + 1)
    if "enum" in field:
        yield "none of them"
