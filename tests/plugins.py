"""Plugins for server processes, as if they were installed."""

import os
from collections.abc import Mapping
from pathlib import Path

from server.hookspecs import PROJECT

ROOT = Path(__file__).parents[1]


def with_plugins(environment: Mapping[str, str], folder: Path, *modules: str) -> dict[str, str]:
    """The environment of a process that finds these modules as plugins.

    They are in `folder`, where what declares them is written, or belong to the tests.
    """
    described = folder / "plugins-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: plugins\nVersion: 1\n", encoding="utf-8"
    )
    entries = "".join(f"{module.rpartition('.')[2]} = {module}\n" for module in modules)
    (described / "entry_points.txt").write_text(f"[{PROJECT}]\n{entries}", encoding="utf-8")
    return {**environment, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
