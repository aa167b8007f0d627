"""Broyden's first ("good") method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.solvers.base import Iterate, Iteration, Solver
from deqcert.solvers.rows import Workspace, inner_products, weighted_sum


@dataclass
class _Inverse(Iteration):
    """The approximate inverse Jacobian −I + Σ_j u_j v_jᵀ of G(z) = F(z) − z, and the last move.

    Attributes:
        left: u_j, shape (r, B, D), of which ``rank`` are stored; ``right`` holds v_j.
        move: X_k − X_{k−1}, shape (B, D), and ``residual`` G(X_{k−1}); None before the first step.
    """

    left: Tensor
    right: Tensor
    move: Tensor | None = None
    residual: Tensor | None = None
    rank: int = 0

    def step(self, z: Tensor, fz: Tensor, residual: Tensor) -> Tensor:
        """Update the inverse Jacobian J⁻¹ with the newest pair and return X_k − J⁻¹ G(X_k)."""
        move = residual
        if self.move is not None and self.residual is not None:
            usable = self._update(self.move, residual - self.residual)
            newton = residual - self._times(residual)
            usable = usable & newton.isfinite().all(dim=1)
            move = torch.where(usable[:, None], newton, residual)
        self.move, self.residual = move, residual
        return z + move

    def select(self, rows: Tensor) -> None:
        """Keep the inverse Jacobian and the last move of these rows."""
        self.left, self.right = self.left[:, rows], self.right[:, rows]
        self.move, self.residual = (None if each is None else each[rows] for each in (self.move, self.residual))

    def _times(self, vector: Tensor) -> Tensor:
        """Return (Σ_j u_j v_jᵀ) vector, shape (B, D)."""
        return weighted_sum(self.left[: self.rank], inner_products(self.right[: self.rank], vector))

    def _update(self, move: Tensor, change: Tensor) -> Tensor:
        """Append u = (Δx − J⁻¹ΔG) / (Δxᵀ J⁻¹ ΔG), v = J⁻ᵀ Δx; return where that was possible, shape (B,)."""
        mapped = self._times(change) - change
        right = weighted_sum(self.right[: self.rank], inner_products(self.left[: self.rank], move)) - move
        denominator = (right * change).sum(dim=1, keepdim=True)
        right_norm, change_norm = (torch.linalg.vector_norm(each, dim=1, keepdim=True) for each in (right, change))
        usable: Tensor = denominator.abs() > torch.finfo(change.dtype).eps * (right_norm * change_norm)
        left = (move - mapped) / denominator
        usable = usable & left.isfinite().all(dim=1, keepdim=True) & right.isfinite().all(dim=1, keepdim=True)
        self.left[self.rank] = torch.where(usable, left, 0.0)
        self.right[self.rank] = torch.where(usable, right, 0.0)
        self.rank += 1
        return usable[:, 0]


@dataclass(frozen=True)
class Broyden(Solver):
    """Quasi-Newton on G(z) = F(z) − z with rank-one updates from −I, no line search: the "B" of SRS-3B.

    Broyden 1965; as published with MDEQ, X_1 = F(X_0) and k steps return the iterate of least residual among
    X_1, ..., X_k, which takes k + 1 evaluations: one for the residual of X_k. A row whose update has a vanishing or
    non-finite denominator keeps its inverse Jacobian and takes a plain step.
    """

    iterate: Iterate = "best"

    def init(self, start: Tensor, workspace: Workspace) -> Iteration:
        """Begin a solve with room for every update that it can make."""
        updates = self.max_steps - 1
        left, right = (workspace.take(f"broyden.{name}", updates, start) for name in ("left", "right"))
        return _Inverse(left, right)
