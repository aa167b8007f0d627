"""Operator splitting for z = relu(W z + b): maps with the same fixed point that converge where plain iteration may not.

If W is such that Λ(I − W) is strongly monotone for a diagonal Λ, the equation has one solution, and both maps converge
to it (Winston, Kolter, NeurIPS 2020; Revay, Wang, Manchester 2020 for Λ ≠ I; relu is the proximal operator of the same
function in any diagonal metric). They are maps like any other cell: :class:`~deqcert.solvers.Picard` iterates them as
published, Anderson usually needs fewer steps, and the implicit gradient goes through them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

Splitting = Literal["forward_backward", "peaceman_rachford"]

Activation = Callable[[Tensor], Tensor]
"""relu, or relu that also sets fixed entries to zero: both are proximal operators in every diagonal metric."""


class LinearOperator(Protocol):
    """W of z = relu(W z + b), row by row."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return W z, shape of ``z``."""

    def resolvent(self, z: Tensor) -> Tensor:
        """Return (I + α (I − W))⁻¹ z, shape of ``z``, for the α that the operator was made for."""


def forward_backward(
    z: Tensor, bias: Tensor, operator: Callable[[Tensor], Tensor], alpha: float, activation: Activation = torch.relu
) -> Tensor:
    """Return relu((1 − α) z + α (W z + b)). Its fixed point is z*; with α = 1 it is the equation itself.

    Plain iteration converges for α < 2m / L², with m the monotonicity of I − W and L its norm, in the metric Λ.
    """
    return activation((1 - alpha) * z + alpha * (operator(z) + bias))


def peaceman_rachford(
    u: Tensor, bias: Tensor, operator: LinearOperator, alpha: float, activation: Activation = torch.relu
) -> Tensor:
    """Return 2 z½ − u½ with u½ = 2 relu(u) − u and z½ = (I + α (I − W))⁻¹ (u½ + α b); z* is relu of its fixed point.

    Plain iteration converges for every α > 0.
    """
    reflected = 2 * activation(u) - u
    return 2 * operator.resolvent(reflected + alpha * bias) - reflected
