"""The console script says in one line why it cannot run here."""

import subprocess
import sys
from pathlib import Path

import pytest

from omnigen2 import start


@pytest.mark.parametrize("platform", ["win32", "cygwin", "emscripten"])
def test_systems_it_does_not_run_on_are_named(platform: str) -> None:
    reason = start.unsupported(platform)
    assert reason is not None and platform in reason and "WSL 2" in reason


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_systems_it_runs_on(platform: str) -> None:
    assert start.unsupported(platform) is None


@pytest.mark.parametrize("name", start.PACKAGES)
def test_a_package_of_another_distribution_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from omnigen2.start import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == start.CANNOT_RUN
    (line,) = ran.stderr.splitlines()
    assert str(tmp_path / name) in line and "uv tool install" in line


def test_an_incomplete_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "PACKAGES", ("a_package_that_is_not_there",))
    assert "from nowhere" in (start.shadowed() or "")
