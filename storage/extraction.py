"""Finds the records that `storage/embedding.py` has put into an image file, as text that is not yet parsed.

In PNG they are an iTXt chunk (PNG 3rd edition, section 11.3.3.4), in other formats a property of the XMP
packet (ISO 16684-1), which other programs keep when they save the file again. Runs on untrusted bytes: XMP is
parsed in a worker process only (`storage/worker.py`), which imports this module and therefore little else.
"""

from storage import containers
from storage.containers import PNG_SIGNATURE

RECORDS = "omnigen2:records"
"""Keyword of the iTXt chunk, and name of the XMP property."""
NAMESPACE = "omnigen2-mcp:ns:history/"
"""XML namespace of the property."""
MAX_TEXT = 16_000_000
"""Maximum size in bytes of the text."""
_ITXT_HEAD = b"\0\0\0\0"
"""Not compressed; language and translated keyword are empty."""


class Unreadable(ValueError):
    """There is a history, which cannot be read; the argument says why."""


def without_texts(data: bytes) -> bytes | None:
    """An exported PNG without its texts; None for a PNG with other chunks and for any other file.

    Raises:
        ImageRejected: it has too many chunks.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    parts = [PNG_SIGNATURE]
    exported = False
    for name, at, end in containers.chunks(data):
        if name == b"iTXt":
            exported = exported or _is_history(data, at)
        elif name in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(data[at:end])
        else:
            return None
    return b"".join(parts) if exported else None


def history_of_png(png: bytes) -> bytes:
    """The text of the last history in a PNG, empty if there is none. Raises Unreadable and ImageRejected."""
    found = b""
    for name, at, end in containers.chunks(png):
        if name == b"iTXt" and _is_history(png, at):
            found = png[at + 8 + len(RECORDS) + 1 : end - 4]
    if found and not found.startswith(_ITXT_HEAD):
        raise Unreadable("it is compressed or has a language tag")
    return _checked(found[len(_ITXT_HEAD) :])


def history_of_xmp(packet: bytes) -> bytes:
    """The text of the history in an XMP packet, empty if there is none. Raises Unreadable."""
    if NAMESPACE.encode() not in packet:
        return b""
    if b"<!DOCTYPE" in packet or len(packet) > 2 * MAX_TEXT:
        raise Unreadable("its XMP packet is too large or has a document type")
    from xml.etree import ElementTree  # rarely needed

    name = f"{{{NAMESPACE}}}{RECORDS.partition(':')[2]}"
    try:
        for element in ElementTree.fromstring(packet.strip(b"\0 \r\n\t")).iter():
            # A simple property is an element or an attribute, as the program that saved it likes.
            text = (element.text or "") if element.tag == name else element.get(name)
            if text is not None:
                return _checked(text.encode("utf-8", "surrogatepass"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise Unreadable(f"its XMP packet is damaged ({error})") from error
    return b""


def _is_history(png: bytes, at: int) -> bool:
    return png.startswith(RECORDS.encode() + b"\0", at + 8)


def _checked(text: bytes) -> bytes:
    if len(text) > MAX_TEXT:
        raise Unreadable(f"it has {len(text):,} bytes, at most {MAX_TEXT:,} are allowed")
    return text
