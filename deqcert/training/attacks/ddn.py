"""Decoupled direction and norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.errors import require
from deqcert.training.attacks.base import Attack, ScoreFunction
from deqcert.training.attacks.geometry import ascent_direction, into_box, onto_sphere, row_norms


@dataclass(frozen=True)
class DDN(Attack):
    """Search for the smallest perturbation that fools (Rony et al., CVPR 2019, algorithm 1).

    Each step turns the perturbation along the normalised gradient, by a length that falls from 1 to 0.01 along a
    cosine, and then sets its norm: smaller than before where it fools, larger where it does not, never beyond
    ``epsilon``. An image that is misclassified as it is keeps a zero perturbation.

    Other than the public code, it does not round perturbed images to 8 bits, and an image that is never fooled
    gets the last iterate instead of zero: for training, a hard image is better than a clean one.

    Args:
        epsilon: l2 radius of the perturbation, in pixels of [0, 1], >= 0.
        steps: Gradient steps, >= 0; 0 = no perturbation.
        gradient: Gradient through the fixed point inside the attack.
        initial_norm: Norm from which the search starts, in pixels of [0, 1], > 0.
        gamma: Relative change of the norm per step, in (0, 1).

    Raises:
        SettingError: If a setting is out of range.
    """

    initial_norm: float = 1.0
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.initial_norm > 0, "attack.initial_norm", self.initial_norm, "must be > 0")
        require(0 < self.gamma < 1, "attack.gamma", self.gamma, "must be in (0, 1)")

    def _search(self, images: Tensor, score: ScoreFunction, epsilon: float | Tensor) -> Tensor:
        delta = smallest = torch.zeros_like(images)
        radii = torch.full_like(row_norms(images), self.initial_norm)
        smallest_norms = torch.full_like(radii, math.inf)
        for step in range(self.steps):
            point = (images + delta).requires_grad_()
            loss, fooled = score(point)
            turned = delta + self._length(step) * ascent_direction(loss, point)
            fooled = fooled.view_as(radii)
            norms = row_norms(delta)
            smaller = fooled & (norms < smallest_norms)
            smallest = torch.where(smaller, delta, smallest)
            smallest_norms = torch.where(smaller, norms, smallest_norms)
            radii = (radii * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)).clamp(max=epsilon)
            delta = into_box(images, onto_sphere(turned, radii))
        return torch.where(smallest_norms.isfinite(), smallest, delta)

    def _length(self, step: int) -> float:
        return 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
