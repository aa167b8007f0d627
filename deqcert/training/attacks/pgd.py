"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.training.attacks.base import Attack, ScoreFunction
from deqcert.training.attacks.geometry import ascent_direction, into_ball, into_box


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
