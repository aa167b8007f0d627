"""Plain fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqcert.solvers.base import Solver
from deqcert.solvers.rows import Workspace


class _Memoryless:
    """Plain iteration remembers nothing."""

    def select(self, rows: Tensor) -> None:
        """Nothing to select from."""


@dataclass(frozen=True)
class Picard(Solver):
    """X_{k+1} = F(X_k): the "N" of SRS-1N.

    Args:
        max_steps: Maximum number k of steps per row, >= 1. With tolerance 0 every row takes all of them, in k
            evaluations of F, or k + 1 if the best iterate is returned.
        tolerance: A row stops once its residual is at most this, >= 0. 0 stops at an exact fixed point only.
        stop: Residual that is compared with the tolerance: "relative" or "absolute".
        iterate: Returned iterate: "last" is X_k, "best" the one of least residual among X_1, ..., X_k, never X_0.
    """

    def initialise(self, start: Tensor, workspace: Workspace) -> _Memoryless:
        """There is nothing to remember."""
        return _Memoryless()

    def advance(self, state: _Memoryless, iterate: Tensor, image: Tensor, gap: Tensor) -> Tensor:
        """Return the image."""
        return image
