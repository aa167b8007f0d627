"""The contract of all solvers and the one loop that drives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.solvers.rows import RunningRows, Workspace

Function = Callable[[Tensor], Tensor]
"""The map F whose fixed point is sought: shape (B, ...) to the same shape, row by row."""

Restriction = Callable[[Tensor], Function]
"""Gives F of some rows of the batch only, named by their positions, shape (b,), int64."""

Stop = Literal["relative", "absolute"]
Iterate = Literal["last", "best"]

# Keeps the relative residual of F(z) = 0 finite; far below any tolerance of use.
_TINY = 1e-12

# A batch is halved at most so often, and never below so many rows: evaluating fewer takes as long.
_HALVINGS = 3
_MINIMUM_ROWS = 4


class Solution(NamedTuple):
    """What a solver found, row by row.

    Attributes:
        value: The returned iterates, shape (B, ...) of the start.
        residual: Residual norm ‖F(z) − z‖ (relative: divided by ‖F(z)‖), shape (B,). For ``iterate="best"`` it
            belongs to ``value`` itself; for ``"last"`` to the newest iterate that was evaluated, from which ``value``
            was extrapolated without a further evaluation. Infinite where an evaluation was not finite.
        steps: Evaluations of F until the row stopped, with those that only chose the best; shape (B,), int64.
        converged: Whether the residual met the tolerance, shape (B,), bool.
        diverged: Whether an evaluation was not finite; the row then stopped. Shape (B,), bool.
        evaluations: Rows of F evaluated in all, rows that had stopped included: the cost.
    """

    value: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    diverged: Tensor
    evaluations: int


class Iteration(ABC):
    """One solve under way: the method, and what it remembers of each row besides the newest iterate."""

    @abstractmethod
    def step(self, z: Tensor, fz: Tensor, residual: Tensor) -> Tensor:
        """Return X_{k+1}, finite where the history is, from z = X_k, F(z) and F(z) − z, shape (B, D) each."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep the rows at these positions, shape (b,), int64."""


@dataclass(frozen=True)
class Solver(ABC):
    """Finds z = F(z) for every row of a batch.

    Rows never look at each other: each has its own stopping, steps, residual and returned iterate, so the
    solution of a row does not depend on the batch it is in (up to the rounding of the kernels).

    Args:
        max_steps: Maximum number k of steps per row, >= 1. With tolerance 0 every row takes all of them, in k
            evaluations of F, or k + 1 if the best iterate is returned.
        tolerance: A row stops once its residual is at most this, >= 0. 0 stops at an exact fixed point only.
        stop: Residual norm that is compared with the tolerance: "relative" or "absolute".
        iterate: Returned iterate: "last" is X_k, "best" the one of least residual among X_1, ..., X_k, never X_0.

    Raises:
        SettingError: If a setting is out of range.
    """

    max_steps: int = 30
    tolerance: float = 0.0
    stop: Stop = "relative"
    iterate: Iterate = "last"

    def __post_init__(self) -> None:
        require_count("max_steps", self.max_steps, minimum=1)
        require(self.tolerance >= 0, "tolerance", self.tolerance, "must be >= 0")
        require(self.stop in get_args(Stop), "stop", self.stop, f"must be one of {get_args(Stop)}")
        require(self.iterate in get_args(Iterate), "iterate", self.iterate, f"must be one of {get_args(Iterate)}")

    @property
    def history(self) -> int:
        """How many vectors of the size of the state the method remembers of each row: what memory to expect."""
        return 0

    @property
    def vectors(self) -> int:
        """Those that are held of each row while F is evaluated: the history, start, iterate and best iterate."""
        return self.history + 2 + (self.iterate == "best")

    @abstractmethod
    def init(self, start: Tensor, workspace: Workspace) -> Iteration:
        """Begin one solve from ``start``, shape (B, D); large buffers may come from ``workspace``."""

    @torch.no_grad()
    def solve(
        self,
        function: Function,
        start: Tensor,
        restrict: Restriction | None = None,
        workspace: Workspace | None = None,
    ) -> Solution:
        """Iterate from ``start`` until every row has stopped.

        Args:
            function: F; called with tensors of the shape of ``start``.
            start: X_0, shape (B, ...), floating point.
            restrict: Where given, rows that have stopped leave the batch whenever at least half of it has; the
                rows that stay go on with ``restrict(their positions)``. No solution depends on it but for rounding.
            workspace: Buffers to use again, of one solve at a time; None allocates.
        """
        rows = _Rows.starting(start.flatten(1))
        iteration = self.init(rows.iterate, workspace or Workspace())
        shape, watch, running = start.shape[1:], RunningRows(start), len(start)
        minimum = max(_MINIMUM_ROWS, len(start) >> _HALVINGS)
        best = self.iterate == "best"
        limit = self.max_steps + best
        everything: _Rows | None = None  # with the rows that have left the batch; None while all are here
        places = torch.arange(len(start), device=start.device)  # of the rows in the batch of the start
        calls = evaluations = 0

        while calls < limit:
            # F may compute in a lower precision than that of the state (autocast).
            fz = function(rows.iterate.view(-1, *shape)).flatten(1).to(start.dtype)
            calls, size = calls + 1, len(fz)
            evaluations += size
            residual = fz - rows.iterate
            # The start is never the best iterate: its residual decides nothing then.
            unrated = best and calls == 1
            rows.observe(self._norm(residual, fz), remember_best=best and not unrated)
            if best and calls == limit:
                break
            following = iteration.step(rows.iterate, fz, residual)
            rows.move(following, -1.0 if unrated else self.tolerance, all_run=watch.exact and running == size)
            del fz, residual, following  # not to be held while F is evaluated
            if unrated:
                rows.best = rows.iterate
            if calls == limit or (self.tolerance == 0 and not watch.exact):
                continue
            running = watch.count(rows.running)
            # Without a tolerance rows stop at exact fixed points only: not worth looking for the end.
            if self.tolerance == 0:
                continue
            if running == 0:
                break
            if restrict is not None and size // 2 >= max(running, minimum):
                everything = rows.within(everything, places)
                # The running rows come first; some that have stopped fill up the half.
                kept = rows.running.to(torch.uint8).argsort(descending=True, stable=True)[: size // 2]
                rows, places = rows.select(kept), places[kept]
                iteration.select(kept)
                function = restrict(places)

        rows = rows.within(everything, places)
        value, norm = (rows.best, rows.best_residual) if best else (rows.iterate, rows.residual)
        converged, diverged = norm <= self.tolerance, rows.residual.isinf()
        return Solution(value.view(start.shape), norm, rows.steps, converged, diverged, evaluations)

    def _norm(self, residual: Tensor, fz: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(residual, dim=1)
        if self.stop == "relative":
            norm = norm / (torch.linalg.vector_norm(fz, dim=1) + _TINY)
        finite: Tensor = norm.nan_to_num(nan=torch.inf)
        return finite


@dataclass
class _Rows:
    """What is known of each row; tensors are replaced, never written to."""

    iterate: Tensor
    running: Tensor
    steps: Tensor
    residual: Tensor
    best: Tensor
    best_residual: Tensor

    @classmethod
    def starting(cls, start: Tensor) -> _Rows:
        running = torch.ones(len(start), dtype=torch.bool, device=start.device)
        residual = torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
        return cls(start, running, torch.zeros_like(running, dtype=torch.int64), residual, start, residual)

    def observe(self, residual: Tensor, remember_best: bool) -> None:
        """Take in the residual of the newest iterate of every running row."""
        self.steps = self.steps + self.running
        self.residual = torch.where(self.running, residual, self.residual)
        if remember_best:
            better = self.running & (self.residual < self.best_residual)
            self.best = torch.where(better[:, None], self.iterate, self.best)
            self.best_residual = torch.where(better, self.residual, self.best_residual)

    def move(self, following: Tensor, tolerance: float, all_run: bool) -> None:
        """Go on to the next iterate, then stop where the residual is small enough or not finite.

        ``all_run`` says that no row has stopped yet, which saves a pass over the batch.
        """
        self.iterate = following if all_run else torch.where(self.running[:, None], following, self.iterate)
        self.running = self.running & (self.residual > tolerance) & self.residual.isfinite()

    def select(self, kept: Tensor) -> _Rows:
        """Return the rows at positions ``kept``, shape (b,)."""
        return _Rows(*(tensor[kept] for tensor in vars(self).values()))

    def within(self, everything: _Rows | None, places: Tensor) -> _Rows:
        """Return ``everything`` with these rows in ``places``; these rows themselves if they are all."""
        if everything is None:
            return self
        pairs = zip(vars(everything).values(), vars(self).values(), strict=True)
        return _Rows(*(old.index_copy(0, places, new) for old, new in pairs))
