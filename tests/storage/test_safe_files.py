"""Opening by handles: only regular files below where the walk began, whatever is swapped meanwhile."""

import os
from pathlib import Path

import pytest

from storage.safe_files import NotRegular, names_in, open_file, write_file
from tests.swapping import link_in_the_place_of, swapping


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A folder with a file, beside one with another file of that name."""
    for name in ("inside", "outside"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_bytes(name.encode())
    return tmp_path / "inside"


def read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


@pytest.mark.parametrize("part", ["sub", "sub/file"])
def test_nothing_outside_is_read_while_a_part_of_the_path_is_swapped_for_a_link(
    inside: Path, part: str
) -> None:
    found: set[bytes] = set()
    steps = link_in_the_place_of(inside / part, inside.parent / "outside" / part)
    with swapping(*steps) as ended:
        while not ended.is_set():
            try:
                found.add(read(inside / "sub" / "file"))
            except OSError:
                pass
    assert found <= {b"inside"}
    assert read(inside / "sub" / "file") == b"inside"


def test_a_link_is_replaced_by_a_written_file_and_not_followed(inside: Path) -> None:
    outside = inside.parent / "outside" / "sub"
    (inside / "sub" / "new").symlink_to(outside / "file")
    write_file(inside / "sub" / "new", b"new")
    assert (inside / "sub" / "new").read_bytes() == b"new" and not (inside / "sub" / "new").is_symlink()
    assert (outside / "file").read_bytes() == b"outside"


def test_a_pipe_in_the_place_of_a_file_is_never_waited_for(inside: Path) -> None:
    file, pipe = inside / "sub" / "file", inside / "pipe"
    os.mkfifo(pipe)
    aside = inside / "aside"
    steps = [
        lambda: file.rename(aside),
        lambda: pipe.rename(file),
        lambda: file.rename(pipe),
        lambda: aside.rename(file),
    ]
    with swapping(*steps) as ended:
        while not ended.is_set():
            try:
                assert read(file) == b"inside"
            except (NotRegular, FileNotFoundError):
                pass


def test_no_handle_is_left_open(inside: Path) -> None:
    os.mkfifo(inside / "pipe")
    (inside / "link").symlink_to("sub")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for path in ("sub/file", "sub", "pipe", "link", "link/file", "sub/file/x", "absent/x", "absent"):
        try:
            read(inside / path)
        except OSError:
            pass
        try:
            names_in(inside / path)
        except OSError:
            pass
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after == before


def test_a_folder_that_may_only_be_entered_is_walked_through(inside: Path) -> None:
    inside.chmod(0o111)
    try:
        assert read(inside / "sub" / "file") == b"inside"
    finally:
        inside.chmod(0o755)


def test_names_are_those_of_the_folder_itself(inside: Path) -> None:
    (inside / "link").symlink_to(inside.parent / "outside")
    assert names_in(inside) == ["link", "sub"]
    assert names_in(inside / "sub" / "file") is None
    assert names_in(inside / "link") is None


def test_a_file_that_cannot_be_written_leaves_nothing_behind(inside: Path) -> None:
    with pytest.raises(OSError):
        write_file(inside / "sub", b"x")  # a folder is there
    assert sorted(os.listdir(inside)) == ["sub"]
    write_file(inside / "new" / "deep" / "file", b"deep")
    assert read(inside / "new" / "deep" / "file") == b"deep"
