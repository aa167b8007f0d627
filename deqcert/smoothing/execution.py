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
from deqcert.smoothing.memory import Footprint

Argument = TypeVar("Argument")
Result = TypeVar("Result")

# Bytes of state per batch. On a CPU a batch then stays in its caches. On a GPU larger batches are faster up to a GiB
# (docs/performance.md).
_STATE_BYTES, _CUDA_STATE_BYTES = 3 * 2**20, 2**30
_MINIMUM_ROWS = 8

# Of the free memory; the rest is for what kernels allocate for themselves and for gaps between blocks.
_SHARE = 0.8

# On a CPU, of a classifier without a state: what more would not make faster (34 rows of ResNet-50 at 224 × 224).
FREE_BYTES = 2**30

# Below the largest block that glibc's malloc will keep (mallopt(3), M_MMAP_THRESHOLD).
_KEPT_BYTES = 31 * 2**20


@dataclass(frozen=True)
class Execution:
    """How noisy samples are spread over batches. Votes depend on it through the rounding of kernels only.

    Args:
        rows: Maximum number of noisy samples per batch, >= 1; null chooses by device, size of the state
            (docs/performance.md) and free memory of a GPU (docs/memory.md). Batches that do not fit are halved.
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

    def spread(
        self, state: Tensor | None, width: int, footprint: Footprint | None = None, free: int = 0
    ) -> tuple[int, int]:
        """Return how many images go side by side, and the maximum of rows per batch.

        Args:
            state: That of one row, shape (1, ...); None for a classifier without one.
            width: Noisy samples of each image that go side by side.
            footprint: What a noisy sample takes of the free memory; None for a state on a CPU.
            free: Bytes of free memory.
        """
        if state is None:
            images, fitting = self.images or 1, width * (self.images or 1)
        else:
            room = _STATE_BYTES if footprint is None else _CUDA_STATE_BYTES
            fitting = max(_MINIMUM_ROWS, room // state.nbytes)
            # On a CPU a batch is smaller than a chain.
            images = self.images or 1
        if footprint is not None:
            usable = int(_SHARE * free)
            fitting = min(fitting, usable // sum(footprint))
            if state is not None:
                images = self.images or max(1, math.ceil(fitting / width))
            fitting = min(fitting, (usable - images * width * footprint.held) // footprint.row)
        total, fitting = images * width, max(1, fitting)
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
