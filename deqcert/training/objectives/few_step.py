"""Training of the k-step classifier that anchored smoothing certifies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqcert.errors import require_count, require_nonnegative
from deqcert.training.objectives.base import Loss, Objective, TrainingContext
from deqcert.training.objectives.copies import classify_copies, cross_entropies, draw_noise, metrics_under_noise


@dataclass(frozen=True)
class FewStep(Objective):
    """Cross-entropy under noise of the output after k plain steps from the anchor, and of the converged output.

    The first is what :class:`deqcert.smoothing.Anchored` certifies with ``Picard(max_steps=k)``; the second keeps the
    network a DEQ: watch ``val/forward_residual`` and ``val/spectral_radius``. For fine-tuning: ``model.weights`` from a
    trained checkpoint with its start.

    Args:
        steps: Plain steps k from the anchor, >= 1, with the exact gradient through all of them.
        converged_weight: Weight of the cross-entropy of the converged output on the same noise, >= 0.
        copies: Noisy copies of each image, >= 1.

    Raises:
        SettingError: If a setting is out of range.
    """

    steps: int = 2
    converged_weight: float = 0.5
    copies: int = 1

    def __post_init__(self) -> None:
        require_count("objective.steps", self.steps, minimum=1)
        require_nonnegative("objective.converged_weight", self.converged_weight)
        require_count("objective.copies", self.copies, minimum=1)

    def loss(self, context: TrainingContext, images: Tensor, labels: Tensor) -> Loss:
        """Return the weighted sum; logs also the converged cross-entropy and how often both outputs agree."""
        noise = draw_noise(images, context.sigma, self.copies)
        converged = classify_copies(context.logits, images, noise)
        few = classify_copies(lambda x: context.few_step_logits(x, self.steps), images, noise)
        losses, converged_losses = cross_entropies(few, labels), cross_entropies(converged, labels)
        metrics = metrics_under_noise(losses, few, labels)
        metrics["converged_cross_entropy"] = converged_losses.detach().mean()
        metrics["agreement"] = (few.argmax(dim=2) == converged.argmax(dim=2)).float().mean()
        return Loss(losses.mean() + self.converged_weight * converged_losses.mean(), metrics)
