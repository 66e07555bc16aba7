"""A model for the examples: the tiny checkpoint, with a card that makes small pictures in few steps."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from omnigen2.checkpoints.card import published_card

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "pipeline" / "checkpoint"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What an example runs with: that model, a store of its own, and the console script on the path."""
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    card = published_card("small").model_dump(mode="json")
    for ability in ("text_to_image", "edit", "compose"):
        card["defaults"][ability] |= {"steps": 2}
    for ability in ("text_to_image", "compose"):
        card["defaults"][ability] |= {"width": 32, "height": 32}
    card["defaults"]["describe"]["max_tokens"] = 4
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    settings = {"OMNIGEN2_MODEL": str(folder), "OMNIGEN2_STORE": str(tmp_path / "store")}
    bin_folder = Path(sys.executable).parent
    # A client hands its environment on only in part: on the path lies a server that has its settings already.
    shim = tmp_path / "bin" / "omnigen2-mcp"
    shim.parent.mkdir()
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    shim.write_text(f'#!/bin/sh\n{given} exec {bin_folder}/omnigen2-mcp "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    path = os.pathsep.join((str(shim.parent), str(bin_folder), os.environ.get("PATH", "")))
    return os.environ | settings | {"PATH": path}
