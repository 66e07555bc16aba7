"""Schemas are plain enough for every client, show the card's defaults, and tell the truth about results."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mcp_types as types
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict

from omnigen2.checkpoints.card import ModelCard, published_card, read_card
from omnigen2.checkpoints.locate import NANO, resolve
from server import schema
from server.introduction import MAX_INSTRUCTIONS, instructions
from server.mcp import describe
from tools.base import Request, Result, Tool, ToolError
from tools.core import TOOLS

CARD = published_card("tiny")
INPUTS = {tool.name: schema.input_schema(tool, CARD) for tool in TOOLS}
OUTPUTS = {tool.name: schema.output_schema(tool) for tool in TOOLS}
ALL = [*INPUTS.values(), *OUTPUTS.values()]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_a_schema_that_names_its_dialect_keeps_its_references_for_mcp_alone() -> None:
    class Place(BaseModel):
        city: str = ""

    class Go(Request):
        model_config = ConfigDict(json_schema_extra={"$schema": Draft202012Validator.META_SCHEMA["$id"]})
        place: Place = Place()

    tool = replace(TOOLS[0], request=Go, defaults=None)
    kept = schema.input_schema(tool, None, lean=True)
    assert (
        kept["properties"]["place"]["$ref"] == "#/$defs/Place"
        and "city" in kept["$defs"]["Place"]["properties"]
    )
    made = schema.input_schema(tool, None)
    assert "$defs" not in made and "city" in made["properties"]["place"]["properties"]


@pytest.mark.parametrize("made", ALL, ids=[*INPUTS, *(f"{name} result" for name in OUTPUTS)])
def test_schema_is_plain(made: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(made)
    assert made["type"] == "object"
    for node in nodes(made):
        assert not {"$ref", "$defs", "prefixItems"} & node.keys()
        assert {"type": "null"} not in node.get("anyOf", [])
        assert not isinstance(node.get("title"), str)
        if node.get("type") == "array":
            assert "items" in node


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_arguments_say_what_they_are_and_what_the_model_decides(tool: Tool[Any, Any]) -> None:
    fields = INPUTS[tool.name]["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []
    decided = tool.defaults(CARD).model_dump(mode="json", exclude_none=True) if tool.defaults else {}
    shown = {name: field["default"] for name, field in fields.items() if name in decided}
    assert shown == {name: value for name, value in decided.items() if name in fields}


def test_a_field_named_title_is_kept() -> None:
    class Book(Result):
        title: str | None
        pages: tuple[int, ...] = ()

    tool = Tool("a", "a", "A", "", TOOLS[0].request, Book, TOOLS[0].run)
    fields = schema.output_schema(tool)["properties"]
    assert fields["title"] == {"type": "string"}
    assert fields["pages"] == {"type": "array", "items": {"type": "integer"}, "default": []}


def test_errors_are_valid_results_and_half_results_are_not() -> None:
    error = schema.dump_error(ToolError("busy", "Too much waits.", "Come back."))
    for made in OUTPUTS.values():
        validator = Draft202012Validator(made)
        assert validator.is_valid(error)
        assert not validator.is_valid({})
        assert not validator.is_valid(error | {"surprise": 1})


HUGE = dict.fromkeys(("title", "about"), "x" * 5000) | {"vocabulary": tuple(f"w{n}" for n in range(9000))}
CARDS = {
    "nano": read_card(resolve(NANO), NANO),
    "OmniGen2": CARD,
    "a card with too many words": CARD.model_copy(
        update=HUGE | {"advice": CARD.advice.model_copy(update={"prompts": "word " * 2000})}
    ),
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_instructions_are_short_for_any_model(card: ModelCard) -> None:
    said = instructions(card)
    assert len(said) <= MAX_INSTRUCTIONS < 1500
    assert said.startswith(f"An image studio. The model at work is {card.title[:50]}")
    assert "never paste image data" in " ".join(said.split()) and said.endswith("call again.")
    assert card.advice.prompts[:200] in said


@pytest.mark.parametrize("name", ["nano", "OmniGen2"])
def test_a_list_of_all_tools_is_under_5000_tokens(name: str) -> None:
    tools = [describe(tool, CARDS[name], {}, False) for tool in TOOLS]
    listed = types.ListToolsResult(tools=tools).model_dump_json(by_alias=True, exclude_none=True)
    assert len(listed) / 4 < 5000, f"{len(listed) / 4:.0f} tokens of 4 characters"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_lean_schema_has_every_field_and_what_it_may_be(tool: Tool[Any, Any]) -> None:
    lean, full = schema.input_schema(tool, CARD, lean=True), INPUTS[tool.name]
    Draft202012Validator.check_schema(lean)
    assert lean["properties"].keys() == full["properties"].keys()
    assert lean.get("required") == full.get("required") and lean["additionalProperties"] is False
    for name, field in full["properties"].items():
        kept = lean["properties"][name]
        assert all(kept.get(key) == field.get(key) for key in ("type", "enum", "description", "minimum"))
    out = schema.output_schema(tool, lean=True)
    Draft202012Validator.check_schema(out)
    assert Draft202012Validator(out).is_valid(schema.dump_error(ToolError("busy", "a", "b")))
