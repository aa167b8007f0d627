"""What a training step minimizes: losses on noisy images, plain or hardened. Torch only.

The noisy samples come first: noise has shape (m, B, C, H, W) and logits (m, B, classes) for m samples of B images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deqcert.attacks import PGD, classify_noisy, log_smoothed, shift_noise
from deqcert.attacks.pgd import row_norms
from deqcert.errors import SettingError, is_real, require, require_count, require_nonnegative
from deqcert.implicit import GradientEstimator, OneStep
from deqcert.models import TrainableLipschitz
from deqcert.training.step import TrainingStep


class Loss(NamedTuple):
    """What to minimize, a scalar with its graph, and scalars to log by name, without graph."""

    value: Tensor
    metrics: dict[str, Tensor]


class Objective(ABC):
    """What a training step minimizes.

    Raises:
        SettingError: If a setting is out of range.
    """

    @abstractmethod
    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the loss of images in [0, 1] without noise, shape (B, C, H, W), and labels, int64, shape (B,)."""


@dataclass(frozen=True)
class Gaussian(Objective):
    """Cross-entropy under Gaussian noise (Cohen et al., ICML 2019).

    Args:
        noisy_samples: Noisy samples of each image, >= 1; published: 1.
    """

    noisy_samples: int = 1

    def __post_init__(self) -> None:
        require_count("objective.noisy_samples", self.noisy_samples, minimum=1)

    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the cross-entropy over all noisy samples."""
        noise = _draw_noise(images, step.sigma, self.noisy_samples)
        _, losses, metrics = _trained(step, images, labels, noise)
        return Loss(losses.mean(), metrics)


@dataclass(frozen=True)
class SmoothAdv(Objective):
    """Cross-entropy under noise at images that fool the smoothed classifier (Salman et al., NeurIPS 2019).

    The attack maximizes the cross-entropy of the softmax averaged over the noisy samples, −log mean_j
    softmax(f(x + δ + η_j))_y; the training step uses the same noise η_j.

    Args:
        noisy_samples: Noisy samples of each image, >= 1.
        attack: The attack; its epsilon is reached after the warm-up.
        warmup_epochs: Epochs over which the radius grows linearly, >= 0; 0 = full radius from the start.
        multi_noise: Train on all noisy samples; false = on the first only.
    """

    noisy_samples: int = 4
    attack: PGD = field(default_factory=PGD)
    warmup_epochs: int = 10
    multi_noise: bool = True

    def __post_init__(self) -> None:
        require_count("objective.noisy_samples", self.noisy_samples, minimum=1)
        require_count("objective.warmup_epochs", self.warmup_epochs, minimum=0)

    def epsilon_at(self, epoch: int) -> float:
        """Return the radius of the attack in an epoch, counted from 0."""
        if epoch + 1 >= self.warmup_epochs:
            return self.attack.epsilon
        return self.attack.epsilon * (epoch + 1) / self.warmup_epochs

    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the cross-entropy at attacked images; logs also the attack's radius and mean norm."""
        noise = _draw_noise(images, step.sigma, self.noisy_samples)
        epsilon = self.epsilon_at(step.epoch)
        delta = self._attack(step, images, labels, noise, epsilon)
        _, losses, metrics = _trained(step, images + delta, labels, noise if self.multi_noise else noise[:1])
        metrics |= {"attack_epsilon": delta.new_tensor(epsilon), "attack_norm": row_norms(delta).mean()}
        return Loss(losses.mean(), metrics)

    def _attack(self, step: TrainingStep, images: Tensor, labels: Tensor, noise: Tensor, epsilon: float) -> Tensor:
        with step.attacked(self.attack.gradient) as classifier:

            def loss(perturbed: Tensor) -> Tensor:
                smoothed = log_smoothed(classify_noisy(classifier, perturbed, noise))
                return F.nll_loss(smoothed, labels, reduction="none")

            return self.attack.perturb(images, loss, epsilon)


@dataclass(frozen=True)
class Consistency(Objective):
    """Cross-entropy under noise, with predictions that agree across noise (Jeong, Shin, NeurIPS 2020).

    With F_j the softmax of noisy sample j and F̂ their average, the loss is the mean cross-entropy
    + weight · mean_j KL(F̂ ‖ F_j) + entropy_weight · H(F̂).

    Args:
        noisy_samples: Noisy samples of each image, >= 2.
        weight: Weight of the divergence, >= 0.
        entropy_weight: Weight of the entropy, >= 0.
    """

    noisy_samples: int = 2
    weight: float = 10.0
    entropy_weight: float = 0.5

    def __post_init__(self) -> None:
        require_count("objective.noisy_samples", self.noisy_samples, minimum=2)
        require_nonnegative("objective.weight", self.weight)
        require_nonnegative("objective.entropy_weight", self.entropy_weight)

    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the regularized cross-entropy; logs also the divergence and the entropy."""
        noise = _draw_noise(images, step.sigma, self.noisy_samples)
        logits, losses, metrics = _trained(step, images, labels, noise)
        smoothed = log_smoothed(logits)
        disagreement = _divergence(smoothed, F.log_softmax(logits, dim=2)).mean()
        entropy = -(smoothed.exp() * smoothed).sum(dim=1).mean()
        metrics |= {"consistency_kl": disagreement.detach(), "entropy": entropy.detach()}
        return Loss(losses.mean() + self.weight * disagreement + self.entropy_weight * entropy, metrics)


@dataclass(frozen=True)
class CATRS(Objective):
    """Confidence-aware training for randomized smoothing (Jeong, Kim, Shin, AAAI 2023).

    Of m noisy samples of an image, a fraction p̂ is classified correctly. K ~ Binomial(m, p̂), at least 1, says how
    many count: the low-confidence loss is the sum of the K smallest cross-entropies, divided by m (not by K), as
    published. Images with K = m are confident; they add weight · max_j KL(F̂(x) ‖ F(x + δ_j*)), where F̂ is the
    softmax averaged over the noisy samples, without gradient, and δ_j* the noise of sample j shifted against the
    network (:func:`deqcert.attacks.shift_noise`). The public code reads F̂, and optionally p̂, from the file of a
    model trained with Gaussian noise; here both are the network's own.

    Args:
        noisy_samples: Noisy samples of each image, >= 1; m.
        epsilon: l2 radius of the shift, in pixels of [0, 1], >= 0.
        steps: Gradient steps of the shift, >= 0.
        weight: Weight of the divergence, >= 0; 0 = without that term and its attack. Published: 0.5 to 4.
        gradient: Gradient through the fixed point inside the attack.
    """

    noisy_samples: int = 4
    epsilon: float = 1.0
    steps: int = 4
    weight: float = 1.0
    gradient: GradientEstimator = field(default_factory=OneStep)

    def __post_init__(self) -> None:
        require_count("objective.noisy_samples", self.noisy_samples, minimum=1)
        require_nonnegative("objective.epsilon", self.epsilon)
        require_count("objective.steps", self.steps, minimum=0)
        require_nonnegative("objective.weight", self.weight)

    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the confidence-aware loss; logs also the fraction of confident images and their term."""
        noise = _draw_noise(images, step.sigma, self.noisy_samples)
        logits, losses, metrics = _trained(step, images, labels, noise)
        counted = self._draw_counted(logits, labels)
        masked = counted == self.noisy_samples
        value = _sum_of_smallest(losses, counted).mean() / self.noisy_samples
        worst = value.new_zeros(())
        if self.weight > 0 and masked.any():
            target = log_smoothed(logits.detach())
            worst = self._worst_divergences(step, images, noise, target, masked).sum() / len(images)
            value = value + self.weight * worst
        metrics |= {"masked": masked.float().mean(), "worst_kl": worst.detach()}
        return Loss(value, metrics)

    def _draw_counted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return K of each image, shape (B,)."""
        correct = (logits.argmax(dim=2) == labels).float().mean(dim=0)
        # As a sum of m draws, K is exactly 0 or m where the fraction is 0 or 1.
        draws = torch.rand(self.noisy_samples, len(labels), device=logits.device) < correct
        return draws.sum(dim=0).clamp_min(1)

    def _worst_divergences(
        self, step: TrainingStep, images: Tensor, noise: Tensor, target: Tensor, masked: Tensor
    ) -> Tensor:
        """Return the largest divergence over the noisy samples of each masked image, shape (masked,)."""
        shifted = noise.clone()
        shifted[:, masked] = self._shift(step, images[masked], noise[:, masked], target[masked])
        # The pass trains, so it takes the whole batch: batch statistics of the confident images alone would be
        # biased, and with few of them degenerate. The others keep their noise and do not enter the loss.
        logits = classify_noisy(step.logits, images, shifted)[:, masked]
        return _divergence(target[masked], F.log_softmax(logits, dim=2)).amax(dim=0)

    def _shift(self, step: TrainingStep, images: Tensor, noise: Tensor, target: Tensor) -> Tensor:
        with step.attacked(self.gradient) as classifier:

            def loss(flat: Tensor) -> Tensor:
                logits = classify_noisy(classifier, images, flat.view_as(noise))
                return _divergence(target, F.log_softmax(logits, dim=2)).flatten()

            return shift_noise(noise.flatten(0, 1), loss, self.epsilon, self.steps).view_as(noise)


@dataclass(frozen=True)
class LipschitzMargin(Objective):
    """Cross-entropy of certified radii, for networks that know their Lipschitz constants; usually without noise.

    With L_yj the constant of y_y − y_j, the radius in which class j cannot overtake the true class y is
    r_j = (y_y − y_j) / L_yj, the logit gap in units of pixels. The loss is the cross-entropy of the logits
    temperature · (margin − r_j), 0 for y itself. So the scale of the network's logits does not matter, and the
    gradient passes through the constants too. In the form of Tsuzuku, Sato, Sugiyama (NeurIPS 2018), who add
    margin · L_yj to the other logits, the temperature would be one for logits, and the smaller L, the less would be
    asked for.

    Args:
        temperature: Weight of the radii in the softmax, in 1/pixels of [0, 1], > 0. The smaller, the more counts
            what is classified correctly already.
        margin: l2 radius that is subtracted from each r_j, in pixels of [0, 1], >= 0.
    """

    temperature: float = 4.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        fits = is_real(self.temperature) and 0 < self.temperature < math.inf
        require(fits, "objective.temperature", self.temperature, "must be > 0 and finite")
        require_nonnegative("objective.margin", self.margin)

    def loss(self, step: TrainingStep, images: Tensor, labels: Tensor) -> Loss:
        """Return the cross-entropy of the radii; logs also the mean radius over the batch, 0 where it is wrong.

        Raises:
            SettingError: If the network does not know its Lipschitz constants.
        """
        network = step.network
        if not isinstance(network, TrainableLipschitz):
            allowed = "needs a network with Lipschitz constants that can be trained: one of deqcert.monotone"
            raise SettingError("model.network", type(network).__name__, f"model.objective LipschitzMargin {allowed}")
        logits, _, metrics = _trained(step, images, labels, _draw_noise(images, step.sigma, 1))
        own = F.one_hot(labels, logits.shape[2]).bool()
        constants = network.training_constants().to(logits.dtype)[labels].masked_fill(own, 1.0)
        radii = (logits[0].gather(1, labels[:, None]) - logits[0]) / constants
        losses = F.cross_entropy((self.temperature * (self.margin - radii)).masked_fill(own, 0.0), labels)
        certified = radii.detach().masked_fill(own, math.inf).amin(dim=1).clamp_min(0)
        return Loss(losses, metrics | {"certified_radius": certified.mean()})


def _sum_of_smallest(losses: Tensor, counted: Tensor) -> Tensor:
    """Return the sum of the ``counted`` smallest losses of each image, shapes (m, B) and (B,) to (B,)."""
    ranks = torch.arange(len(losses), device=losses.device).unsqueeze(1)
    return torch.where(ranks < counted, losses.sort(dim=0).values, 0).sum(dim=0)


def _draw_noise(images: Tensor, sigma: float, samples: int) -> Tensor:
    """Return Gaussian noise from torch's global generator, shape (samples, B, C, H, W)."""
    return sigma * torch.randn(samples, *images.shape, dtype=images.dtype, device=images.device)


def _trained(
    step: TrainingStep, images: Tensor, labels: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return logits (m, B, classes) and cross-entropies (m, B) of noisy samples, and what every objective logs."""
    logits = classify_noisy(step.logits, images, noise)
    losses = F.cross_entropy(logits.movedim(2, 1), labels.expand(len(logits), -1), reduction="none")
    accuracy = (logits.argmax(dim=2) == labels).float().mean()
    return logits, losses, {"cross_entropy": losses.detach().mean(), "accuracy_under_noise": accuracy}


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) of log-probabilities over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
