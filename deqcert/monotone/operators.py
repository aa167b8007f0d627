"""Linear operators W of a monotone equilibrium network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseOperator:
    """A matrix W, shape (n, n), and the inverse of I + α (I − W) where Peaceman–Rachford splitting needs it."""

    weight: Tensor
    inverse: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, alpha: float | None) -> DenseOperator:
        """Prepare W for splitting with step size ``alpha``; None for what needs no inverse."""
        if alpha is None:
            return cls(weight)
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return cls(weight, torch.linalg.inv((1 + alpha) * identity - alpha * weight))

    def __call__(self, z: Tensor) -> Tensor:
        """Return W z, shape (B, n)."""
        return z @ self.weight.mT

    def resolvent(self, z: Tensor) -> Tensor:
        """Return (I + α (I − W))⁻¹ z, shape (B, n)."""
        assert self.inverse is not None, "made without alpha"
        return z @ self.inverse.mT
