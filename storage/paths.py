"""The default place of a store."""

import os
import sys
from pathlib import Path


def default_store_path() -> Path:
    """The default store folder, in the user data directory of this operating system."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "omnigen2-mcp" / "store"
