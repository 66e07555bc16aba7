"""What is done when a device runs out of memory: caches are freed, and less of the model stays on it."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from omnigen2.memory.device import is_out_of_memory
from omnigen2.pipeline import Pipeline

T = TypeVar("T")
log = logging.getLogger(__name__)


class DeviceMemory:
    """The memory that a model and its tasks share. For the thread that owns the device."""

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self.caches: list[Callable[[], None]] = [pipeline.forget]
        """What empties the caches there are."""

    def free(self) -> None:
        """Free every cache. Not to be called while an exception is handled: it keeps tensors alive."""
        for forget in self.caches:
            forget()
        gc.collect()
        torch.cuda.empty_cache()

    @property
    def can_lower(self) -> bool:
        """Whether less of the model can stay on the device."""
        return self._pipeline.residency.can_lower

    def lower(self) -> None:
        """Keep less of the model on the device."""
        self.free()
        self._pipeline.residency.lower()
        log.warning("out of memory: the model goes on with memory %s", self._pipeline.residency.mode)
        self.free()

    def survive(self, work: Callable[[], T]) -> T:
        """The result of `work`, which is done again if memory ran out, once caches and weights made room."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handlers, where no traceback keeps the tensors of the attempt alive.
        self.free()
        while True:
            try:
                return work()
            except Exception as error:
                if not (is_out_of_memory(error) and self.can_lower):
                    raise
            self.lower()
