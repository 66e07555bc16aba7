"""How many threads of the CPU a model computes with: one, or as many as there are.

Threads share every operation of a layer, and each operation lasts until the last thread is done. Where other
processes want the cores too, that one waits for its turn, however small the operation: with two threads a
step of a small model then takes ten times as long as with one, or more. So there are threads only where they
save more than they may have to wait.

The choice is between one and all, and by processor time, so that a machine makes the same one however busy it
is: the rounding of a convolution depends on the number of threads. (That of a product of matrices does not:
see `omnigen2/__init__.py`.)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from omnigen2.network.blocks import ModulatedNorm
from omnigen2.network.positions import rotations
from omnigen2.network.transformer import OmniGen2Transformer2DModel

ALL = torch.get_num_threads()
"""The threads that torch has when the process starts: the cores, or what OMP_NUM_THREADS says."""
WAIT_S = 0.06
"""Seconds that threads may wait for each other in a layer: 20 operations, a time slice of 3 ms each."""
TOKENS = 256
"""Length of the sequence by which a layer is measured: short for a large model, long for a small one."""


def worthwhile(layer_s: float, most: int = ALL) -> int:
    """1, or `most` threads where those save enough of what a layer takes one thread alone."""
    return most if layer_s * (1 - 1 / most) > WAIT_S else 1


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Compute with so many threads, in the calling thread.

    Matrix products take the number from the process: where models in several threads differ, it is to be set
    again for every piece of work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def layer_seconds(transformer: OmniGen2Transformer2DModel) -> float:
    """Processor time of a layer in one thread, on a CPU: the least of three, or fewer if they are slow."""
    layer, config, device = transformer.layers[0], transformer.config, transformer.device
    assert isinstance(layer.norm1, ModulatedNorm)
    tokens = torch.zeros(TOKENS, config["hidden_size"], dtype=transformer.dtype)
    rotation = rotations(np.zeros((TOKENS, 3), dtype=np.int64), config["axes_dim_rope"], device)
    bounds = torch.tensor([0, TOKENS], dtype=torch.int32)
    owner = torch.zeros(TOKENS, dtype=torch.int64)
    moment = torch.zeros(1, layer.norm1.linear.in_features, dtype=transformer.dtype)
    seconds: list[float] = []
    with limited_to(1):
        while len(seconds) < 3 and sum(seconds) < 1.0:
            started = time.thread_time()
            layer(tokens, rotation, bounds, TOKENS, moment, owner)
            seconds.append(time.thread_time() - started)
    return min(seconds)
