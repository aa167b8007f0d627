"""How much memory the votes of an image take: docs/memory.md has the formula, and what was measured of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.solvers import Solver

# How often the images of noisy samples lie in memory side by side: what is drawn and what is classified; an audit picks
# some of them in between.
_COPIES, _COPIES_AUDITED = 2, 3


class Footprint(NamedTuple):
    """Bytes of memory per noisy sample.

    Attributes:
        row: While it is in a batch that is classified.
        held: While it waits beside that: as an image, and in a chain as the fixed point of its slot.
    """

    row: int
    held: int


@torch.no_grad()
def footprint(base: nn.Module, image: Tensor, proposals: Sequence[Solver] = ()) -> Footprint:
    """Count what a noisy sample of ``image`` takes, from evaluations of one and of two rows.

    What kernels allocate for themselves is not seen, nor what is the same for any number of rows.

    Args:
        base: Base classifier f.
        image: One image, shape (C, H, W), on the device of f.
        proposals: Solvers of the chain besides that of f; none without a chain.
    """
    one, two = (_evaluated(base, image.expand(rows, *image.shape)) for rows in (1, 2))
    row, images = max(1, two.peak - one.peak), _COPIES_AUDITED if proposals else _COPIES
    if not isinstance(base, SolvedClassifier):
        return Footprint(row, images * image.nbytes)
    vectors = max(solver.vectors for solver in (base.solver, *proposals))
    # One vector, the start, has been counted.
    return Footprint(row + (vectors - 1) * one.state, images * image.nbytes + bool(proposals) * one.state)


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a GPU, those that torch keeps for it included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class _Evaluated(NamedTuple):
    peak: int
    state: int


def _evaluated(base: nn.Module, x: Tensor) -> _Evaluated:
    """Return the bytes alive at most during one evaluation of each part of f, and those of the state."""
    with _Allocations() as allocations:
        if not isinstance(base, SolvedClassifier):
            base(x)
            return _Evaluated(allocations.peak, 0)
        network = base.network
        injection = network.inject(x)
        state = network.start_state(injection, base.start)
        network.cell(state, injection)
        network.head(state)
        return _Evaluated(allocations.peak, state.nbytes)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of all tensors that operations return, as long as these are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        returned = func(*args, **(kwargs or {}))
        for each in tree_leaves(returned):
            if isinstance(each, Tensor) and (storage := each.untyped_storage())._cdata not in given:
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        self.peak = max(self.peak, self._alive)
        return returned

    def _add(self, size: int) -> None:
        self._alive += size
