"""Command-line parameters from a pydantic model: names, words, bounds and defaults come from its fields.

A required field is an argument, a required list the last one (`compose INSTRUCTION IMAGES...`); what may be
left out is an option. Values are handed on as they were typed: the model converts and judges them, so that
the command line refuses a value in the same words as every other surface.
"""

import inspect
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tools.base import OUTLIVES_THE_CALL

NOT_GIVEN = None
"""Value of an option that was not given; such options are left out of the request."""
METAVARS = {"integer": "N", "number": "X"}


def parameters(model: type[BaseModel], schema: Mapping[str, Any]) -> list[inspect.Parameter]:
    """The parameters of a command that takes the fields of `model`; `schema` is its JSON schema."""
    made = [
        _parameter(name, field, schema["properties"].get(name, {}))
        for name, field in model.model_fields.items()
        if OUTLIVES_THE_CALL not in field.metadata  # the server of a command ends with the call
    ]
    return sorted(made, key=_order)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not NOT_GIVEN}


def _parameter(name: str, field: FieldInfo, schema: Mapping[str, Any]) -> inspect.Parameter:
    kind = typed(field.annotation)
    metavar = METAVARS.get(schema.get("type", ""))
    words = Parameter(
        help=_help(field.description or schema.get("description", ""), schema, field.is_required()),
        negative=(),
        show_default=False,
        consume_multiple=get_origin(kind) is list,
        metavar=metavar,
        allow_leading_hyphen=metavar is not None,  # a negative number is refused in the model's words
    )
    if field.is_required():
        return inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[kind, words]
        )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=NOT_GIVEN, annotation=Annotated[kind | None, words]
    )


def _order(parameter: inspect.Parameter) -> tuple[int, bool]:
    """Arguments before options, lists last among the arguments: they take all that follows."""
    kind = get_args(parameter.annotation)[0]
    return parameter.kind, get_origin(kind) is list


def typed(annotation: Any) -> Any:
    """How a field is typed on a command line: a switch, some words, or one word."""
    options = [option for option in _alternatives(annotation) if option is not type(None)]
    for option in options:
        origin = get_origin(option)
        if option is bool:
            return bool
        if origin is tuple and Ellipsis not in get_args(option):
            return types.GenericAlias(tuple, (str,) * len(get_args(option)))
        if origin in (tuple, list, set, frozenset):
            return list[str]
    return str


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for option in get_args(annotation) for part in _alternatives(option))
    return (annotation,)


def _help(sentence: str, schema: Mapping[str, Any], required: bool) -> str:
    """The field's sentence, with what is allowed and what it is when it is left out."""
    facts: list[str] = []
    if "enum" in schema:
        facts.append(" | ".join(str(value) for value in schema["enum"]))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        facts.append(f"{low} to {high}")
    if not required and schema.get("default") not in (None, "", False):
        facts.append(f"default {schema['default']}")
    return f"{sentence} \\[{', '.join(facts)}]" if facts else sentence
