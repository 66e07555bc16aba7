"""A tool's request and result as JSON schemas that every client understands, and errors as JSON.

The one place where the model card's defaults enter a schema. Works from the tool value and the card alone:
schemas are ready before the model is.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from pydantic import BaseModel

from omnigen2.checkpoints.card import ModelCard
from omnigen2.explain import UNBOUNDED, nullable, resolved
from omnigen2.params import OFFERED
from storage.digest import SCHEME
from tools.base import DETAIL, Result, Tool, ToolError
from tools.fields import ImageIn, ImagesIn

Schema = dict[str, Any]

ERROR: Schema = {
    "type": "object",
    "description": "Present instead of everything else when the call failed.",
    "properties": {
        "code": {"type": "string", "description": "What kind of failure; stable."},
        "message": {"type": "string", "description": "What was wrong with what."},
        "advice": {"type": "string", "description": "What to do next."},
    },
    "required": ["code", "message", "advice"],
}
UNTYPED = ("description", "default", "required", "additionalProperties", "enum", "format")
"""Parts of a result's schema that say nothing of the types of its fields, and are left out of lists."""
GUARDS = ("minLength", "maxLength")
"""Bounds that only protect the server: a text that is too long is refused with the length allowed."""
LONG_DEFAULT = 80
"""Characters of a default beyond which a list leaves it out; it leaves out "" and false, too."""


def description(tool: Tool[Any, Any], card: ModelCard | None) -> str:
    """What a tool is for, with the advice of `card` on how to ask for it if one is given."""
    advice = tool.advice(card) if tool.advice and card else ""
    return f"{tool.description} {advice}".rstrip()


def is_open_world(tool: Tool[Any, Any], allow_fetch: bool) -> bool:
    """Whether a call may reach outside this machine; `allow_fetch` lets it fetch the images it names."""
    return tool.open_world or (allow_fetch and issubclass(tool.request, ImageIn | ImagesIn))


def input_schema(
    tool: Tool[Any, Any],
    card: ModelCard | None,
    offered: Mapping[str, str] = MappingProxyType({}),
    *,
    lean: bool = False,
) -> Schema:
    """The JSON schema of a tool's arguments, with the defaults of `card` if one is given.

    `offered` lists what the host has of each kind of thing that parameters name (`OFFERED`). A `lean` schema,
    for a list of tools, has no bound that only protects the server. If it names its dialect (`$schema`) it
    keeps the form in which its author gave it.
    """
    given = tool.request.model_json_schema()
    kept = lean and "$schema" in given
    schema = given if kept else plain(given)
    defaults = tool.defaults(card) if tool.defaults and card else None
    filled = defaults.model_dump(mode="json", exclude_none=True) if defaults else {}
    for name, field in schema["properties"].items():
        if name in filled:
            field["default"] = filled[name]
        if names := offered.get(field.pop(OFFERED, "")):
            field["description"] = f"{field.get('description', '')} There are: {names}."
    return _lean_input(schema) if lean and not kept else schema


def output_schema(tool: Tool[Any, Any], *, lean: bool = False) -> Schema:
    """What a tool answers: its result, or an error.

    The error is part of the schema, as one widespread client (version 1 of the TypeScript SDK) holds the
    structured content of failures to it too. A `lean` one describes a lean `dump`: the types of its fields.
    """
    schema = plain(tool.result.model_json_schema(mode="serialization"))
    schema = _without_details(schema, drop=lean and not tool.result.detailed)
    if lean:
        return _lean_output(schema)
    required = schema.pop("required", [])
    schema["properties"] = schema.get("properties", {}) | {"error": ERROR}
    return schema | {"anyOf": [{"required": required}, {"required": ["error"]}]}


def dump(
    result: Result, address_of: Callable[[str], str] | None = None, *, lean: bool = False
) -> dict[str, Any]:
    """A result as its schema describes it: what is None is left out, and images have their addresses.

    `address_of` gives the address of an image from its id; without it there are none. If `lean`, details
    (`tools.base.Detail`) are left out.
    """
    fields = result.model_dump(mode="json", exclude_none=True)
    fields["notes"] = fields.pop("notes")  # what matters most comes first
    if address_of:
        fields = _addressed(fields, address_of)
    if lean and not result.detailed:
        _drop_details(result, fields)
    return fields


def _addressed(node: Any, address_of: Callable[[str], str]) -> Any:
    """`node` with the address of each image in it: of all that has an id and the resource URI of that id."""
    if isinstance(node, list):
        return [_addressed(item, address_of) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    fields = {name: _addressed(value, address_of) for name, value in cast(Schema, node).items()}
    image, uri = fields.get("id"), fields.get("uri")
    if isinstance(image, str) and uri == SCHEME + image.removeprefix("sha256:"):
        fields["url"] = address_of(image)
    return fields


def dump_error(error: ToolError) -> dict[str, Any]:
    """A failure, as the error in every output schema."""
    return {"error": {"code": error.code, "message": error.message, "advice": error.advice}}


def error_line(error: ToolError) -> str:
    """A failure in words."""
    return f"{error.code}: {error}"


def plain(schema: Schema) -> Schema:
    """`schema` without what some clients stumble over: references, titles, null, arrays without `items`."""
    return _node(schema, schema.get("$defs", {}))


def _node(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    node = dict(resolved(node, definitions))
    made: Schema = {}
    for key, value in node.items():
        match key:
            case "title" | "$defs":
                continue
            case "default" if value is None:
                continue
            case "properties":
                made[key] = {name: _node(field, definitions) for name, field in value.items()}
            case "prefixItems" if all(item == value[0] for item in value):
                made["items"] = _node(value[0], definitions)
            case "items" | "additionalProperties" if isinstance(value, dict):
                made[key] = _node(cast(Schema, value), definitions)
            case "anyOf" | "oneOf" | "allOf" | "prefixItems":
                made[key] = [_node(option, definitions) for option in value]
            case _:
                made[key] = value
    if "required" in made:
        optional = {name for name, field in node["properties"].items() if nullable(field)}
        made["required"] = [name for name in made["required"] if name not in optional]
    return made


def _drop_details(value: BaseModel, fields: dict[str, Any]) -> None:
    """Remove the details of `value`, at any depth, from the `fields` that were made of it."""
    for name, field in type(value).model_fields.items():
        inner: object = getattr(value, name)
        if DETAIL in cast("dict[str, Any]", field.json_schema_extra or {}):
            fields.pop(name, None)
        elif isinstance(inner, BaseModel):
            _drop_details(inner, fields[name])
        elif isinstance(inner, list | tuple):
            for place, one in enumerate(cast("list[object]", inner)):
                if isinstance(one, BaseModel):
                    _drop_details(one, fields[name][place])


def _without_details(schema: Schema, *, drop: bool) -> Schema:
    """`schema` without the marks of details, and if `drop`, without the details."""

    def pruned(node: Schema) -> Schema:
        fields: Schema = node.get("properties", {})
        details = {name for name, field in fields.items() if field.get(DETAIL)} if drop else set[str]()
        kept = {name: field for name, field in fields.items() if name not in details}
        made = {key: value for key, value in node.items() if key != DETAIL}
        made |= {"properties": kept} if fields else {}
        required = [name for name in node.get("required", ()) if name not in details]
        return made | ({"required": required} if "required" in node else {})

    return _everywhere(schema, pruned)


def _lean_output(schema: Schema) -> Schema:
    """The types of the fields; an object that is itself a field is not described further."""

    def pruned(node: Schema) -> Schema:
        made = {key: value for key, value in node.items() if key not in UNTYPED}
        fields: Schema = node.get("properties", {})
        inner = {name: {"type": "object"} for name, field in fields.items() if "properties" in field}
        return made | ({"properties": fields | inner} if fields else {})

    return _everywhere(schema, pruned)


def _lean_input(schema: Schema) -> Schema:
    def pruned(node: Schema) -> Schema:
        left_out = {key for key in GUARDS if key in node}
        left_out |= {"maximum"} if node.get("maximum", 0) >= UNBOUNDED else set()
        default = node.get("default")
        plain_default = default is False or default == "" or len(str(default)) > LONG_DEFAULT
        left_out |= {"default"} if plain_default else set()
        left_out |= {"description", "additionalProperties"} if "properties" in node else set()
        return {key: value for key, value in node.items() if key not in left_out}

    return _everywhere(schema, pruned) | {"additionalProperties": False}


def _everywhere(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """`schema` with `change` made to it and to every schema inside it."""
    made = change(schema)
    for key, value in made.items():
        if key == "properties":
            made[key] = {name: _everywhere(field, change) for name, field in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            made[key] = _everywhere(cast(Schema, value), change)
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            made[key] = [_everywhere(option, change) for option in value]
    return made
