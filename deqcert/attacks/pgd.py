"""Projected gradient ascent in balls: on images, and on the noise added to them; each row on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from deqcert.deterministic import Norm
from deqcert.errors import require, require_count, require_nonnegative
from deqcert.implicit import GradientEstimator, OneStep

Loss = Callable[[Tensor], Tensor]
"""Maps inputs of shape (B, C, H, W) to what an attack maximizes, shape (B,), with its graph to them."""


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent from zero with steps of length 2ε / steps (Salman et al., NeurIPS 2019).

    Args:
        epsilon: Radius of the perturbation, in pixels of [0, 1], >= 0.
        steps: Gradient steps, >= 0; 0 = no perturbation. Published: 2 to 10.
        gradient: Gradient through the fixed point inside the attack.
        norm: Norm of the radius: l2, or linf, whose steps are along the sign of the gradient (Madry et al., ICLR 2018).
    """

    epsilon: float = 1.0
    steps: int = 2
    gradient: GradientEstimator = field(default_factory=OneStep)
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        require_nonnegative("attack.epsilon", self.epsilon)
        require_count("attack.steps", self.steps, minimum=0)
        require(self.norm in get_args(Norm), "attack.norm", self.norm, f"must be one of {get_args(Norm)}")

    def perturb(self, images: Tensor, loss: Loss, epsilon: float | Tensor) -> Tensor:
        """Return a perturbation for each image in [0, 1], shape (B, C, H, W), without graph.

        Each row is within ``epsilon``, the current radius or one per image, shape (B, 1, 1, 1); image and perturbation
        together stay in [0, 1]. Without steps or radius it is zero and the loss is not evaluated.
        """
        delta = torch.zeros_like(images)
        for _ in range(self.steps if isinstance(epsilon, Tensor) or epsilon > 0 else 0):
            point = (images + delta).requires_grad_()
            delta = delta + 2 * epsilon / self.steps * _ascent_direction(loss(point), point, self.norm)
            # The ball comes last: a shorter perturbation stays in the box and still fills the ball if it can.
            delta = _into_ball(delta.clamp(-images, 1 - images), epsilon, self.norm)
        return delta


def shift_noise(noise: Tensor, loss: Loss, epsilon: float, steps: int) -> Tensor:
    """Shift noise vectors so that a loss grows while they stay plausible noise (Jeong, Kim, Shin, AAAI 2023).

    Projected gradient ascent with steps of length 2ε / steps, ε in pixels. After each step the shift is projected to
    the ball around the original noise; then each vector gets back the mean and the standard deviation that it had, for
    which it may leave the ball again by a little. The public code does the same with the root mean square in place of
    the standard deviation. Without steps or radius the noise is returned as it is and the loss is not evaluated.
    """
    shifted = noise
    for _ in range(steps if epsilon > 0 else 0):
        point = shifted.detach().requires_grad_()
        shift = shifted - noise + 2 * epsilon / steps * _ascent_direction(loss(point), point)
        shifted = _standardized_like(noise, noise + _into_ball(shift, epsilon))
    return shifted


def row_norms(x: Tensor) -> Tensor:
    """Return the l2 norms of the rows of ``x``, shape (B, ...) to (B, 1, ...)."""
    return _per_row(x.flatten(1).norm(dim=1), x)


def _ascent_direction(loss: Tensor, point: Tensor, norm: Norm = "l2") -> Tensor:
    """Return the gradient of each row's loss at ``point``, its l2 norm 1 or its entries ±1, shape (B, ...), no graph.

    A row whose gradient is zero or not finite gets a random direction from torch's global generator.
    """
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    # Where the model is confident the squares in a norm would underflow; quotients by the largest entry do not.
    largest = _per_row(gradient.flatten(1).abs().amax(dim=1), gradient)
    usable = largest.isfinite() & (largest > 0)
    # Drawn for every row, so that what is drawn next does not depend on the model.
    direction = torch.where(usable, gradient / largest, torch.randn_like(gradient))
    return direction.sign() if norm == "linf" else direction / row_norms(direction)


def _into_ball(delta: Tensor, radius: float | Tensor, norm: Norm = "l2") -> Tensor:
    """Return ``delta`` with rows beyond ``radius`` projected to the ball, shape (B, ...); radii (B, 1, ...)."""
    sizes = delta.abs() if norm == "linf" else row_norms(delta)
    return delta * (radius / sizes.clamp_min(torch.finfo(delta.dtype).tiny)).clamp(max=1)


def _standardized_like(noise: Tensor, shifted: Tensor) -> Tensor:
    """Return ``shifted`` with the mean and the standard deviation of each row of ``noise``."""
    dims = tuple(range(1, noise.dim()))
    deviation, mean = torch.std_mean(noise, dims, correction=0, keepdim=True)
    now, center = torch.std_mean(shifted, dims, correction=0, keepdim=True)
    return mean + (shifted - center) * (deviation / now.clamp_min(torch.finfo(now.dtype).tiny))


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
