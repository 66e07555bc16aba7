"""Twenty thousand hostile inputs, always the same; `python -m benchmarks.fuzz` looks for new ones."""

from pathlib import Path

import pytest

from benchmarks.fuzz import judged
from benchmarks.fuzz_targets import TARGETS

COUNT = 20_000


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_refused_as_documented_quickly_and_in_little_memory(name: str, tmp_path: Path):
    count = round(COUNT * TARGETS[name].share)
    watch = judged(name, count, folder=tmp_path)
    assert watch.seen.total() == count
    assert len(watch.seen) > 1, f"nothing but {watch.seen}: the inputs do not get far enough"
