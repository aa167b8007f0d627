"""How noisy samples are spread over batches, images and the cores of a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deqcert.errors import require_count

Argument = TypeVar("Argument")
Result = TypeVar("Result")

# Bytes of state per batch. On a CPU a batch then stays in its caches. On a GPU larger batches are faster up to a GiB
# (docs/performance.md); a batch takes some 17 times its states, which must fit into half of the memory.
_STATE_BYTES, _CUDA_STATE_BYTES, _CUDA_SHARE = 3 * 2**20, 2**30, 1 / 40
_MINIMUM_ROWS = 8

# Below the largest block that glibc's malloc will keep (mallopt(3), M_MMAP_THRESHOLD).
_KEPT_BYTES = 31 * 2**20


@dataclass(frozen=True)
class Execution:
    """How noisy samples are spread over batches. Votes depend on it through the rounding of kernels only.

    Args:
        rows: Maximum number of noisy samples per batch, >= 1; null chooses by device and size of the state
            (docs/performance.md).
        images: Images side by side, >= 1; their samples share batches. null: one on a CPU, as many as fill a batch
            elsewhere.
        compile: Compile the network with ``torch.compile`` (needs a C++ compiler on a CPU; CUDA graphs on a GPU).
    """

    rows: int | None = None
    images: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for field in ("rows", "images"):
            if getattr(self, field) is not None:
                require_count(f"execution.{field}", getattr(self, field), minimum=1)

    def spread(self, state: Tensor | None, width: int) -> tuple[int, int]:
        """Return how many images go side by side, ``width`` noisy samples of each, and the maximum of rows per batch.

        ``state`` is that of one row, shape (1, ...); None for a classifier without one.
        """
        if state is None:
            images = self.images or 1
            return images, self.rows or images * width
        room = _STATE_BYTES
        if state.is_cuda:
            memory = torch.cuda.get_device_properties(state.device).total_memory
            room = min(_CUDA_STATE_BYTES, int(_CUDA_SHARE * memory))
        fitting = max(_MINIMUM_ROWS, room // state.nbytes)
        # On a CPU a batch is smaller than a chain.
        images = self.images or (1 if state.device.type == "cpu" else math.ceil(fitting / width))
        total = images * width
        return images, self.rows or math.ceil(total / math.ceil(total / fitting))  # batches of equal size


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
