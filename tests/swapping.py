"""A thread that swaps files and folders while a test opens them."""

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

SWAPS = int(os.environ.get("OMNIGEN2_TEST_SWAPS", "2000"))
"""How often a folder is swapped while files in it are opened; more in a longer run."""


@contextmanager
def swapping(*steps: Callable[[], None]) -> Generator[threading.Event]:
    """Do the steps again and again in another thread, `SWAPS` times; the event is set at the end."""
    ended = threading.Event()

    def swap() -> None:
        for _ in range(SWAPS):
            for step in steps:
                step()
        ended.set()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield ended
    finally:
        thread.join()


def link_in_the_place_of(path: Path, target: Path) -> list[Callable[[], None]]:
    """Steps that put a link in the place of `path`, and `path` back."""
    aside, link = path.with_name("aside"), path.with_name("link")
    link.symlink_to(target)
    return [
        lambda: path.rename(aside),
        lambda: link.rename(path),
        lambda: path.rename(link),
        lambda: aside.rename(path),
    ]
