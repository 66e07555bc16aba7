"""The console script: checks that this program can run here, then starts it.

The other packages have common names (`server`, `tools`, `storage`). This one does not, so it is imported even
where another distribution shadows them, and can say so. It imports nothing that a foreign system lacks.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("server", "tools", "storage")
HOME = Path(__file__).resolve().parents[1]
"""The folder that all packages of this distribution are in."""
CANNOT_RUN = 2


def main() -> None:
    """Run the command line, or exit with a line that says why it cannot run."""
    reason = unsupported(sys.platform) or shadowed()
    if reason:
        print(f"omnigen2-mcp: {reason}", file=sys.stderr)
        sys.exit(CANNOT_RUN)
    import_module("server.cli.main").main()  # by name: the model's package does not depend on the server


def unsupported(platform: str) -> str | None:
    """Why the program cannot run on `platform`, a value of `sys.platform`; None if it can."""
    if platform.startswith(("linux", "darwin")):
        return None
    return f"it runs on Linux and macOS, not on {platform}; on Windows, install it inside WSL 2"


def shadowed() -> str | None:
    """Which package of another distribution, or folder, is imported in the place of ours; None if none is."""
    for name in PACKAGES:
        found = find_spec(name)
        places = [Path(place).resolve() for place in (found and found.submodule_search_locations) or ()]
        if HOME / name in places:
            continue
        where = (found and found.origin) or (places[0] if places else "nowhere")
        return (
            f"its package `{name}` is imported from {where} instead of {HOME / name}; install it in an "
            "environment of its own: `uv tool install omnigen2-mcp` or `pipx install omnigen2-mcp`"
        )
    return None
