"""What `python -m benchmarks.plan` counts: a GPU's kernels and memory, from the real code without a GPU."""

import pytest
import torch

from benchmarks.counting import GPU, counting
from benchmarks.peaks import counted, measured_apart
from benchmarks.plan import count


def test_kernels_bytes_and_copies_are_counted() -> None:
    with counting() as counter, counter.counted() as work:
        x = torch.zeros(8, 16).to(GPU)  # a copy
        y = (x + x[:1]).view(16, 8)  # one kernel: reads 8 x 16 and 1 x 16 values, writes 8 x 16
        product = y @ y.T  # 2 x 16 x 8 x 16
        bounds = torch.tensor([0, 3, 8]).to(GPU)
        assert bounds.diff().tolist() == [3, 5]  # integers are known; a copy back, and a wait
        del product
    assert (work.copies, work.syncs, work.kernels) == (3, 1, 3)
    assert work.elementwise_bytes == 4 * (128 + 16 + 128) + 8 * (2 + 2 + 2)
    assert work.product_flop == 2 * 16 * 8 * 16


def test_memory_is_counted_for_as_long_as_it_is_held() -> None:
    with counting() as counter:
        a = torch.empty(1000, device=GPU)
        with counter.counted() as work:
            b = a * 2
            part = b[:10]
            del b
            assert counter.held_bytes == 8000, "a view holds all of its memory"
            del part
            c = a * 3
        assert (work.peak_bytes, counter.held_bytes) == (8000, 8000)
        del c, a
    assert counter.held_bytes == 0


def test_a_step_at_full_size_is_counted_exactly() -> None:
    resident = count("edit", 512, "resident").told()
    assert resident["weights_gb"] == pytest.approx(15.61, abs=0.01)
    assert resident["syncs"] == 0 and resident["copies"] == 1
    # 4 x 2520 for each pair of tokens that attend to each other, in 32 layers; the refiners have 4 % more
    full, bare = 300 + 1024 + 1024, 100 + 1024
    branches = [full, full - 200, bare]
    assert resident["attention_tflops"] == pytest.approx(
        32 * 4 * 2520 * sum(n * n for n in branches) / 1e12, rel=0.05
    )


def test_counted_memory_is_what_a_process_takes() -> None:
    taken = measured_apart("tiny", 512)
    expected = counted("tiny", 512)
    for stage in ("step", "decode"):  # to prepare needs the host's memory, too: pictures before they are sent
        assert taken[stage] == pytest.approx(expected[stage], rel=0.15)
