"""A computation on a GPU that is recorded once, and then starts as one.

Where one token is computed, the host takes ten times as long to start a thousand kernels as the GPU takes to
run them.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Recorded:
    """A computation with the same tensors at every call, and the tensor that it results in."""

    def __init__(self, work: Callable[[], Tensor], device: torch.device):
        """Call `work` once, and record a second call. It must read nothing back from the GPU."""
        with torch.cuda.device(device):
            aside = torch.cuda.Stream(device)
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                work()  # libraries take their memory at a first call, which cannot be recorded
            torch.cuda.current_stream(device).wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads, such as those of other models, go on meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._result = work()

    def __call__(self) -> Tensor:
        """The result, which the next call overwrites."""
        self._graph.replay()
        return self._result
