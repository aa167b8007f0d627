"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.solvers.base import Solver
from deqcert.solvers.history import PairHistory
from deqcert.solvers.rows import Workspace, weighted_sum


@dataclass(frozen=True)
class Anderson(Solver):
    """Mixes the images of the last pairs so that their residuals cancel: the "A" of SRS-3A.

    X_1 = F(X_0); X_k = Σ_j α_j F(X_j) over the last min(k, memory) pairs, where α minimises
    ‖Σ_j α_j G_j‖² + ridge ‖α‖² subject to Σ_j α_j = 1 (Walker and Ni 2011; counting as published with MDEQ, so
    ``max_steps=k`` returns the published X_k at k evaluations). A row whose small system cannot be solved takes
    the plain step F(X_{k−1}).

    Args:
        max_steps: Maximum number k of steps per row, >= 1. With tolerance 0 every row takes all of them, in k
            evaluations of F, or k + 1 if the best iterate is returned.
        tolerance: A row stops once its residual is at most this, >= 0. 0 stops at an exact fixed point only.
        stop: Residual that is compared with the tolerance: "relative" or "absolute".
        iterate: Returned iterate: "last" is X_k, "best" the one of least residual among X_1, ..., X_k, never X_0.
        memory: Most pairs that are mixed, >= 1.
        ridge: Regularisation added to the diagonal of the Gram matrix, >= 0.
    """

    memory: int = 6
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("memory", self.memory, minimum=1)
        require(self.ridge >= 0, "ridge", self.ridge, "must be >= 0")

    def initialise(self, start: Tensor, workspace: Workspace) -> PairHistory:
        """Take room for the ring buffers."""
        # A single step mixes nothing and needs no history.
        slots = min(self.memory, self.max_steps) if self.max_steps > 1 else 0
        return PairHistory.empty("anderson", slots, start, workspace)

    def advance(self, state: PairHistory, iterate: Tensor, image: Tensor, gap: Tensor) -> Tensor:
        """Store the pair and return the mixed image."""
        if len(state.images) == 0:
            return image
        slot, filled = state.remember(image, gap)
        if filled == 1:
            return image

        return weighted_sum(state.images[:filled], self._weights(state.gram[:, :filled, :filled], slot))

    def _weights(self, gram: Tensor, newest: int) -> Tensor:
        """Solve (G + ridge I) y = 1 and return α = y / Σy, shape (B, m); all on the ``newest`` where that fails.

        This is the bordered system of the constrained problem with its multiplier eliminated. The matrix is
        positive definite unless rounding or a non-finite row spoils it, which Cholesky reports row by row.
        """
        gram = gram.clone()  # the history stays without ridge
        gram.diagonal(dim1=1, dim2=2).add_(self.ridge)
        factor, info = torch.linalg.cholesky_ex(gram)
        ones = gram.new_ones(*gram.shape[:2], 1)
        weights = torch.cholesky_solve(ones, factor)[:, :, 0]
        weights = weights / weights.sum(dim=1, keepdim=True)
        solved = (info == 0) & weights.isfinite().all(dim=1)
        plain = torch.zeros_like(weights)
        plain[:, newest] = 1
        return torch.where(solved[:, None], weights, plain)
