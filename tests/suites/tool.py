"""What every tool must be, so that each surface can offer it. A plugin proves its tools by giving one:

    class TestCrop(ToolSuite):
        @pytest.fixture
        def tool(self):
            return my_plugin.CROP

Only the value is looked at; what a tool does is for its own tests.
"""

import inspect
import re
from typing import Any

import pytest
from jsonschema.validators import Draft202012Validator
from pydantic import BaseModel

from tools.base import Request, Result, Tool


class ToolSuite:
    """Conformance tests of one tool."""

    @pytest.fixture
    def tool(self) -> Tool[Any, Any]:
        raise NotImplementedError("give a fixture `tool`")

    def test_it_has_names_that_every_surface_can_use(self, tool: Tool[Any, Any]) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,63}", tool.name)
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,31}", tool.command)
        assert 3 <= len(tool.title) <= 60 and not tool.title.endswith(".")

    def test_it_says_in_sentences_what_it_is_for(self, tool: Tool[Any, Any]) -> None:
        assert 60 <= len(tool.description) <= 1000, "a model reads it before every conversation"
        assert tool.description.endswith(".") and "\n" not in tool.description

    def test_its_request_is_closed_and_cannot_be_changed(self, tool: Tool[Any, Any]) -> None:
        assert issubclass(tool.request, Request)
        assert tool.request.model_config.get("frozen")
        assert input_schema(tool)["additionalProperties"] is False

    def test_its_schemas_are_valid(self, tool: Tool[Any, Any]) -> None:
        Draft202012Validator.check_schema(input_schema(tool))
        Draft202012Validator.check_schema(tool.result.model_json_schema(mode="serialization"))

    def test_every_parameter_has_a_sentence(self, tool: Tool[Any, Any]) -> None:
        for name, field in input_schema(tool)["properties"].items():
            words = field.get("description", "")
            assert len(words) >= 10 and "\n" not in words, f"{name}: {words!r}"
            assert words.endswith((".", '".')), f"{name}: not a sentence: {words!r}"

    def test_every_parameter_is_bounded(self, tool: Tool[Any, Any]) -> None:
        for name, field in input_schema(tool)["properties"].items():
            options = field.get("anyOf", [field])
            assert any(map(bounded, options)), f"{name} takes anything: {field}"

    def test_no_parameter_is_defined_twice(self, tool: Tool[Any, Any]) -> None:
        for name in tool.request.model_fields:
            owners = [base for base in tool.request.__mro__ if name in inspect.get_annotations(base)]
            assert len(owners) == 1, f"{name} is defined in {[owner.__name__ for owner in owners]}"

    def test_its_result_is_facts_and_never_pixels(self, tool: Tool[Any, Any]) -> None:
        assert issubclass(tool.result, Result)
        schema = tool.result.model_json_schema(mode="serialization")
        assert "binary" not in str(schema) and "base64url" not in str(schema)
        for method in ("line", "linked", "previewed", "pictures"):
            assert callable(getattr(tool.result, method))
        assert tool.result.line is not Result.line, "models that read only text need a line"

    def test_its_annotations_do_not_contradict_each_other(self, tool: Tool[Any, Any]) -> None:
        assert not (tool.read_only and tool.destructive)
        assert inspect.iscoroutinefunction(tool.run)

    def test_the_models_defaults_are_for_its_parameters(self, tool: Tool[Any, Any]) -> None:
        """A parameter of the model is open until the model's card decides; it has no default of its own."""
        if tool.defaults is None:
            return
        from omnigen2.checkpoints.card import published_card

        shared = set(type(tool.defaults(published_card("any"))).model_fields) & set(tool.request.model_fields)
        assert shared
        for name in shared:
            assert tool.request.model_fields[name].default is None, name


def input_schema(tool: Tool[Any, Any]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, as pydantic gives it."""
    model: type[BaseModel] = tool.request
    return model.model_json_schema()


def bounded(option: dict[str, Any]) -> bool:
    """Whether a schema of one type says how much it takes."""
    match option.get("type"):
        case "string":
            return bool({"maxLength", "enum", "const", "format"} & set(option))
        case "integer" | "number":
            return "minimum" in option and "maximum" in option
        case "array":
            return "maxItems" in option
        case kind:
            return kind == "boolean" or "enum" in option
