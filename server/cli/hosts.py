"""Configuration files of MCP clients: where each lies, and how an entry of ours is merged into it.

Other entries, their order, and TOML comments stay; a file that cannot be read as expected is not touched.
"""

import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

import tomlkit
from platformdirs import user_config_path

Host = Literal["claude-code", "claude-desktop", "cursor", "vscode", "codex"]
Entry = dict[str, Any]

WORKSPACE = ("--allow-dir", "${workspaceFolder}")
"""Lets the tools read and write in the project that is open; the client fills in its folder."""


@dataclass(frozen=True)
class Configuration:
    """Where a client keeps its MCP servers."""

    path: Callable[[], Path]
    servers: str
    """Key of the table that holds one entry for each server."""
    arguments: tuple[str, ...] = ()
    """Arguments of the server that only this client gives."""
    more: tuple[tuple[str, Any], ...] = ()
    """Other keys of an entry."""

    @property
    def toml(self) -> bool:
        """Whether the file is TOML; else it is JSON."""
        return self.path().suffix == ".toml"


def _claude_code() -> Path:
    return Path(os.environ.get("CLAUDE_CONFIG_DIR") or Path.home()) / ".claude.json"


def _application(*parts: str) -> Path:
    """A file of a desktop program, in the user's folder for such files."""
    folder = user_config_path() if sys.platform != "darwin" else Path.home() / "Library/Application Support"
    return folder.joinpath(*parts)


HOSTS: dict[Host, Configuration] = {
    "claude-code": Configuration(_claude_code, "mcpServers", more=(("type", "stdio"),)),
    "claude-desktop": Configuration(
        lambda: _application("Claude", "claude_desktop_config.json"), "mcpServers"
    ),
    "cursor": Configuration(lambda: Path.home() / ".cursor" / "mcp.json", "mcpServers", WORKSPACE),
    "vscode": Configuration(
        lambda: _application("Code", "User", "mcp.json"), "servers", WORKSPACE, (("type", "stdio"),)
    ),
    # The first start may load for longer than its 10 seconds; one picture takes longer than its minute.
    "codex": Configuration(
        lambda: Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex") / "config.toml",
        "mcp_servers",
        more=(("startup_timeout_sec", 60), ("tool_timeout_sec", 600)),
    ),
}


def command() -> list[str]:
    """How a client starts this program: by its absolute path, as a client's PATH is seldom a shell's."""
    if "archive-v0" in Path(sys.prefix).parts:  # an environment that uvx made, and may delete
        return ["uvx", "omnigen2-mcp"]
    script = Path(sys.executable).with_name("omnigen2-mcp")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "server.cli"]


def entry(host: Host, arguments: tuple[str, ...]) -> Entry:
    """The entry of this server for a client; `arguments` come after those that the client always gives."""
    program, *first = command()
    configuration = HOSTS[host]
    words = [*first, "serve", *configuration.arguments, *arguments]
    return {"command": program, "args": words, **dict(configuration.more)}


def rendered(host: Host, name: str, value: Entry) -> str:
    """A configuration file that holds nothing but the entry."""
    return _dumped({HOSTS[host].servers: {name: value}}, HOSTS[host])


def merge(host: Host, name: str, value: Entry) -> tuple[Path, Path | None, bool]:
    """Put the entry into the client's file: the file, its backup, and whether anything had to change.

    Raises:
        ValueError: the file is not what the client would write; it was left as it is.
        OSError: it cannot be read or written.
    """
    path = HOSTS[host].path().resolve()  # it may be a link into a folder of dotfiles
    before = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    try:
        after = _merged(before, host, name, value)
    except ValueError as error:
        raise ValueError(
            f"{path} was left as it is: {error}. Mend it, or print the entry with --print and paste it"
        ) from error
    if after == before:
        return path, None, False
    path.parent.mkdir(parents=True, exist_ok=True)
    backup = _backup(path) if path.exists() else None
    _replace(path, after)
    return path, backup, True


def _merged(text: str, host: Host, name: str, value: Entry) -> str:
    configuration = HOSTS[host]
    if configuration.toml:
        tomllib.loads(text)  # stricter than the parser that keeps comments
        document: Any = tomlkit.parse(text)
    else:
        document = json.loads(text) if text.strip() else {}
    servers = _table(document, configuration.servers, "the file")
    if name in servers and _table(servers, name, configuration.servers) == value:
        return text
    servers[name] = value
    return _dumped(document, configuration)


def _dumped(document: Any, configuration: Configuration) -> str:
    if configuration.toml:
        return tomlkit.dumps(document)  # pyright: ignore[reportUnknownMemberType]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _table(parent: Any, key: str, where: str) -> Any:
    """The table at `key`, made if it is absent. Raises ValueError where there is something else."""
    if not isinstance(parent, Mapping):
        raise ValueError(f"{where} is not a table of names and values")
    table = cast("dict[str, Any]", parent).setdefault(key, {})
    if not isinstance(table, Mapping):
        raise ValueError(f"{key} is not a table of names and values")
    return parent[key]  # pyright: ignore[reportUnknownVariableType]


def _backup(path: Path) -> Path:
    """A copy beside the file, under a name that is free."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    backup = path.with_name(f"{path.name}.{stamp}.bak")
    if backup.exists():
        raise FileExistsError(f"{backup} is there; try again in a second")
    shutil.copy2(path, backup)
    return backup


def _replace(path: Path, text: str) -> None:
    """Write `text` beside the file, and put it in its place with its mode."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
