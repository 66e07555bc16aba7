"""SIGKILL at random moments; the rig is `benchmarks/store_crash.py`, which does the same 1,000 times."""

from pathlib import Path

from benchmarks import store_crash


def test_eighty_kills_lose_nothing_that_was_given_out(tmp_path: Path):
    seen = store_crash.crash(tmp_path / "store", kills=80)
    assert seen.kills == 80
    assert len(seen.ids) > 400, "the victims died before they did anything"
    assert seen.left_over > 0, "nobody died in the middle of a put"


def test_kills_during_collections_lose_nothing_that_is_kept(tmp_path: Path):
    assert store_crash.crash_in_collection(tmp_path / "store", kills=30) > 0
