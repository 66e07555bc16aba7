"""What the server says of itself to a client that connects: instructions for its model, icon, web site."""

from base64 import b64encode
from importlib.metadata import metadata

import mcp_types as types

from omnigen2.checkpoints.card import ModelCard

NAME = "omnigen2-mcp"
TITLE = "OmniGen2 image studio"
MAX_INSTRUCTIONS = 1499
"""Characters of the instructions: hosts cut them, some at 2 kB together with other text."""
MAX_TITLE = 60
MAX_ABOUT = 300
INSTRUCTIONS = """\
An image studio. The model at work is {title}: {about}
{advice}
Every image has an id. Name it by its id (8 digits or more) wherever a tool takes an image; never paste \
image data. A result shows small previews; the full image is the linked resource, for the user to open.
An image once made never changes: each change gives a new id, and its history can be asked for.
The same seed gives the same image again; an equal request is answered at once.
Work that takes long can go on in the background: you get a job id to ask about.
When a call fails, the message says what was wrong and what to do; correct that and call again.\
"""
ICON = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48"><rect width="48" height="48" rx="10" \
fill="#2b2d42"/><circle cx="18" cy="20" r="9" fill="#ef476f"/><rect x="22" y="16" width="17" height="17" \
rx="3" fill="#ffd166"/><path d="M9 39 20 24 31 39Z" fill="#06d6a0"/></svg>"""


def instructions(card: ModelCard) -> str:
    """What a language model should know before its first call, what matters first.

    Claims nothing beyond the model's card, whose texts are cut to fit.
    """
    title, about = _fitting(card.title, MAX_TITLE), _fitting(card.about, MAX_ABOUT)
    room = MAX_INSTRUCTIONS - len(INSTRUCTIONS.format(title=title, about=about, advice=""))
    return INSTRUCTIONS.format(title=title, about=about, advice=_fitting(card.advice.prompts, room))


def icons() -> list[types.Icon]:
    """The server's icon."""
    data = b64encode(ICON.encode()).decode("ascii")
    return [types.Icon(src=f"data:image/svg+xml;base64,{data}", mime_type="image/svg+xml", sizes=["any"])]


def website() -> str | None:
    """The address that the package names as its home page, if it names one."""
    for entry in metadata(NAME).get_all("Project-URL") or ():
        label, _, address = entry.partition(",")
        if label.strip().lower() == "homepage":
            return address.strip()
    return None


def _fitting(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
