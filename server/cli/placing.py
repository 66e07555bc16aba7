"""Flags that say where and how a model runs, shared by the commands that load one: fields of `Settings`."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from omnigen2.memory.placement import Placement
from server.settings import Settings


def _as_set(name: str) -> Parameter:
    return Parameter(help=Settings.model_fields[name].description, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Placing:
    """What was given of them; what was left out is as `serve` has it."""

    device: Annotated[str | None, _as_set("device")] = None
    dtype: Annotated[str | None, _as_set("dtype")] = None
    memory: Annotated[str | None, _as_set("memory")] = None
    quantize: Annotated[str | None, _as_set("quantize")] = None
    compile: Annotated[str | None, _as_set("compile")] = None

    @property
    def given(self) -> dict[str, str]:
        """The flags that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def placement(self) -> Placement:
        """Where and how the model runs.

        Raises:
            ValueError: a flag has a value that is not allowed.
        """
        return Settings.model_validate(self.given).placement
