"""Who is calling: the one value that a surface makes for every call."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from storage import LOCAL as LOCAL
from tools.base import JobStatus, ToolError

READ = "studio:read"
"""The scope to see what is there: images, records, jobs."""
WRITE = "studio:write"
"""The scope to make, change or end something."""
SCOPES = frozenset({READ, WRITE})
"""All rights."""


@dataclass(frozen=True)
class Caller:
    """On whose behalf a call is made, what it may read, and how its client gets progress."""

    principal: str
    """Owner of jobs and records: `LOCAL`, or the name of the bearer token."""
    client: str
    """Unit of fairness in the queue: the principal of a token, an IP address, `stdio` or `command line`."""
    folders: tuple[Path, ...] = ()
    """Folders it may read images from."""
    on_progress: Callable[[JobStatus], Awaitable[None]] | None = None
    """Called on the event loop, at most once per step."""
    partial_images: int = 0
    """Previews of the picture so far that come with the progress of one job."""
    idempotency_key: str | None = None
    """Calls with the same key and arguments are one call, which goes on when its caller goes away."""
    timeout_s: float | None = None
    """Seconds after which the client gives up waiting; None waits for ever."""
    scopes: frozenset[str] = SCOPES
    """What it may do."""
    previews: bool = False
    """Whether answers show it previews of the images they name."""
    address_of: Callable[[str], str] | None = None
    """The address at which a browser opens the image of an id; None where there is none."""
    own_addresses: tuple[str, ...] = ()
    """Addresses of this server as its client may write them, in lower case: `http://localhost:8765`."""


def insufficient(needed: str) -> ToolError:
    """Why a caller without the scope `needed` is refused."""
    advice = f"Use a token that has the scope {needed}."
    return ToolError("forbidden", f"This needs the scope {needed}, which your token does not have.", advice)
