"""Plain iteration."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqcert.solvers.base import Iteration, Solver
from deqcert.solvers.rows import Workspace


class _Plain(Iteration):
    def step(self, z: Tensor, fz: Tensor, residual: Tensor) -> Tensor:
        return fz

    def select(self, rows: Tensor) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True)
class Picard(Solver):
    """X_{k+1} = F(X_k): the "N" of SRS-1N."""

    def init(self, start: Tensor, workspace: Workspace) -> Iteration:
        """Begin a solve; plain iteration needs no buffers."""
        return _Plain()
