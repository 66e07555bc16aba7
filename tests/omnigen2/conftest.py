"""A tiny model that every stage of training has made, for the tests that train or load one."""

from pathlib import Path

import pytest

import omnigen2
from omnigen2.nano.stages import tokens
from omnigen2.nano.stages.config import StagesConfig
from omnigen2.nano.stages.run import run
from omnigen2.training.config import read_config

NANO_CONFIG = Path(omnigen2.__file__).parent / "nano" / "stages" / "nano.toml"
SMALL = {
    "hidden_size = 192": "hidden_size = 32",
    "axes_dim_rope = [16, 24, 24]": "axes_dim_rope = [8, 4, 4]",
    "num_attention_heads = 3": "num_attention_heads = 2",
    "num_key_value_heads = 3": "num_key_value_heads = 2",
    "num_kv_heads = 3": "num_kv_heads = 1",
    "num_layers = 6": "num_layers = 1",
    "num_hidden_layers = 4": "num_hidden_layers = 1",
    "mrope_section = [8, 12, 12]": "mrope_section = [2, 3, 3]",
    'rope_type = "longrope"': 'rope_type = "default"',
    "text_feat_dim = 192": "text_feat_dim = 32",
    "hidden_size = 128": "hidden_size = 32",
    "block_out_channels = [16, 32, 48, 64]": "block_out_channels = [8, 8, 8, 8]",
}


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano's own configuration, made tiny: every stage takes two steps."""
    folder = tmp_path_factory.mktemp("run")
    text = NANO_CONFIG.read_text(encoding="utf-8")
    for old, new in SMALL.items():
        assert old in text, old
        text = text.replace(old, new)
    lines = []
    for line in text.splitlines():
        if line.startswith("steps = ") and len(line) > len("steps = 99"):
            line = "steps = 2"
        elif line.startswith("batch = "):
            line = (
                "batch = { "
                + ", ".join(f"{part.split('=')[0]} = 2" for part in line[10:-2].split(","))
                + " }"
            )
        elif line.startswith("output = "):
            line = f'output = "{folder}"'
        elif line.startswith("sides = "):
            line = "sides = [64]"
        lines.append(line)
    (folder / "small.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "small.toml"


@pytest.fixture(scope="session")
def small(small_config: Path) -> Path:
    """A model trained by every stage, in the published layout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "WORDS_FROM", 300)
        card = run(read_config(small_config, StagesConfig))
    assert card is not None and card.digest
    return small_config.parent / "model"
