"""Who may connect over HTTP: a token file that others could change, host names, and web pages."""

import os
from pathlib import Path

import pytest

from server.caller import READ
from server.http.auth import Identity, Tokens, is_loopback, may_ask, names_this_machine

ANN = "ann:a-token-of-some-length"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    file = folder / "tokens"
    file.write_text(ANN)
    file.chmod(0o600)
    return file


def test_a_file_of_its_owner_is_read_also_through_a_link(file: Path) -> None:
    link = file.parent.parent / "link"
    link.symlink_to(file)
    for path in (file, link):
        assert Tokens.read(path).find("a-token-of-some-length") == Identity("ann")
    for mode in (0o400, 0o644, 0o640):
        file.chmod(mode)
        Tokens.read(file)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_a_token_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ValueError, match=r"others may write the file.*chmod go-w") as error:
        Tokens.read(file)
    assert "a-token" not in str(error.value)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_token_file_in_a_folder_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    with pytest.raises(ValueError, match="others may write its folder"):
        Tokens.read(file)
    file.parent.chmod(0o1777)
    Tokens.read(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_token_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 12345, -1)
    with pytest.raises(ValueError, match="belongs to another user"):
        Tokens.read(file)


def test_what_is_no_file_is_refused_without_waiting(file: Path) -> None:
    os.mkfifo(file.with_name("pipe"))
    for name in ("pipe", "absent", "."):
        with pytest.raises(ValueError, match="token file"):
            Tokens.read(file.with_name("x").parent / name)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2:80", "127.255.0.9:8765", "[::1]", "[::1]:1", "LocalHost:3"]
)
def test_names_of_this_machine(host: str) -> None:
    assert names_this_machine(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "128.0.0.1",
        "[::1",
        "0.0.0.0",
        "localhost@evil.example",
        "evil@localhost",
        "localhost:80/x",
        "localhost:x",
        "localhost#",
        "localhost?a",
    ],
)
def test_other_names_are_not_of_this_machine(host: str) -> None:
    assert not names_this_machine(host)


@pytest.mark.parametrize(
    ("origin", "host", "may"),
    [
        ("https://gpu.example", "gpu.example", True),
        ("https://gpu.example", "GPU.example:443", True),
        ("https://gpu.example:8443", "gpu.example:8443", True),
        ("http://localhost:5173", "127.0.0.2:8765", True),
        ("http://[::1]:5173", "localhost:8765", True),
        ("https://gpu.example", "gpu.example:8443", False),
        ("https://evil.example", "gpu.example", False),
        ("https://evil.example", "127.0.0.1:8765", False),
        ("http://localhost:5173", "gpu.example", False),
        ("https://gpu.example@evil.example", "gpu.example", False),
        ("https://gpu.example/x", "gpu.example", False),
        ("null", "gpu.example", False),
        ("", "", False),
        ("file://", "", False),
        ("https://[bad", "gpu.example", False),
    ],
)
def test_a_web_page_may_call_its_own_server_and_on_this_machine_any(
    origin: str, host: str, may: bool
) -> None:
    assert may_ask(origin, host) is may


def test_a_token_has_the_scopes_behind_it_or_all() -> None:
    tokens = Tokens(f"{ANN}\nbob: another-long-token  studio:read\neve:a pass phrase, as it was: valid")
    assert tokens.find("a-token-of-some-length") == Identity("ann")
    assert tokens.find("another-long-token") == Identity("bob", frozenset({READ}))
    assert tokens.find("a pass phrase, as it was: valid") == Identity("eve")
    assert tokens.find("another-long-token  studio:read") is None
    with pytest.raises(ValueError, match="line 1: a scope of bob is none of studio:read, studio:write"):
        Tokens("bob:another-long-token studio:raed")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host) and not is_loopback("10.0.0.1") and not is_loopback("gpu.example")


@pytest.mark.parametrize(
    "text", ["", "# nothing", "ann a-token-without-colon", "ann:short", ":a-token-of-nobody"]
)
def test_token_file_that_is_wrong_is_refused_without_showing_a_token(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tokens(text)
    assert "a-token" not in str(caught.value) and "short" not in str(caught.value)
