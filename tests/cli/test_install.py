"""`omnigen2-mcp install`: our entry in the configuration files of other programs, which lose nothing."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from server.cli import hosts
from server.cli.install import install
from server.cli.main import run

Read = Callable[[Path], dict[str, Any]]
PROGRAM = str(Path(sys.executable).with_name("omnigen2-mcp"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def document(host: hosts.Host) -> dict[str, Any]:
    """What the client's file holds, read by other means than it was written by."""
    text = hosts.HOSTS[host].path().read_text(encoding="utf-8")
    return tomllib.loads(text) if hosts.HOSTS[host].toml else json.loads(text)


def backups(host: hosts.Host) -> list[Path]:
    return list(hosts.HOSTS[host].path().parent.glob("*.bak"))


EXISTING = {
    "json": '{\n  "theme": "dark",\n  "%s": {"other": {"command": "x", "args": ["ü"]}},\n  "zoom": 1.25\n}\n',
    "toml": '# mine\nmodel = "m"\n\n[%s.other] # keep\ncommand = "x"\nargs = ["ü"]\n\n[profile]\nz = 1.25\n',
}


@pytest.mark.parametrize("host", get_args(hosts.Host))
def test_a_new_file_holds_the_entry_alone(host: hosts.Host, capsys: pytest.CaptureFixture[str]) -> None:
    install(host)
    entry = document(host)[hosts.HOSTS[host].servers]["omnigen2"]
    assert entry["command"] == PROGRAM
    assert entry["args"][0] == "serve"
    assert str(hosts.HOSTS[host].path()) in capsys.readouterr().out
    assert backups(host) == []


@pytest.mark.parametrize("host", get_args(hosts.Host))
def test_other_entries_and_comments_stay(host: hosts.Host) -> None:
    configuration = hosts.HOSTS[host]
    path = configuration.path()
    path.parent.mkdir(parents=True, exist_ok=True)
    before = EXISTING["toml" if configuration.toml else "json"] % configuration.servers
    path.write_text(before, encoding="utf-8")
    path.chmod(0o640)
    wanted = document(host)

    install(host)
    wanted[configuration.servers]["omnigen2"] = hosts.entry(host, ())
    assert document(host) == wanted
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (backup,) = backups(host)
    assert backup.read_text(encoding="utf-8") == before
    if configuration.toml:
        assert "# mine" in path.read_text(encoding="utf-8") and "# keep" in path.read_text(encoding="utf-8")

    again = path.read_bytes()
    install(host)  # nothing to do: no second backup
    assert path.read_bytes() == again and backups(host) == [backup]


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("cursor", '{"mcpServers": {'),
        ("cursor", "[1, 2]"),
        ("cursor", '{"mcpServers": ["x"]}'),
        ("vscode", '{\n  // mine\n  "servers": {}\n}'),
        ("codex", "model = "),
        ("codex", 'mcp_servers = "x"'),
        ("codex", '[mcp_servers]\nomnigen2 = 3\n'),
    ],
)  # fmt: skip
def test_a_broken_file_is_left_as_it_is(
    host: hosts.Host, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hosts.HOSTS[host].path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert run(["install", host]) != 0
    said = capsys.readouterr().err
    assert str(path) in said and "--print" in said and "Traceback" not in said
    assert path.read_text(encoding="utf-8") == text and backups(host) == []


def test_a_link_is_written_through(home: Path) -> None:
    real = home / "dotfiles" / "mcp.json"
    real.parent.mkdir()
    real.write_text("", encoding="utf-8")
    path = hosts.HOSTS["cursor"].path()
    path.parent.mkdir()
    path.symlink_to(real)
    install("cursor")
    assert path.is_symlink() and "omnigen2" in json.loads(real.read_text())["mcpServers"]


def test_an_entry_that_was_changed_by_hand_is_replaced_and_kept_in_the_backup() -> None:
    install("cursor")
    path = hosts.HOSTS["cursor"].path()
    path.write_text(path.read_text().replace("serve", "server"), encoding="utf-8")
    install("cursor")
    assert document("cursor")["mcpServers"]["omnigen2"] == hosts.entry("cursor", ())
    assert '"server"' in backups("cursor")[0].read_text()


def test_the_entry_is_printed_and_nothing_written(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    install("claude-desktop", allow_dir=(home,), name="studio", print_only=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["mcpServers"]["studio"]["args"] == ["serve", "--allow-dir", str(home)]
    assert list(home.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["install", "cursor", "--allow-dir", str(home / "no")]) == 2
    assert "allow_dir" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_the_printed_command_starts_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    install("claude-code", print_only=True)
    entry = json.loads(capsys.readouterr().out)["mcpServers"]["omnigen2"]
    command = [entry["command"], *entry["args"], "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60, check=False)
    assert ran.returncode == 0 and "--allow-dir" in ran.stdout
