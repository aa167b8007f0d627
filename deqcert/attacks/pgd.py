"""Attacks by projected gradient ascent: on images, and on the noise added to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.attacks.geometry import ascent_direction, into_ball, into_box
from deqcert.errors import require_count, require_nonnegative
from deqcert.implicit import GradientEstimator, OneStep


class Score(NamedTuple):
    """How far an attack has come.

    Attributes:
        loss: What the attack maximizes, with its graph to the perturbed images; shape (B,).
        fooled: Which images are misclassified; bool, shape (B,).
    """

    loss: Tensor
    fooled: Tensor


ScoreFunction = Callable[[Tensor], Score]
"""Scores perturbed images ``images + delta`` of shape (B, C, H, W), row by row."""


@dataclass(frozen=True)
class Attack(ABC):
    """Search for the perturbation of an image that hurts most.

    Args:
        epsilon: l2 radius of the perturbation, in pixels of [0, 1], >= 0.
        steps: Gradient steps, >= 0; 0 = no perturbation.
        gradient: Gradient through the fixed point inside the attack.

    Raises:
        SettingError: If a setting is out of range.
    """

    epsilon: float = 1.0
    steps: int = 2
    gradient: GradientEstimator = field(default_factory=OneStep)

    def __post_init__(self) -> None:
        require_nonnegative("attack.epsilon", self.epsilon)
        require_count("attack.steps", self.steps, minimum=0)

    def perturb(self, images: Tensor, score: ScoreFunction, epsilon: float | Tensor) -> Tensor:
        """Return a perturbation per image; without steps or radius it is zero and the score is not asked.

        Args:
            images: Images in [0, 1], shape (B, C, H, W).
            score: What to maximize.
            epsilon: Current l2 radius; separate from the setting because objectives warm up to that. A tensor of shape
                (B, 1, 1, 1) gives each image a radius of its own.

        Returns:
            ``delta`` without graph, shape (B, C, H, W): each row within ``epsilon``, ``images + delta`` in [0, 1].
        """
        if not isinstance(epsilon, Tensor) and epsilon == 0:
            return torch.zeros_like(images)
        return self._search(images, score, epsilon)

    @abstractmethod
    def _search(self, images: Tensor, score: ScoreFunction, epsilon: float | Tensor) -> Tensor:
        """Return ``delta`` as :meth:`perturb`, for ``epsilon`` > 0 or a tensor >= 0; zero without steps."""


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent from zero with steps of length 2ε / steps (Salman et al., NeurIPS 2019).

    Args:
        epsilon: l2 radius of the perturbation, in pixels of [0, 1], >= 0.
        steps: Gradient steps, >= 0; 0 = no perturbation. Published: 2 to 10.
        gradient: Gradient through the fixed point inside the attack.
    """

    def _search(self, images: Tensor, score: ScoreFunction, epsilon: float | Tensor) -> Tensor:
        delta = torch.zeros_like(images)
        for _ in range(self.steps):
            point = (images + delta).requires_grad_()
            delta = delta + 2 * epsilon / self.steps * ascent_direction(score(point).loss, point)
            # The ball comes last: a shorter perturbation stays in the box and still fills the ball if it can.
            delta = into_ball(into_box(images, delta), epsilon)
        return delta


def shift_noise(noise: Tensor, loss: Callable[[Tensor], Tensor], epsilon: float, steps: int) -> Tensor:
    """Shift noise vectors so that a loss grows while they stay plausible noise (Jeong, Kim, Shin, AAAI 2023).

    Projected gradient ascent with steps of length 2ε / steps. After each step the shift is projected to the ball
    around the original noise; then each vector gets back the mean and the standard deviation that it had, for
    which it may leave the ball again by a little. The public code does the same with the root mean square in
    place of the standard deviation.

    Args:
        noise: Noise vectors, shape (N, C, H, W).
        loss: What to maximize, noise of shape (N, C, H, W) to (N,).
        epsilon: l2 radius of the shift, in pixels of [0, 1], >= 0.
        steps: Gradient steps, >= 0.

    Returns:
        The shifted noise without graph, shape (N, C, H, W); the noise itself without steps or radius, when the
        loss is not asked.
    """
    if epsilon == 0:
        return noise
    shifted = noise
    for _ in range(steps):
        point = shifted.detach().requires_grad_()
        shift = shifted - noise + 2 * epsilon / steps * ascent_direction(loss(point), point)
        shifted = _standardized_like(noise, noise + into_ball(shift, epsilon))
    return shifted


def _standardized_like(noise: Tensor, shifted: Tensor) -> Tensor:
    """Return ``shifted`` with the mean and the standard deviation of each row of ``noise``."""
    dims = tuple(range(1, noise.dim()))
    deviation, mean = torch.std_mean(noise, dims, correction=0, keepdim=True)
    now, center = torch.std_mean(shifted, dims, correction=0, keepdim=True)
    return mean + (shifted - center) * (deviation / now.clamp_min(torch.finfo(now.dtype).tiny))
