"""The history that mixing solvers keep of a solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.solvers.rows import Workspace, inner_products


@dataclass
class PairHistory:
    """The newest pairs in ring buffers; slot k mod m holds pair k.

    Attributes:
        images: F(X_j), shape (m, B, D).
        gaps: G_j = F(X_j) − X_j, shape (m, B, D).
        gram: ⟨G_i, G_j⟩, shape (B, m, m), float64; only the row and column of a new pair are computed.
        pairs: Pairs seen so far.
    """

    images: Tensor
    gaps: Tensor
    gram: Tensor
    pairs: int = 0

    @classmethod
    def empty(cls, name: str, slots: int, start: Tensor, workspace: Workspace) -> PairHistory:
        """Take room for ``slots`` pairs of a batch like ``start``, shape (B, D)."""
        return cls(
            images=workspace.take(f"{name}.images", slots, start),
            gaps=workspace.take(f"{name}.gaps", slots, start),
            gram=start.new_zeros(len(start), slots, slots, dtype=torch.float64),
        )

    def remember(self, image: Tensor, gap: Tensor) -> tuple[int, int]:
        """Store a pair, shape (B, D) each, in place of the oldest; return its slot and the number of filled slots."""
        slot = self.pairs % len(self.images)
        self.pairs += 1
        filled = min(self.pairs, len(self.images))
        self.images[slot] = image
        self.gaps[slot] = gap
        products = inner_products(self.gaps[:filled], gap).double()
        self.gram[:, slot, :filled] = products
        self.gram[:, :filled, slot] = products
        return slot, filled

    def select(self, rows: Tensor) -> None:
        """Keep the history of these rows."""
        self.images, self.gaps, self.gram = self.images[:, rows], self.gaps[:, rows], self.gram[rows]
