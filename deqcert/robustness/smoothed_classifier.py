"""The smoothed classifier that the certificates of a run are about, at points that are no images of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deqcert.attacks import Classifier, WarmStarted, few_step_logits, frozen
from deqcert.implicit import GradientEstimator
from deqcert.models import DEQ
from deqcert.seeding import Purpose
from deqcert.smoothing import Smoothing
from deqcert.smoothing.labels import count_labels
from deqcert.smoothing.noise import noisy_batches
from deqcert.smoothing.workers import Workers


class SmoothedClassifier:
    """g(x) = argmax_c P(f(x + ε) = c), with the base classifier f and the noise of a smoothing strategy.

    f is what the certificates are about (``smoothing.base_labels``), whatever cheap labels the strategy took its votes
    from. Under ``quantised`` noise f rounds its input to multiples of 1/255. There
    the certificate holds for every point, 8-bit or not, so a point is not rounded itself: x + ε is, with a Gaussian
    float ε. That is g to within the rounding of ε, which tests of some thousand copies cannot see; the exact sampler of
    certificates is for 8-bit images only.

    Args:
        classifier: Base classifier in evaluation mode.
        smoothing: Strategy of the run.
        image: One clean image, shape (C, H, W), on the device of the classifier.

    Attributes:
        sigma: Standard deviation of the noise.
        rows: Most copies per launch.

    Raises:
        SettingError: The classifier is in training mode.
    """

    def __init__(self, classifier: nn.Module, smoothing: Smoothing, image: Tensor) -> None:
        self.sigma = smoothing.sigma
        self._classifier = classifier
        self._smoothing = smoothing
        self._engine = smoothing.engine(classifier, image)
        several = image.device.type == "cpu" and isinstance(classifier, DEQ)  # others may keep state in attributes
        self._workers = Workers() if several else None
        self.rows = self._engine.rows

    def counts(self, points: Tensor, index: int, n: int, seed: int) -> list[tuple[int, ...]]:
        """Return how often f gives each class to ``n`` noisy copies of each of R points, shape (R, C, H, W).

        The noise belongs to (seed, index) and to this purpose: neither certificates nor attacks have drawn it, and all
        points of an image get the same. A copy whose logits are not finite counts for no class.
        """

        def of(point: Tensor) -> tuple[int, ...]:
            return self._counts(point, index, n, seed)

        return [of(point) for point in points] if self._workers is None else self._workers.map(of, list(points))

    def _counts(self, point: Tensor, index: int, n: int, seed: int) -> tuple[int, ...]:
        labels = [
            self._smoothing.base_labels(self._engine, copies).labels for copies in self._copies(point, index, n, seed)
        ]
        return count_labels(torch.cat(labels).cpu().numpy(), self._engine.num_classes)

    def attack_noise(self, image: Tensor, index: int, copies: int, seed: int, stream: int) -> Tensor:
        """Return noise for the inside of an attack, shape (copies, 1, C, H, W); each ``stream`` has its own."""
        batches = noisy_batches(
            torch.zeros_like(image),
            index,
            Purpose.ATTACK,
            sigma=self.sigma,
            count=copies,
            batch_size=copies,
            seed=seed,
            chain=stream,
        )
        return next(batches)[:, None]

    @contextmanager
    def attacked(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield f with frozen parameters, differentiable in its input; without the rounding of quantised noise.

        Args:
            gradient: Gradient through the fixed point of a DEQ; other networks are differentiated as they are, and so
                are few steps from an anchor, taken plainly: f itself if its solver is Picard, near it otherwise.
        """
        classifier, solver = self._classifier, self._smoothing.base_solver
        with frozen(classifier):
            if isinstance(classifier, DEQ) and self._smoothing.anchored:
                yield lambda x: few_step_logits(classifier, x, solver.max_steps)
            elif isinstance(classifier, DEQ):
                yield WarmStarted(classifier, classifier.cell, solver, gradient)
            else:
                yield classifier

    def _copies(self, point: Tensor, index: int, n: int, seed: int) -> Iterator[Tensor]:
        quantised = self._smoothing.noise == "quantised"
        batches = noisy_batches(
            point.double() if quantised else point,
            index,
            Purpose.ATTACK_CHECK,
            sigma=self.sigma,
            count=n,
            batch_size=self._smoothing.batch_size,
            seed=seed,
        )
        for copies in batches:
            yield (copies * 255).round().to(torch.float32).div_(255) if quantised else copies
