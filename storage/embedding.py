"""Embeds records in a PNG on export and extracts them on import, without changing the pixels.

Uses iTXt chunks (PNG 3rd edition, section 11.3.3.4) and two conventions of other programs: the `parameters`
text shown by image tools, and XMP with the IPTC source type for images made by a model. The other bytes of
the PNG are unchanged, so an exported image keeps its id.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from xml.sax.saxutils import escape

from pydantic_core import from_json, to_json

from storage import containers
from storage.containers import PNG_SIGNATURE
from storage.digest import Digest
from storage.errors import InvalidArgument
from storage.records import MAX_BYTES, Record, canonical, parse_record

RECORDS = "omnigen2:records"
PARAMETERS = "parameters"
XMP = "XML:com.adobe.xmp"

_MAX_RECORDS = 100
"""Maximum number of records in a file; usually there are up to three."""
_MAX_RECORD_BYTES = 4 * MAX_BYTES
"""Maximum total size of the records in a file."""
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
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
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


def embed(png: bytes, image: Digest, records: Sequence[Record]) -> bytes:
    """`png` with embedded records, the first of which also in the forms that other programs read."""
    texts = {RECORDS: _as_list(records), XMP: _xmp(image, records)}
    if records:
        texts[PARAMETERS] = parameters_text(records[0])
    after_header = 8 + 25
    chunks = b"".join(_text_chunk(keyword, text) for keyword, text in texts.items())
    return png[:after_header] + chunks + png[after_header:]


def extract(data: bytes) -> Extracted | None:
    """The PNG and the records in a file made by `embed`; None for any other file.

    The content is not trusted: the PNG may not decode, and the records may be about other images. Invalid
    records are rejected.

    Raises:
        ImageRejected: the file has too many chunks.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    picture = [PNG_SIGNATURE]
    texts: list[bytes] = []
    for name, at, end in containers.chunks(data):
        chunk = data[at:end]
        if name == b"iTXt":
            keyword, _, rest = chunk[8:-4].partition(b"\0")
            if keyword == RECORDS.encode():
                texts.append(rest)
        elif name in (b"IHDR", b"IDAT", b"IEND"):
            picture.append(chunk)
        else:
            return None
    return Extracted(b"".join(picture), *_from_list(texts[-1])) if texts else None


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


def _xmp(image: Digest, records: Sequence[Record]) -> str:
    properties = [f"<dc:identifier>{image}</dc:identifier>"]
    if records:
        maker = records[0]
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
    return _XMP_TEMPLATE.format(properties="\n".join(properties))


def _as_list(records: Sequence[Record]) -> str:
    return canonical([record.model_dump(mode="json", exclude_none=True) for record in records]).decode()


def _from_list(rest: bytes) -> tuple[list[Record], tuple[str, ...]]:
    """The records in the text of an iTXt chunk, and reasons why others were rejected."""
    try:
        items = _items(rest)
    except ValueError as error:
        return [], (f"Its history could not be read: {error}.",)
    records: list[Record] = []
    refused: list[str] = []
    for item in items:
        try:
            record = parse_record(to_json(item))
            _ = record.canonical  # raises
            records.append(record)
        except InvalidArgument as error:
            refused.append(error.message)
    return records, tuple(refused)


def _items(rest: bytes) -> list[Any]:
    # After the keyword: compression flag and method, language and translated keyword (both empty), text.
    if not rest.startswith(b"\0\0\0\0"):
        raise ValueError("it is compressed or has a language tag")
    if len(rest) > _MAX_RECORD_BYTES:
        raise ValueError(f"it has {len(rest):,} bytes, at most {_MAX_RECORD_BYTES:,} are allowed")
    items = from_json(rest[4:], allow_inf_nan=False)
    if not isinstance(items, list):
        raise ValueError("it is not a list of records")
    items = cast("list[Any]", items)
    if len(items) > _MAX_RECORDS:
        raise ValueError(f"it has {len(items):,} records, at most {_MAX_RECORDS} are allowed")
    return items


def _text_chunk(keyword: str, text: str) -> bytes:
    body = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
