"""Command lines derived from request models: any model, no tool in particular."""

import inspect
from typing import Any, Literal

import pytest
from cyclopts import App
from cyclopts.exceptions import CycloptsError
from pydantic import BaseModel, ConfigDict, Field

from server.cli.options import given, parameters


class Request(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    pictures: tuple[str, ...] = Field(min_length=1)
    """Pictures to use."""
    wish: str
    """What to do."""
    width: int | None = Field(default=None, ge=16, le=64)
    """Width in pixels."""
    span: tuple[float, float] | None = None
    """From and to."""
    way: Literal["short", "long"] | None = None
    """How."""
    labels: list[str] | None = None
    """Words to remember it by."""
    quiet: bool = False
    """Say nothing."""


SCHEMA = {
    "properties": {
        "width": {"type": "integer", "minimum": 16, "maximum": 64, "default": 32},
        "way": {"type": "string", "enum": ["short", "long"]},
    }
}


def parse(*tokens: str) -> dict[str, Any]:
    heard: dict[str, Any] = {}

    def command(*arguments: Any, **options: Any) -> None:
        heard.update(zip(("wish", "pictures"), arguments, strict=False), **given(options))

    command.__signature__ = inspect.Signature(parameters(Request, SCHEMA))  # type: ignore[attr-defined]
    app = App(result_action="return_value", exit_on_error=False, print_error=False)
    app.default(command)
    app(list(tokens))
    return heard


def test_required_fields_are_arguments_and_a_list_comes_last() -> None:
    assert parse("join them", "a.png", "b.png") == {"wish": "join them", "pictures": ["a.png", "b.png"]}


def test_every_field_can_be_given_by_name() -> None:
    assert parse("--wish", "x", "--pictures", "a", "b") == {"wish": "x", "pictures": ["a", "b"]}


def test_values_are_handed_on_as_typed_so_that_the_model_judges_them() -> None:
    heard = parse("x", "a", "--width", "-3", "--span", "0", "half", "--way", "round", "--quiet")
    assert heard == {
        "wish": "x",
        "pictures": ["a"],
        "width": "-3",
        "span": ("0", "half"),
        "way": "round",
        "quiet": True,
    }


def test_what_is_not_typed_is_not_in_the_request() -> None:
    assert parse("x", "a").keys() == {"wish", "pictures"}


def test_optional_list_takes_several_words() -> None:
    assert parse("x", "a", "--labels", "one", "two")["labels"] == ["one", "two"]


def test_misspelt_option_is_refused_with_a_suggestion() -> None:
    with pytest.raises(CycloptsError, match="Did you mean"):
        parse("x", "a", "--widht", "3")


def test_help_says_what_is_allowed_and_what_the_default_is(capsys: pytest.CaptureFixture[str]) -> None:
    parse("--help")
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "--width N Width in pixels. [16 to 64, default 32]" in text
    assert "How. [short | long]" in text
