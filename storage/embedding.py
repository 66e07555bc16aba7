"""A record inside a PNG: put in on export, taken out on import, without touching the pixels.

Knows PNG chunks (PNG 3rd edition, section 11.3.3.4, iTXt) and the customs of others: the `parameters` text
that image tools show, and XMP with the IPTC source type for pictures made by a model. The bytes of the
picture come out exactly as they went in, so its id survives the journey.
"""

import zlib
from collections.abc import Sequence
from xml.sax.saxutils import escape

from pydantic import TypeAdapter, ValidationError

from storage import containers
from storage.containers import PNG_SIGNATURE
from storage.digest import Digest
from storage.errors import InvalidArgument
from storage.records import Record, canonical

RECORDS = "omnigen2:records"
PARAMETERS = "parameters"
XMP = "XML:com.adobe.xmp"

_record_list = TypeAdapter(list[Record])
_MOST_BYTES = 4_000_000
"""Of the records in a file; an image has a handful of a few kilobytes."""
_CUSTOMARY = {
    "steps": "Steps",
    "scheduler": "Sampler",
    "text_guidance_scale": "CFG scale",
    "seed": "Seed",
}
_MADE_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
{properties}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def embed(png: bytes, image: Digest, records: Sequence[Record]) -> bytes:
    """`png` with its records, and with what other programs read of the first of them."""
    texts = {RECORDS: _as_list(records), XMP: _xmp(image, records)}
    if records:
        texts[PARAMETERS] = parameters_text(records[0])
    after_header = 8 + 25
    chunks = b"".join(_text_chunk(keyword, text) for keyword, text in texts.items())
    return png[:after_header] + chunks + png[after_header:]


def extract(data: bytes) -> tuple[bytes, list[Record]] | None:
    """The picture and the records in bytes that `embed` made; None if they are not of that kind.

    What comes back as the picture consists of header, pixels and end only. Nothing is believed: neither
    that it decodes, nor that the records speak of it.

    Raises:
        ImageRejected: it has more chunks than any honest file.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    picture = [PNG_SIGNATURE]
    records: list[Record] | None = None
    for name, at, end in containers.chunks(data):
        chunk = data[at:end]
        if name == b"iTXt":
            keyword, _, rest = chunk[8:-4].partition(b"\0")
            if keyword == RECORDS.encode():
                records = _from_list(rest)
        elif name in (b"IHDR", b"IDAT", b"IEND"):
            picture.append(chunk)
        else:
            return None
    return (b"".join(picture), records) if records is not None else None


def parameters_text(record: Record) -> str:
    """The conventional text: prompt, negative prompt, then one line of `Name: value`."""
    given = record.parameters
    words = given.get("prompt") or given.get("instruction") or given.get("question") or ""
    lines = [str(words)]
    if given.get("negative_prompt"):
        lines.append(f"Negative prompt: {given['negative_prompt']}")
    values = {name: value for name, value in given.items() if isinstance(value, int | float | str)}
    facts = {_CUSTOMARY[name]: values[name] for name in _CUSTOMARY if name in values}
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
        properties.append(f"<xmp:CreatorTool>omnigen2-mcp {escape(maker.tool)}</xmp:CreatorTool>")
        words = escape(maker.searched_text())
        properties.append(
            f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{words}</rdf:li></rdf:Alt>'
            "</dc:description>"
        )
        if maker.model:
            properties.append(
                f"<Iptc4xmpExt:DigitalSourceType>{_MADE_BY_MODEL}</Iptc4xmpExt:DigitalSourceType>"
            )
    return _PACKET.format(properties="\n".join(properties))


def _as_list(records: Sequence[Record]) -> str:
    return canonical([record.model_dump(mode="json", exclude_none=True) for record in records]).decode()


def _from_list(rest: bytes) -> list[Record] | None:
    # After the keyword: compression flag and method, two empty texts (language, translation), the text.
    if not rest.startswith(b"\0\0\0\0") or len(rest) > _MOST_BYTES:
        return None
    try:
        records = _record_list.validate_json(rest[4:])
        for record in records:
            _ = record.canonical  # raises
    except (ValidationError, InvalidArgument):
        return None
    return records


def _text_chunk(keyword: str, text: str) -> bytes:
    body = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
