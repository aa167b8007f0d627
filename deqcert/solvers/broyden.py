"""Broyden's first ("good") method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.solvers.base import Iterate, Iteration, Solver
from deqcert.solvers.rows import Workspace, inner_products, select_rows, weighted_sum


@dataclass
class _Moves(Iteration):
    """The moves s_j = X_{j+1} − X_j so far; they determine the inverse Jacobian of G(z) = F(z) − z.

    Without line search the update of the inverse Jacobian H is H_{j+1} = (I + s_{j+1} s_jᵀ / ‖s_j‖²) H_j, H_0 = −I, so
    u = −H_n G = G + Σ_{j<n} c_j s_{j+1} with c_j = ⟨s_j, G + Σ_{i<j} c_i s_{i+1}⟩ / ‖s_j‖², and the next move is
    u / (1 − c_n) (Kelley, "Solving Nonlinear Equations with Newton's Method", 2003, chapter 4). All ⟨s_j, s_i⟩ being
    known, the c_j solve a triangular system.

    Attributes:
        moves: s_j, shape (k − 1, B, D), of which ``stored`` are.
        gram: ⟨s_i, s_j⟩, shape (B, k − 1, k − 1), float64.
        first: The first of the moves that count, shape (B,), int64: a row may have begun anew from −I.
    """

    moves: Tensor
    gram: Tensor
    first: Tensor
    stored: int = 0

    def step(self, z: Tensor, fz: Tensor, residual: Tensor) -> Tensor:
        """Return X_k − H G(X_k), H being updated with the newest pair, or F(X_k) where that is not possible."""
        move = residual if self.stored == 0 else self._quasi_newton(residual)
        if self.stored < len(self.moves):
            self.moves[self.stored] = move
            products = self._products(self.stored + 1, move)
            self.gram[:, self.stored, : self.stored + 1] = products
            self.gram[:, : self.stored + 1, self.stored] = products
        self.stored += 1
        return z + move

    def select(self, rows: Tensor) -> None:
        """Keep the moves of these rows."""
        self.moves = select_rows(self.moves, rows, self.stored)
        self.gram, self.first = self.gram[rows], self.first[rows]

    def _quasi_newton(self, residual: Tensor) -> Tensor:
        """Return the next move; where its denominator vanishes or it is not finite, begin anew with the plain one."""
        n = self.stored
        gram = self.gram[:, :n, :n]
        # Row j of the system: ‖s_j‖² c_j − Σ_{i<j} ⟨s_j, s_{i+1}⟩ c_i = ⟨s_j, G⟩.
        system = gram.diagonal(dim1=1, dim2=2).diag_embed()
        system[:, 1:, :-1] -= gram[:, 1:, 1:].tril()
        products = self._products(n, residual)[:, :, None]
        weights = torch.linalg.solve_triangular(system, products, upper=False)[:, :, 0]
        denominator = 1 - weights[:, -1:]
        scale = denominator.reciprocal()
        move = weighted_sum(self.moves[1:n], weights[:, :-1] * scale).addcmul_(residual, scale.to(residual.dtype))
        usable = denominator.abs() > torch.finfo(residual.dtype).eps
        usable = usable & move.isfinite().all(dim=1, keepdim=True)
        self.first = torch.where(usable[:, 0], self.first, n)
        self.gram[:, :n, :n] = torch.where(usable[:, :, None], gram, torch.eye(n, dtype=gram.dtype, device=gram.device))
        return torch.where(usable, move, residual)

    def _products(self, count: int, vector: Tensor) -> Tensor:
        """Return ⟨s_j, vector⟩ of the first ``count`` moves, shape (B, count); 0 for those that do not count."""
        forgotten = torch.arange(count, device=vector.device) < self.first[:, None]
        return inner_products(self.moves[:count], vector).double().masked_fill_(forgotten, 0.0)


@dataclass(frozen=True)
class Broyden(Solver):
    """Quasi-Newton on G(z) = F(z) − z with rank-one updates from −I, no line search: the "B" of SRS-3B.

    Broyden 1965; as published with MDEQ, X_1 = F(X_0) and k steps return the iterate of least residual among
    X_1, ..., X_k, which takes k + 1 evaluations: one for the residual of X_k. Of each row k − 1 vectors of the size of
    the state are remembered. A row whose update has a vanishing or non-finite denominator takes a plain step and begins
    anew from −I.
    """

    iterate: Iterate = "best"

    @property
    def history(self) -> int:
        """The moves: max_steps − 1 vectors of each row."""
        return self.max_steps - 1

    def init(self, start: Tensor, workspace: Workspace) -> Iteration:
        """Begin a solve with room for every move that a later one needs."""
        moves = workspace.take(self.history, start)
        gram = start.new_zeros(len(start), self.history, self.history, dtype=torch.float64)
        return _Moves(moves, gram, torch.zeros(len(start), dtype=torch.int64, device=start.device))
