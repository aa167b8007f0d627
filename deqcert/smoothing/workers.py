"""Work on the cores of a CPU side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Argument = TypeVar("Argument")
Result = TypeVar("Result")

# Below the largest block that glibc's malloc will keep (mallopt(3), M_MMAP_THRESHOLD).
_KEPT_BYTES = 31 * 2**20


class Workers:
    """CPU threads of one core each. A batch is too small to be shared between cores; several at once are not."""

    def __init__(self) -> None:
        cores = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) if cores > 1 else None
        if self._pool is not None:
            list(self._pool.map(lambda _: None, range(cores)))
            torch.set_num_threads(cores)  # of the threads to come, which is the last number that any thread set
        # malloc gives freed blocks above a threshold back to the system, and each page of the next one costs a fault.
        # The threshold follows the largest block freed so far.
        torch.empty(_KEPT_BYTES, dtype=torch.uint8)

    def map(self, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> list[Result]:
        """Call ``function`` with each argument, without gradients, under the autocast mode of the caller."""
        if self._pool is None:
            return [function(argument) for argument in arguments]
        autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

        def alone(argument: Argument) -> Result:
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
                return function(argument)

        return list(self._pool.map(alone, arguments))
