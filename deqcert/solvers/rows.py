"""Rows of a batch: their inner products, weighted sums, room for their history, and how many of them still run."""

from __future__ import annotations

import torch
from torch import Tensor


def inner_products(vectors: Tensor, target: Tensor) -> Tensor:
    """Return ⟨vectors_j, target⟩ row by row, shapes (m, B, D) and (B, D) to (B, m)."""
    # The row vector on the left: with it on the right BLAS libraries take ten times as long.
    with _full_precision(target):
        return torch.bmm(target[:, None], vectors.permute(1, 2, 0))[:, 0]


def weighted_sum(vectors: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_j weights_j vectors_j row by row, shapes (m, B, D) and (B, m) to (B, D); zero for m = 0."""
    with _full_precision(vectors):
        return torch.bmm(weights[:, None].to(vectors.dtype), vectors.transpose(0, 1))[:, 0]


def select_rows(vectors: Tensor, rows: Tensor, count: int) -> Tensor:
    """Move ``rows``, positions of shape (b,), of the first ``count`` vectors to the front; (m, B, D) to (m, b, D).

    The result is a view, so that a history needs no second room while a batch shrinks.
    """
    for vector in vectors[:count]:
        vector[: len(rows)] = vector[rows]
    return vectors[:, : len(rows)]


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context without autocast, which is for evaluations of F: it would round the state itself."""
    return torch.autocast(tensor.device.type, enabled=False)


class Workspace:
    """Room for the history of a solve that the next solve takes over. For one solve at a time."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def take(self, vectors: int, start: Tensor) -> Tensor:
        """Return an uninitialized tensor of shape (vectors, B, D) for a batch like ``start``, shape (B, D)."""
        kept = self._kept
        fits = kept is not None and len(kept) >= vectors and kept.shape[1:] == start.shape
        if kept is None or not fits or kept.dtype != start.dtype or kept.device != start.device:
            kept = self._kept = None  # before the new room is taken
            kept = self._kept = start.new_empty(vectors, *start.shape)
        return kept[:vectors]


class RunningRows:
    """Tells the host how many rows still run, without making it wait for a GPU.

    On a GPU the answer is of some earlier step, not ``exact``. Rows that have stopped never run again, so it is never
    too small.
    """

    def __init__(self, start: Tensor) -> None:
        self.exact = not start.is_cuda
        self._known = len(start)
        self._copied: tuple[torch.cuda.Event, Tensor] | None = None

    def count(self, running: Tensor) -> int:
        """Return an upper bound on the number of true elements of ``running``, shape (B,), bool."""
        if self.exact:
            return int(running.sum())
        if self._copied is not None and self._copied[0].query():  # type: ignore[no-untyped-call]
            self._known, self._copied = int(self._copied[1]), None
        if self._copied is None:
            host = torch.empty((), dtype=torch.int64, pin_memory=True)
            host.copy_(running.sum(), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied = event, host
        return self._known
