"""Arguments as language models and their hosts send them, for every parameter of every tool."""

import json
from typing import Any, Literal

import pytest
from pydantic import AwareDatetime, Field

from omnigen2.explain import allowed
from server.arguments import read_arguments
from tools.base import Request, ToolError
from tools.core import TOOLS


class OfPlugin(Request):
    """A request of a plugin's tool, with a parameter of every kind."""

    words: str = Field(min_length=1, max_length=100)
    count: int | None = Field(default=None, ge=1, le=9)
    share: float = Field(default=0.5, ge=0, le=1)
    twice: bool = False
    kind: Literal["one", "two"] = "two"
    pair: tuple[int, int] | None = None
    names: list[str] = Field(default=[], max_length=5)
    since: AwareDatetime | None = None


REQUESTS: dict[str, type[Request]] = {tool.name: tool.request for tool in TOOLS} | {"plugin": OfPlugin}
LIBRARY_WORDS = (
    "Input should",
    "Extra inputs",
    "should have at",
    "Field required",
    "validation error",
    "type=",
)


PARAMETERS = [(name, field) for name, request in REQUESTS.items() for field in request.model_fields]


def schema(name: str, field: str) -> dict[str, Any]:
    whole = REQUESTS[name].model_json_schema()
    own = whole["properties"][field]
    options = [option for option in own.get("anyOf", [own]) if option.get("type") != "null"]
    return options[0]


def valid(name: str, field: str) -> Any:
    """A value that the parameter takes."""
    own = schema(name, field)
    match own.get("type"):
        case "string" if "enum" in own:
            return own["enum"][0]
        case "string":
            return "2026-11-28T09:30:00Z" if own.get("format") else "12345678"
        case "integer" | "number":
            return own["maximum"]
        case "boolean":
            return True
        case "array":
            return [1] * own["minItems"] if "prefixItems" in own else ["12345678"]
    raise AssertionError(own)


def minimal(name: str) -> dict[str, Any]:
    return {
        field: valid(name, field) for field, own in REQUESTS[name].model_fields.items() if own.is_required()
    }


def read(name: str, **arguments: Any) -> Request:
    return read_arguments(REQUESTS[name], minimal(name) | arguments)[0]


def refused(name: str, **arguments: Any) -> str:
    with pytest.raises(ToolError) as error:
        read(name, **arguments)
    assert error.value.code == "invalid_argument" and error.value.advice
    assert not any(words in error.value.message for words in LIBRARY_WORDS), error.value.message
    return error.value.message


OPTIONAL = [
    (name, field) for name, field in PARAMETERS if not REQUESTS[name].model_fields[field].is_required()
]
REQUIRED = [pair for pair in PARAMETERS if pair not in OPTIONAL]


@pytest.mark.parametrize(("name", "field"), OPTIONAL)
def test_null_and_nothing_leave_an_optional_parameter_out(name: str, field: str) -> None:
    assert read(name, **{field: None}) == read(name)
    takes_empty = schema(name, field).get("type") == "string" and field == "negative_prompt"
    assert (read(name, **{field: ""}) == read(name)) is not takes_empty
    if not takes_empty:
        assert read(name, **{field: " "}) == read(name)


@pytest.mark.parametrize(("name", "field"), REQUIRED)
@pytest.mark.parametrize("value", [None, "", {}, True])
def test_what_is_required_cannot_be_nothing(name: str, field: str, value: object) -> None:
    words = refused(name, **{field: value})
    assert words.startswith(f"{field}") and "must be" in words


@pytest.mark.parametrize(("name", "field"), PARAMETERS)
def test_every_parameter_takes_its_value_in_every_form(name: str, field: str) -> None:
    value, own = valid(name, field), schema(name, field)
    expected = read(name, **{field: value})
    if own.get("type") == "array":
        assert read(name, **{field: json.dumps(value)}) == expected
        if len(value) == 1:
            assert read(name, **{field: value[0]}) == expected
    else:
        assert read(name, **{field: [value]}) == expected
    if own.get("type") in ("integer", "number", "boolean"):
        assert read(name, **{field: json.dumps(value)}) == expected


@pytest.mark.parametrize(("name", "field"), PARAMETERS)
def test_a_wrong_type_is_refused_with_what_is_allowed(name: str, field: str) -> None:
    words = refused(name, **{field: {"a": 1}})
    if "$ref" in schema(name, field).get("items", {}):  # of objects: a lone one is a list of one
        assert words.startswith(f"{field}.0.") and f"{field}.0.a: not known" in words
        words = refused(name, **{field: 1})
        assert words.startswith(f"{field}.0: must be an object (given: 1)")
        return
    assert words.startswith(f"{field}: must be {allowed(schema(name, field))}")
    assert "given: {'a': 1}" in words


@pytest.mark.parametrize(("name", "field"), PARAMETERS)
def test_a_misspelt_name_is_refused_with_the_nearest_and_all_names(name: str, field: str) -> None:
    words = refused(name, **{f"{field}x": valid(name, field)})
    assert f"{field}x (did you mean {field}?)" in words
    assert all(known in words for known in REQUESTS[name].model_fields)


def test_image_and_images_are_taken_for_each_other() -> None:
    assert read_arguments(REQUESTS["view_image"], {"images": "12345678"})[0].image == "12345678"  # type: ignore[attr-defined]
    given = {"image": "12345678", "question": "What is it?"}
    assert read_arguments(REQUESTS["describe_image"], given)[0].images == ["12345678"]  # type: ignore[attr-defined]
    assert "did you mean" in refused("describe_image", image="12345678"), (
        "with both it is not clear what is meant"
    )


def test_what_clients_add_is_dropped_with_a_note() -> None:
    added = {"toolCallId": "call_1", "sessionId": "s", "_meta": {"progressToken": 1}, "chatInput": "x"}
    request, notes = read_arguments(REQUESTS["view_image"], minimal("view_image") | added)
    assert request == read("view_image")
    assert len(notes) == 1 and all(name in notes[0] for name in added)


class Odd(Request):
    """A request as a plugin may have it."""

    table: dict[str, int] = Field(default={}, max_length=3)
    """A table."""


def test_an_object_as_text_is_read_and_deep_text_is_not() -> None:
    assert read_arguments(Odd, {"table": '{"a": 1}'})[0] == Odd(table={"a": 1})
    with pytest.raises(ToolError, match="table: must be an object"):
        read_arguments(Odd, {"table": "{" + '"a":{' * 50_000})


def test_half_a_character_in_a_name_can_be_answered() -> None:
    _, notes = read_arguments(REQUESTS["list_images"], {"_\udcdb": 1})
    assert notes[0].encode().endswith(b"_\\udcdb.")
    for arguments in ({"x\udcdb": 1}, {f"x\udcdb{number}": 1 for number in range(200)}):
        with pytest.raises(ToolError) as error:
            read_arguments(REQUESTS["list_images"], arguments)
        assert str(error.value).encode()


def test_a_million_unknown_names_are_refused_shortly() -> None:
    with pytest.raises(ToolError) as error:
        read_arguments(Odd, {f"key{number}": number for number in range(1_000_000)})
    assert len(error.value.message) < 4000 and "999,980 more" in error.value.message
