"""The number of threads follows what a layer is worth, and changes no result."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from PIL.Image import Image

import omnigen2
from omnigen2.model import OmniGen2
from omnigen2.network import threads
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.task import Progress
from tests.omnigen2.test_engine import Engine, task


@pytest.fixture(scope="module")
def nano() -> OmniGen2:
    return omnigen2.load("nano", device="cpu")


@pytest.fixture(autouse=True)
def process_threads() -> Iterator[int]:
    """The process has two threads, on any machine."""
    with threads.limited_to(2):
        yield 2


@pytest.mark.parametrize(
    ("layer_s", "most", "wanted"),
    [(0.005, 2, 1), (0.005, 128, 1), (0.05, 128, 1), (0.6, 2, 2), (0.6, 128, 128), (60.0, 1, 1)],
)
def test_threads_are_used_where_they_save_more_than_they_may_wait(
    layer_s: float, most: int, wanted: int
) -> None:
    assert threads.worthwhile(layer_s, most) == wanted


def test_a_small_model_takes_one_thread_and_a_large_one_all(nano: OmniGen2) -> None:
    large = OmniGen2Transformer2DModel(
        hidden_size=2048,
        num_layers=1,
        num_refiner_layers=0,
        num_attention_heads=32,
        axes_dim_rope=(16, 24, 24),
    )
    assert threads.worthwhile(threads.layer_seconds(nano.pipeline.transformer), 8) == 1
    assert threads.worthwhile(threads.layer_seconds(large), 8) == 8


def test_a_model_computes_in_its_own_number_of_threads(nano: OmniGen2, process_threads: int) -> None:
    assert nano.threads == 1
    seen: list[int] = []

    def note(*_: object) -> None:
        seen.append(torch.get_num_threads())

    nano.generate("a red circle", steps=2, width=32, height=32, on_step=note)
    assert torch.get_num_threads() == process_threads  # the caller's own is as it was

    def listen(progress: Progress) -> None:
        note()

    engine = Engine(nano)
    engine.submit(task(nano), listen).future.result(60)
    engine.close()
    assert set(seen) == {1}


def test_the_processes_threads_change_no_picture(nano: OmniGen2) -> None:
    def make() -> bytes:
        (made,) = nano.generate("a red circle", steps=2, seed=1)
        assert isinstance(made, Image)
        return made.tobytes()

    two = make()
    with threads.limited_to(1):
        assert make() == two


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="it is a promise of that library")
def test_threads_change_no_bit_of_a_product_of_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 5, 6, 17, 112, 300):
        for outer, inner in ((192, 768), (768, 192), (192, 192), (192, 64)):
            x, weight = (torch.randn((n, inner), generator=generator) for n in (rows, outer))
            two = F.linear(x, weight)
            with threads.limited_to(1):
                assert torch.equal(F.linear(x, weight), two), (rows, outer, inner)
