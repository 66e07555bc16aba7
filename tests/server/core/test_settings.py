"""Settings: one declaration, four sources, a fixed precedence."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from omnigen2.explain import explain
from server.settings import Settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('port = 1\nquota = "20GB"\nlog_level = "debug"\n', encoding="utf-8")
    return path


def test_a_flag_beats_the_environment_and_that_beats_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings(config=config).port == 1
    monkeypatch.setenv("OMNIGEN2_PORT", "2")
    assert Settings(config=config).port == 2
    assert Settings(config=config, port=3).port == 3
    assert Settings(config=config).quota == 20 * 10**9


def test_the_file_can_be_named_by_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGEN2_CONFIG", str(config))
    assert Settings().log_level == "debug"


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(config=tmp_path / "none.toml")
    assert "does not exist" in explain(error.value, Settings)


def test_a_key_that_is_no_setting_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("prot = 1\n", encoding="utf-8")
    with pytest.raises(ValidationError) as error:
        Settings(config=path)
    assert "prot" in explain(error.value, Settings)


def test_folders_come_as_a_list_or_as_a_path_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert Settings(allow_dir=(one, two)).allow_dir == (one, two)
    monkeypatch.setenv("OMNIGEN2_ALLOW_DIR", f"{one}:{two}")
    assert Settings().allow_dir == (one, two)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no such folder"):
        Settings(allow_dir=(tmp_path / "none",))


def test_the_working_directory_may_be_read_over_stdio_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(transport="stdio").folders == (tmp_path,)
    assert Settings(transport="http").folders == ()


def test_a_working_directory_that_nobody_chose_is_not_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "users" / "ann"
    (home / "project").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    for folder in (Path("/"), Path("/tmp"), Path("/usr"), home, home.parent, tmp_path, Path("/etc")):
        monkeypatch.chdir(folder)
        assert Settings().folders == ()
        assert Settings(allow_dir=(home,)).folders == (home,)
    monkeypatch.chdir(home / "project")
    assert Settings().folders == (home / "project",)
    (home / "project").rmdir()
    assert Settings().folders == ()
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_a_sentence() -> None:
    assert all(field.description for field in Settings.model_fields.values())
