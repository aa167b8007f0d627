"""What an attack on images is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.errors import require_count, require_nonnegative
from deqcert.implicit import GradientEstimator, OneStep

Classifier = Callable[[Tensor], Tensor]
"""Maps images of shape (B, C, H, W) to logits of shape (B, classes)."""


class Score(NamedTuple):
    """How far an attack has come.

    Attributes:
        loss: What the attack maximises, with its graph to the perturbed images; shape (B,).
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
            score: What to maximise.
            epsilon: l2 radius now; apart from the setting because objectives warm up to that. A tensor of shape
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
