"""Broyden's first ("good") method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.solvers.base import Iterate, Solver
from deqcert.solvers.rows import Workspace, inner_products, weighted_sum


@dataclass
class _Inverse:
    """The approximate inverse Jacobian −I + Σ_j u_j v_jᵀ of G(z) = F(z) − z, and the last step.

    Attributes:
        left: u_j, shape (r, B, D).
        right: v_j, shape (r, B, D).
        rank: Updates stored so far.
        step: X_k − X_{k−1}, shape (B, D).
        residual: G(X_{k−1}), shape (B, D); None before the first step.
    """

    left: Tensor
    right: Tensor
    rank: int
    step: Tensor
    residual: Tensor | None

    def select(self, rows: Tensor) -> None:
        """Keep the inverse Jacobian and the last step of these rows."""
        self.left, self.right = self.left[:, rows], self.right[:, rows]
        self.step = self.step[rows]
        self.residual = None if self.residual is None else self.residual[rows]

    def times(self, vector: Tensor) -> Tensor:
        """Return (Σ_j u_j v_jᵀ) vector, shape (B, D)."""
        return weighted_sum(self.left[: self.rank], inner_products(self.right[: self.rank], vector))

    def transposed_times(self, vector: Tensor) -> Tensor:
        """Return (Σ_j v_j u_jᵀ) vector, shape (B, D)."""
        return weighted_sum(self.right[: self.rank], inner_products(self.left[: self.rank], vector))


@dataclass(frozen=True)
class Broyden(Solver):
    """Quasi-Newton on G(z) = F(z) − z with rank-one updates from −I, no line search: the "B" of SRS-3B.

    Broyden 1965; as published with MDEQ, X_1 = F(X_0) and k steps return the iterate of least residual among
    X_1, ..., X_k, which takes k + 1 evaluations: one for the residual of X_k. A row whose update has a vanishing or
    non-finite denominator keeps its inverse Jacobian and takes a plain step.

    Args:
        max_steps: Maximum number k of steps per row, >= 1. With tolerance 0 every row takes all of them, in k
            evaluations of F, or k + 1 if the best iterate is returned.
        tolerance: A row stops once its residual is at most this, >= 0. 0 stops at an exact fixed point only.
        stop: Residual that is compared with the tolerance: "relative" or "absolute".
        iterate: Returned iterate: "last" is X_k, "best" the one of least residual among X_1, ..., X_k, never X_0.
    """

    iterate: Iterate = "best"

    def initialise(self, start: Tensor, workspace: Workspace) -> _Inverse:
        """Take room for every update the solve can make."""
        updates = self.max_steps - 1
        return _Inverse(
            left=workspace.take("broyden.left", updates, start),
            right=workspace.take("broyden.right", updates, start),
            rank=0,
            step=torch.zeros_like(start),
            residual=None,
        )

    def advance(self, state: _Inverse, iterate: Tensor, image: Tensor, gap: Tensor) -> Tensor:
        """Update the inverse Jacobian J⁻¹ with the newest pair and return X_k − J⁻¹ G(X_k)."""
        step = gap
        if state.residual is not None:
            usable = self._update(state, gap - state.residual)
            newton = gap - state.times(gap)
            usable = usable & newton.isfinite().all(dim=1)
            step = torch.where(usable[:, None], newton, gap)
        state.step, state.residual = step, gap
        return iterate + step

    @staticmethod
    def _update(state: _Inverse, change: Tensor) -> Tensor:
        """Append u = (Δx − J⁻¹ΔG) / (Δxᵀ J⁻¹ ΔG), v = J⁻ᵀ Δx; return where that was possible, shape (B,)."""
        mapped = state.times(change) - change
        right = state.transposed_times(state.step) - state.step
        denominator = (right * change).sum(dim=1, keepdim=True)
        scale = torch.linalg.vector_norm(right, dim=1, keepdim=True) * torch.linalg.vector_norm(
            change, dim=1, keepdim=True
        )
        usable = denominator.abs() > torch.finfo(change.dtype).eps * scale
        left = (state.step - mapped) / denominator
        usable = usable & left.isfinite().all(dim=1, keepdim=True) & right.isfinite().all(dim=1, keepdim=True)
        state.left[state.rank] = torch.where(usable, left, 0.0)
        state.right[state.rank] = torch.where(usable, right, 0.0)
        state.rank += 1
        rows: Tensor = usable[:, 0]
        return rows
