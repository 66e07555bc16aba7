"""The fuzz targets: a judge, seed inputs and a dictionary for each."""

import io
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.fuzz_app import FuzzedApp
from benchmarks.fuzz_judges import Exports, Judge, Mcp, Pictures, Records, References, Rest

CORPUS = Path(__file__).parents[1] / "tests" / "storage" / "corpus"


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed."""

    share: float
    """Fraction of the inputs in a run of all targets."""
    judge: Callable[[Path, ExitStack], Judge]
    """Makes the judge, given a working folder and a stack that closes its resources."""
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    """Dictionary for the mutator: byte strings with a meaning in the input format."""


def _pictures() -> Iterable[bytes]:
    return (path.read_bytes() for path in sorted(CORPUS.iterdir()))


def _references() -> Iterable[bytes]:
    png = io.BytesIO()
    Image.new("RGB", (1, 1)).save(png, "PNG")
    yield from (
        b"sha256:" + b"0a" * 32,
        b"deadbeef",
        b"image://sha256/" + b"0a" * 32,
        b"data:image/png;base64,QUJD",
    )
    yield from (b"data:image/png;a=b;base64,%51UJD", b"file:///tmp/a.png", b"https://example.com/x.png?a=b#c")
    yield from (b"https://[::1]/", b"a/../b.png", b"C:\\x.png", b"~/x.png", b"http://x/", b"ftp://x/")


def _decisions() -> Iterable[bytes]:
    """Inputs whose decisions are all the first, the second, ... option, and some random ones."""
    yield from (bytes([number]) * 60 for number in range(16))
    yield from (random.Random(number).randbytes(300) for number in range(24))


_IN_PICTURES = (
    b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"IEND", b"iCCP", b"tRNS", b"acTL", b"PLTE", b"\xff\xd8",
    b"\xff\xda", b"\xff\xc2", b"JFIF", b"Exif\0\0", b"MPF\0", b"RIFF", b"WEBPVP8 ", b"VP8X", b"ANIM",
    b"GIF89a", b"II*\0", b"ftypavif", b"ftypheic",
)  # fmt: skip
_IN_REFERENCES = (
    b"sha256:", b"image://sha256/", b"data:image/", b";base64,", b"file://", b"https://", b"%00", b"../",
    b"\xf0\x9f\x9f\xa5",
)  # fmt: skip
TARGETS: dict[str, Target] = {
    "pictures": Target(0.4, lambda folder, stack: Pictures(), _pictures, _IN_PICTURES),
    "references": Target(0.25, lambda folder, stack: References(), _references, _IN_REFERENCES),
    "records": Target(0.25, lambda folder, stack: Records(), _decisions),
    "exports": Target(0.02, Exports, _decisions),
    "rest": Target(0.05, lambda folder, stack: Rest(FuzzedApp(folder, stack)), _decisions),
    "mcp": Target(0.03, lambda folder, stack: Mcp(FuzzedApp(folder, stack)), _decisions),
}
