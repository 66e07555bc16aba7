"""What a server offers beside tools: prompts and resources, as values."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template

from tools.base import Block, ToolError


@dataclass(frozen=True)
class Argument:
    """A value that the caller gives; optional if it has a default."""

    name: str
    words: str
    default: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt: its purpose, its arguments, and what it says."""

    name: str
    title: str
    words: str
    arguments: tuple[Argument, ...]
    text: str | Callable[[Mapping[str, str]], Sequence[Block]]
    """A text with `$name` for each argument, or what makes the messages from the values by name.

    Each of them has also `$advice`: how to ask the model at work, as its card says.
    """

    def messages(self, given: Mapping[str, str], common: Mapping[str, str]) -> Sequence[Block]:
        """The prompt with its arguments and the values in `common` filled in, as the messages of a user.

        Raises:
            ToolError: `invalid_argument`: an argument is missing.
        """
        filled = {one.name: given.get(one.name) or one.default for one in self.arguments}
        values = {name: value for name, value in filled.items() if value is not None}
        if missing := filled.keys() - values.keys():
            names = [name for name in filled if name in missing]
            raise ToolError("invalid_argument", f"The prompt {self.name} needs: {', '.join(names)}.")
        values |= common
        return [Template(self.text).substitute(values)] if isinstance(self.text, str) else self.text(values)


@dataclass(frozen=True)
class Resource:
    """A resource that can be read by its URI."""

    uri: str
    """Its URI, or a template of URIs (RFC 6570): `weather://{city}`."""
    name: str
    title: str
    words: str
    mime_type: str
    read: Callable[[Mapping[str, str]], Awaitable[str | bytes]]
    """What it holds, from the values of the template's variables. Raises `ToolError`."""
