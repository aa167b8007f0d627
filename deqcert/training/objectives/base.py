"""What an objective is, and what it needs of a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor

from deqcert.implicit import GradientEstimator
from deqcert.training.attacks import Classifier


class TrainingContext(Protocol):
    """One training step as an objective sees it."""

    @property
    def sigma(self) -> float:
        """Standard deviation of the training noise, in pixels of [0, 1]."""

    @property
    def epoch(self) -> int:
        """Current epoch, from 0."""

    def logits(self, x: Tensor) -> Tensor:
        """Return logits in training mode with a graph to the parameters, shape (B, C, H, W) to (B, classes)."""

    def few_step_logits(self, x: Tensor, steps: int) -> Tensor:
        """Return the logits after ``steps`` plain steps from the anchor, otherwise as :meth:`logits`."""

    def attacked(self, gradient: GradientEstimator) -> AbstractContextManager[Classifier]:
        """Yield the network in evaluation mode with frozen parameters, differentiable in its images.

        On exit, also by an error, the network is again as it was.

        Args:
            gradient: Gradient through the fixed point.
        """


class Loss(NamedTuple):
    """What an objective says of a batch.

    Attributes:
        value: What to minimise, a scalar with its graph.
        metrics: Scalars to log by name, without graph; at least "cross_entropy" and "accuracy_under_noise", over
            all copies that were trained on.
    """

    value: Tensor
    metrics: dict[str, Tensor]


class Objective(ABC):
    """What a training step minimises."""

    @abstractmethod
    def loss(self, context: TrainingContext, images: Tensor, labels: Tensor) -> Loss:
        """Return the loss of a batch.

        Args:
            context: The training step.
            images: Images in [0, 1] without noise, shape (B, C, H, W).
            labels: Their classes, int64, shape (B,).
        """
