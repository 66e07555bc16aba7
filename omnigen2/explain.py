"""Validation errors in words: the field, what it must be, what was given.

What a field must be is derived from its JSON schema, so every bound is stated once, in the model that has it.
No sentence of the validation library is passed on. Nothing here imports torch.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from reprlib import Repr
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Schema = Mapping[str, Any]

MAX_EXPLAINED = 10
"""Wrong fields that one error names."""
OWN_WORDS = ("value_error", "assertion_error")
"""Types of errors whose message was written for the reader by a validator of ours."""
UNBOUNDED = 1_000_000
"""Bounds from this value on are not mentioned: they protect the server and do not help the caller."""
WHEN = "a date and time with its zone, such as 2026-11-28T09:30:00Z"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence per wrong field of `model`, of at most ten: its name, what it must be, what was given."""
    problems = error.errors(include_url=False)
    explained = problems[:MAX_EXPLAINED]
    unknown = [problem["loc"] for problem in explained if problem["type"] == "extra_forbidden"]
    sentences = [_sentence(problem, model) for problem in explained if problem["type"] != "extra_forbidden"]
    for owner, group in groupby(unknown, key=lambda location: location[:-1]):
        known = (_at(schema_of(model), owner, schema_of(model).get("$defs", {})) or {}).get("properties", {})
        sentences.append(unknown_fields([".".join(map(str, location)) for location in group], list(known)))
    if more := len(problems) - len(explained):
        sentences.append(f"and {more:,} more")
    return "; ".join(sentences)


def unknown_fields(names: Sequence[str], known: Sequence[str]) -> str:
    """That there are no fields of these names, which ones there are, and which of them are nearest."""
    shown = []
    for name in names:
        near = difflib.get_close_matches(name[:100].lower(), known, n=1, cutoff=0.7)
        shown.append(f"{printable(name)} (did you mean {near[0]}?)" if near else printable(name))
    return f"{', '.join(shown)}: not known; there are {', '.join(known)}"


def printable(name: str) -> str:
    """The beginning of a name that a client sent, in characters that every encoding of Unicode has."""
    return name[:100].encode("utf-8", "backslashreplace").decode()


def allowed(schema: Schema, definitions: Schema | None = None) -> str:
    """What a JSON schema takes, as the end of "it must be ...": "a whole number from 1 to 8"."""
    schema = resolved(schema, definitions or {})
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return _listed(list(map(str, schema["enum"])))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(allowed(option, definitions) for option in schema["anyOf"]))
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number" as kind:
            return ("a whole number" if kind == "integer" else "a number") + _between(schema)
        case "string" if schema.get("format") == "date-time":
            return WHEN
        case "string":
            return "text" + _count(schema, "Length", "characters")
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {})]
            return "a list" + _count(schema, "Items", "values") + f", each {allowed(items[0], definitions)}"
        case "object":
            return "an object"
    return "a valid value"


def resolved(schema: Schema, definitions: Schema) -> Schema:
    """`schema` with a reference and alternatives to null replaced by what they stand for."""
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return resolved({**definitions[schema["$ref"].rpartition("/")[2]], **rest}, definitions)
    if nullable(schema):
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        options = [option for option in schema["anyOf"] if option != {"type": "null"}]
        return resolved({**(options[0] if len(options) == 1 else {"anyOf": options}), **rest}, definitions)
    return schema


def nullable(schema: Schema) -> bool:
    """Whether null is one of the alternatives of `schema`."""
    return {"type": "null"} in schema.get("anyOf", ())


def shortened(value: object, limit: int = 80) -> str:
    """A value as an error may repeat it: its beginning, however large it is."""
    text = _EXCERPT.repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _sentence(problem: ErrorDetails, model: type[BaseModel]) -> str:
    schema = schema_of(model)
    definitions: Schema = schema.get("$defs", {})
    field = ".".join(printable(str(part)) for part in problem["loc"]) or "request"
    given = f" (given: {shortened(problem['input'])})"
    own = _at(schema, problem["loc"], definitions)
    match problem["type"]:
        case "missing":
            return f"{field}: is missing" + (f"; it must be {allowed(own, definitions)}" if own else "")
        case kind if kind in OWN_WORDS:
            words = problem["msg"].partition(", ")[2] or problem["msg"]
            return f"{field}: {words}{given}"
        case _ if own and problem["loc"]:
            return f"{field}: must be {allowed(own, definitions)}{given}"
        case _:
            return f"{field}: is not valid{given}"


def _at(schema: Schema, location: Sequence[int | str], definitions: Schema) -> Schema | None:
    """The part of `schema` for the value at `location`; None where there is none."""
    for part in location:
        schema = resolved(schema, definitions)
        if isinstance(part, int):
            items = schema.get("prefixItems", ())
            found = items[part] if part < len(items) else schema.get("items")
        else:
            found = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
        if not isinstance(found, Mapping):
            return None
        schema = found  # pyright: ignore[reportUnknownVariableType]
    return resolved(schema, definitions)


def _between(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {least} to {most}"
    bounds = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
    return "".join(f" {words} {bound}" for words, bound in bounds if bound is not None)


def _count(schema: Schema, kind: str, unit: str) -> str:
    least, most = schema.get(f"min{kind}", 0), schema.get(f"max{kind}")
    if most is not None and most >= UNBOUNDED:
        return ""
    unit = unit if (most or least) != 1 else unit.removesuffix("s")
    if most is None:
        return f" of at least {least} {unit}" if least else ""
    if least == most:
        return f" of {most} {unit}"
    return f" of {least} to {most:,} {unit}" if least else f" of at most {most:,} {unit}"


def _listed(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """The JSON schema of a model, made once."""
    return model.model_json_schema()


_EXCERPT = Repr()
_EXCERPT.maxstring = _EXCERPT.maxlong = _EXCERPT.maxother = 100
