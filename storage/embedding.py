"""Puts records into image files, without changing the pixels, and takes them out of exported PNGs.

Beside the history (`storage/history.py`; where it lies: `storage/extraction.py`), a file has what other
programs read: the `parameters` text that image tools show (an iTXt chunk of a PNG, otherwise the UserComment
of EXIF 2.32), and XMP (ISO 16684-1) with a description and the IPTC source type of images made by a model.
In PNG, the other bytes are unchanged, so an exported image keeps its id.
"""

import json
import re
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple
from xml.sax.saxutils import escape

from PIL import Image

from storage.digest import Digest
from storage.extraction import NAMESPACE, RECORDS, Unreadable, history_of_png, without_texts
from storage.history import as_text, from_text
from storage.records import Record

PARAMETERS = "parameters"
XMP = "XML:com.adobe.xmp"

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MAX_COMMENT = 30_000
"""Maximum number of characters of the comment: EXIF in a JPEG has at most 64 KB."""
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DISPLAY_NAMES = {
    "steps": "Steps",
    "scheduler": "Sampler",
    "text_guidance_scale": "CFG scale",
    "seed": "Seed",
}
_MADE_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP_TEMPLATE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"{more}>
{properties}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


class Extracted(NamedTuple):
    """The content of an exported file."""

    png: bytes
    """The PNG without the embedded texts."""
    records: list[Record]
    refused: tuple[str, ...]
    """Reasons why other records were rejected."""


class Metadata(NamedTuple):
    """What a file carries beside its pixels, as Pillow writes it."""

    xmp: bytes
    exif: bytes
    """Empty if there is nothing to say."""
    left_out: int
    """Number of records for which there was no room, the last of those given."""


def embed(png: bytes, image: Digest, records: Sequence[Record], *, copy: bool = False) -> bytes:
    """`png` with embedded records; what other programs read is about the one that made `image`.

    With `copy`, `png` has other pixels than `image`.
    """
    maker = _maker(image, records)
    texts = {RECORDS: as_text(records), XMP: _xmp(image, maker, copy)}
    if maker:
        texts[PARAMETERS] = parameters_text(maker)
    after_header = 8 + 25
    chunks = b"".join(_text_chunk(keyword, text) for keyword, text in texts.items())
    return png[:after_header] + chunks + png[after_header:]


def metadata(image: Digest, records: Sequence[Record], most: int | None) -> Metadata:
    """The same for a copy of `image` in another format, with at most `most` bytes of XMP."""
    maker = _maker(image, records)
    lengths = accumulate(len(record.canonical) for record in records)
    fitting = sum(most is None or length <= most for length in lengths)
    for count in range(fitting, -1, -1):
        xmp = _xmp(image, maker, True, records[:count]).encode()
        if most is None or len(xmp) <= most:
            return Metadata(xmp, _exif(maker), len(records) - count)
    return Metadata(b"", _exif(maker), len(records))


def extract(data: bytes) -> Extracted | None:
    """The PNG and the records in an exported PNG; None for any other file.

    The content is not trusted: the PNG may not decode, and the records may be about other images. Invalid
    records are rejected.

    Raises:
        ImageRejected: the file has too many chunks.
    """
    png = without_texts(data)
    if png is None:
        return None
    try:
        return Extracted(png, *from_text(history_of_png(data)))
    except Unreadable as error:
        return Extracted(png, [], (f"Its history could not be read: {error}.",))


def parameters_text(record: Record) -> str:
    """The text in the convention of image tools: prompt, negative prompt, then a line of `Name: value`."""
    given = record.parameters
    words = given.get("prompt") or given.get("instruction") or given.get("question") or ""
    lines = [str(words)]
    if given.get("negative_prompt"):
        lines.append(f"Negative prompt: {given['negative_prompt']}")
    values = {name: value for name, value in given.items() if isinstance(value, int | float | str)}
    facts = {_DISPLAY_NAMES[name]: values[name] for name in _DISPLAY_NAMES if name in values}
    if record.seed is not None:
        facts["Seed"] = record.seed
    if "width" in values and "height" in values:
        facts["Size"] = f"{values['width']}x{values['height']}"
    if record.model:
        facts["Model"] = record.model.id
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)


def _maker(image: Digest, records: Sequence[Record]) -> Record | None:
    return next((record for record in records if image in record.outputs), None)


def _xmp(image: Digest, maker: Record | None, copy: bool, records: Sequence[Record] = ()) -> str:
    """The XMP packet of a file with the pixels of `image`, or of a copy of it; with `records` in it."""
    name = "source" if copy else "identifier"
    properties = [f"<dc:{name}>{image}</dc:{name}>"]
    if maker:
        tool = escape(_NOT_IN_XML.sub("\ufffd", maker.tool))
        properties.append(f"<xmp:CreatorTool>omnigen2-mcp {tool}</xmp:CreatorTool>")
        words = escape(_NOT_IN_XML.sub("\ufffd", maker.searched_text()))
        properties.append(
            f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{words}</rdf:li></rdf:Alt>'
            "</dc:description>"
        )
        if maker.model:
            properties.append(
                f"<Iptc4xmpExt:DigitalSourceType>{_MADE_BY_MODEL}</Iptc4xmpExt:DigitalSourceType>"
            )
    if records:  # what XML does not allow is inside of a JSON text, where an escape means the same
        text = _NOT_IN_XML.sub(lambda found: json.dumps(found[0])[1:-1], as_text(records))
        properties.append(f"<{RECORDS}>{escape(text)}</{RECORDS}>")
    more = f'\n xmlns:{RECORDS.partition(":")[0]}="{NAMESPACE}"' if records else ""
    return _XMP_TEMPLATE.format(properties="\n".join(properties), more=more)


def _exif(maker: Record | None) -> bytes:
    if maker is None:
        return b""
    exif = Image.Exif()
    text = parameters_text(maker)[:_MAX_COMMENT]
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return exif.tobytes()


def _text_chunk(keyword: str, text: str) -> bytes:
    body = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
