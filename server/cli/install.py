"""`omnigen2-mcp install`: add this server to an MCP client."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from server.cli import hosts
from server.cli.output import AsJson, show

app = App(name="install", help="Add this server to the configuration of an MCP client.")


@app.default
def install(
    client: hosts.Host,
    /,
    *,
    allow_dir: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    name: str = "omnigen2",
    print_only: Annotated[bool, Parameter(name="--print", negative=())] = False,
    as_json: AsJson = False,
) -> None:
    """Add this server to the configuration of an MCP client, for this user.

    Other entries stay as they are. A backup of the file is kept beside it; a file with mistakes or comments
    that would be lost is not touched.

    Parameters
    ----------
    client
        The program to add it to.
    allow_dir
        A folder that the tools may read and write; may be given several times. Cursor and VS Code always give
        the folder of the open project.
    name
        What the client calls the server.
    print_only
        Print the entry instead, to be pasted.
    """
    folders = tuple(word for folder in allow_dir for word in ("--allow-dir", str(_existing(folder))))
    entry = hosts.entry(client, folders)
    if print_only:
        print(hosts.rendered(client, name, entry), end="")
        return
    path, backup, changed = hosts.merge(client, name, entry)
    value = {"file": str(path), "changed": changed, "backup": backup and str(backup), "entry": entry}
    kept = f" The file as it was: {backup}." if backup else ""
    line = f"Added {name} to {path}.{kept} Restart {client}." if changed else f"{name} is in {path} already."
    show(value, line, as_json=as_json)


def _existing(folder: Path) -> Path:
    """The absolute path of a folder. Raises ValueError if there is none."""
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"allow_dir: there is no folder {folder}")
    return folder
