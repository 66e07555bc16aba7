"""The default place of a store."""

from pathlib import Path

from platformdirs import user_data_path


def default_store_path() -> Path:
    """The default store folder, in the user data directory of this operating system."""
    return user_data_path("omnigen2-mcp") / "store"
