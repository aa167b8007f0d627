"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.solvers.base import Iteration, Solver
from deqcert.solvers.rows import Workspace, inner_products, select_rows, weighted_sum


@dataclass
class _History(Iteration):
    """The newest pairs in ring buffers; slot k mod m holds pair k.

    ``values`` are F(X_j) and ``residuals`` G_j = F(X_j) − X_j, shape (m, B, D); ``gram`` is ⟨G_i, G_j⟩, shape
    (B, m, m), float64, of which only the row and column of a new pair are computed.
    """

    values: Tensor
    residuals: Tensor
    gram: Tensor
    ridge: float
    pairs: int = 0

    def step(self, z: Tensor, fz: Tensor, residual: Tensor) -> Tensor:
        """Store the pair in place of the oldest and return Σ_j α_j F(X_j)."""
        slots = len(self.values)
        if slots == 0:
            return fz
        slot = self.pairs % slots
        self.pairs += 1
        filled = min(self.pairs, slots)
        self.values[slot] = fz
        self.residuals[slot] = residual
        products = inner_products(self.residuals[:filled], residual).double()
        self.gram[:, slot, :filled] = products
        self.gram[:, :filled, slot] = products
        return fz if filled == 1 else weighted_sum(self.values[:filled], self._weights(filled, slot))

    def select(self, rows: Tensor) -> None:
        """Keep the history of these rows."""
        filled = min(self.pairs, len(self.values))
        self.values, self.residuals = (select_rows(each, rows, filled) for each in (self.values, self.residuals))
        self.gram = self.gram[rows]

    def _weights(self, filled: int, newest: int) -> Tensor:
        """Solve (G + ridge I) y = 1 and return α = y / Σy, shape (B, m); all on the ``newest`` where that fails.

        This is the bordered system of the constrained problem with its multiplier eliminated. The matrix is
        positive definite unless rounding or a non-finite row spoils it, which Cholesky reports row by row.
        """
        gram = self.gram[:, :filled, :filled].clone()  # the history stays without ridge
        gram.diagonal(dim1=1, dim2=2).add_(self.ridge)
        factor, info = torch.linalg.cholesky_ex(gram)
        ones = gram.new_ones(*gram.shape[:2], 1)
        weights = torch.cholesky_solve(ones, factor)[:, :, 0]
        weights = weights / weights.sum(dim=1, keepdim=True)
        solved = (info == 0) & weights.isfinite().all(dim=1)
        plain = torch.zeros_like(weights)
        plain[:, newest] = 1
        return torch.where(solved[:, None], weights, plain)


@dataclass(frozen=True)
class Anderson(Solver):
    """Mixes the newest values of F so that their residuals cancel: the "A" of SRS-3A.

    X_1 = F(X_0); X_k = Σ_j α_j F(X_j) over the last min(k, memory) pairs, where α minimizes
    ‖Σ_j α_j G_j‖² + ridge ‖α‖² subject to Σ_j α_j = 1 (Walker and Ni 2011; counting as published with MDEQ, so
    ``max_steps=k`` returns the published X_k at k evaluations). A row whose small system cannot be solved takes
    the plain step F(X_{k−1}).

    Args:
        memory: Maximum number of pairs that are mixed, >= 1.
        ridge: Regularization added to the diagonal of the Gram matrix, >= 0.
    """

    memory: int = 6
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("memory", self.memory, minimum=1)
        require(self.ridge >= 0, "ridge", self.ridge, "must be >= 0")

    @property
    def history(self) -> int:
        """Values of F and residuals of the pairs that are mixed: two vectors of each row for each pair."""
        # A single step mixes nothing and needs no history.
        return 2 * min(self.memory, self.max_steps) if self.max_steps > 1 else 0

    def init(self, start: Tensor, workspace: Workspace) -> Iteration:
        """Begin a solve with empty ring buffers."""
        slots = self.history // 2
        values, residuals = workspace.take(self.history, start).tensor_split(2)
        gram = start.new_zeros(len(start), slots, slots, dtype=torch.float64)
        return _History(values, residuals, gram, self.ridge)
