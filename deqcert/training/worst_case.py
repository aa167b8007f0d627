"""Training on the worst logits in a box around each image, for networks that can bound them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deqcert.errors import SettingError, require_count, require_nonnegative
from deqcert.models import TrainableInterval
from deqcert.training.objectives import Loss, Objective
from deqcert.training.step import ImplicitStep, TrainingStep


@dataclass(frozen=True)
class WorstCase(Objective):
    """Cross-entropy of the worst logits in a box around each image (IBP; Gowal et al. 2018, Wei and Kolter 2022).

    The worst logits are interval bounds on their differences to that of the label; there is no other term. The box
    grows with the epochs: a first quarter of ``ramp_epochs`` with the fourth power, then linearly. With sigma > 0 the
    boxes are around noisy samples, one of each image.

    Args:
        epsilon: Half the side of the box, in pixels of [0, 1], >= 0, once it has grown.
        clean_epochs: Epochs without a box before, >= 0; published: 1.
        ramp_epochs: Epochs in which it grows, >= 0; published: 79 of 300.
    """

    epsilon: float = 0.1
    clean_epochs: int = 1
    ramp_epochs: int = 79

    def __post_init__(self) -> None:
        require_nonnegative("objective.epsilon", self.epsilon)
        require_count("objective.clean_epochs", self.clean_epochs, minimum=0)
        require_count("objective.ramp_epochs", self.ramp_epochs, minimum=0)

    def epsilon_at(self, epoch: int) -> float:
        """Return half the side of the box in an epoch, counted from 0."""
        grown = epoch + 1 - self.clean_epochs
        if grown >= self.ramp_epochs:
            return self.epsilon if grown > 0 else 0.0
        part = max(0, grown) / self.ramp_epochs
        # Both value and slope of the two pieces are the same where they meet.
        return self.epsilon * ((4 * part) ** 4 if part < 1 / 4 else 16 * part - 3) / 13

    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the worst-case cross-entropy; logs also epsilon and how many images it does not fool."""
        network = step.network
        if not (isinstance(step, ImplicitStep) and isinstance(network, TrainableInterval)):
            bounding = "must bound its logits over boxes of images for the objective WorstCase: IBPMonDEQ"
            raise SettingError("model.network", type(network).__name__, bounding)
        epsilon = self.epsilon_at(step.epoch)
        centers = images + step.sigma * torch.randn_like(images)
        bounds = network.worst_case(labels, images.new_full(labels.shape, epsilon))
        logits = dataclasses.replace(step, network=bounds, function=bounds.cell).logits(centers)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        metrics = {"worst_case_cross_entropy": loss.detach(), "worst_case_accuracy": accuracy}
        return Loss(loss, metrics | {"epsilon": images.new_tensor(epsilon)})
