"""From what a client sent to a request: forgiving about form, strict about meaning.

Everything is derived from the JSON schema of the tool's request, so it holds for every parameter of every
tool, plugins' included:

- null, and "" where it is not a valid value, mean that an optional parameter is left out;
- a list or object sent as JSON text is read; a lone value where a list is wanted is a list of one, and a list
  of one where a lone value is wanted is that value;
- `image` and `images` are taken for each other where only one of them exists;
- what clients are known to add of their own is dropped, with a note; any other unknown name is an error.
"""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

from pydantic import ValidationError

from omnigen2.explain import explain, printable, resolved, schema_of, unknown_fields
from tools.base import Request, ToolError

ADDED_BY_CLIENTS = frozenset(
    {"action", "chatInput", "sessionId", "session_id", "toolCallId", "tool_call_id", "tool"}
)
"""Arguments that n8n's agent sends beside those of the tool (n8n-io/n8n#21500, #21716), in both spellings.

Names that begin with "_", such as `_meta`, are treated alike.
"""
ALIASES = {"image": "images", "images": "image"}
MAX_UNKNOWN = 20
"""Unknown arguments that an error names."""
MAX_EXTRA = 100
"""Arguments beyond the number of parameters that are looked at one by one."""
MAX_JSON = 100_000
"""Characters of a text that is tried as JSON."""
ADVICE = "Correct what is named, and call again."

Schema = Mapping[str, Any]


def read_arguments(
    request: type[Request], arguments: Mapping[str, object]
) -> tuple[Request, tuple[str, ...]]:
    """The request that `arguments` make, and notes on what of them was ignored.

    Raises:
        ToolError: `invalid_argument`, naming each parameter that is wrong, unknown or missing, and what it
            must be.
    """
    schema = schema_of(request)
    fields: Mapping[str, Schema] = schema.get("properties", {})
    if len(arguments) > len(fields) + MAX_EXTRA:
        raise _too_many(arguments, list(fields))
    named, ignored = _named(arguments, fields)
    required = set(schema.get("required", ()))
    definitions = schema.get("$defs", {})
    read = {
        name: _read(value, resolved(fields.get(name, {}), definitions))
        for name, value in named.items()
        if name in required or not _left_out(value, resolved(fields.get(name, {}), definitions))
    }
    notes = (f"Ignored, as the tool has no such parameter: {', '.join(ignored)}.",) if ignored else ()
    try:
        return request.model_validate(read), notes
    except ValidationError as error:
        raise ToolError("invalid_argument", f"{explain(error, request)}.", ADVICE) from error


def _named(
    arguments: Mapping[str, object], fields: Mapping[str, Schema]
) -> tuple[dict[str, object], list[str]]:
    """The arguments under the names of the tool's parameters, and the names of those to ignore."""
    named: dict[str, object] = {}
    ignored: list[str] = []
    for name, value in arguments.items():
        alias = ALIASES.get(name)
        if name in fields:
            named[name] = value
        elif alias is not None and alias in fields and alias not in arguments:
            named[alias] = value
        elif name in ADDED_BY_CLIENTS or name.startswith("_"):
            ignored.append(printable(name))
        else:
            named[name] = value
    return named, ignored[:MAX_UNKNOWN]


def _too_many(arguments: Mapping[str, object], known: list[str]) -> ToolError:
    """The error for so many arguments that only the first unknown ones are looked at."""
    unknown = list(islice((name for name in arguments if name not in known), MAX_UNKNOWN))
    more = len(arguments) - sum(name in arguments for name in known) - len(unknown)
    message = f"{unknown_fields(unknown, known)}; and {more:,} more."
    return ToolError("invalid_argument", message, "Give the parameters of the tool and no others.")


def _left_out(value: object, schema: Schema) -> bool:
    """Whether an optional parameter with this value is to be taken as not given."""
    if not schema:
        return False  # an unknown name, which is refused whatever it holds
    if value is None:
        return True
    takes_empty = schema.get("type") == "string" and not {"minLength", "enum", "format"} & set(schema)
    return isinstance(value, str) and not value.strip() and not takes_empty


def _read(value: object, schema: Schema) -> object:
    """The value in the form that the schema wants, where that is what it can only mean."""
    kind = schema.get("type")
    if kind not in ("array", "object"):
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        return values[0] if kind and len(values) == 1 else cast(object, value)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and len(value) <= MAX_JSON:
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = value
        if isinstance(decoded, list if kind == "array" else dict):
            return cast(object, decoded)
    if kind == "object" or isinstance(value, list | tuple | dict):
        return cast(object, value)
    return [value]
