"""Plain fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqcert.solvers.base import Solver


@dataclass(frozen=True)
class Picard(Solver):
    """X_{k+1} = F(X_k): the "N" of SRS-1N.

    Args:
        max_steps: Most evaluations of F per row, >= 1. With tolerance 0 every row takes exactly so many.
        tolerance: A row stops once its residual is at most this, >= 0. 0 stops at an exact fixed point only.
        stop: Residual that is compared with the tolerance: "relative" or "absolute".
        iterate: Returned iterate: "last" or the "best" by residual among those evaluated.
    """

    def initialise(self, start: Tensor) -> None:
        """No history."""

    def advance(self, state: None, iterate: Tensor, image: Tensor) -> Tensor:
        """Return F(X_k)."""
        return image
