"""The smoothed classifier g as an attack sees it: its votes at any point, and f with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from deqcert.attacks import Classifier, WarmStarted, few_step_logits, frozen
from deqcert.implicit import GradientEstimator
from deqcert.seeding import Purpose
from deqcert.smoothing import SmoothedClassifier, SolvedClassifier, Stream
from deqcert.smoothing.execution import Workers
from deqcert.smoothing.noise import noisy_batches


class Target:
    """g at points that are no images of a run. f is what certificates are about, however their votes were taken.

    Args:
        g: Smoothed classifier.
        image: One clean image, shape (C, H, W), on the device of f.
        seed: Seed of attack and fresh noise, in [0, 2^64).

    Attributes:
        g: The same.
        rows: Maximum number of noisy samples per batch.

    Raises:
        SettingError: f is in training mode or not a function of one image.
    """

    def __init__(self, g: SmoothedClassifier, image: Tensor, seed: int) -> None:
        self.g = g
        self.seed = seed
        self._engine = g.engine(image)
        several = image.device.type == "cpu" and isinstance(g.base, SolvedClassifier)  # others may keep state on self
        self._workers = Workers() if several else None
        self.rows = self._engine.rows

    def counts(self, points: Tensor, index: int, n: int) -> list[tuple[int, ...]]:
        """Return how often f gives each class to ``n`` noisy samples of each of R points, shape (R, C, H, W).

        The noise belongs to (seed, index) and to this purpose: neither certificates nor attacks have drawn it, and all
        points of an image get the same.
        """
        stream = Stream(self.seed, index)

        def of(point: Tensor) -> tuple[int, ...]:
            return self.g.counts(self._engine, point, stream, Purpose.ATTACK_CHECK, n)

        return [of(point) for point in points] if self._workers is None else self._workers.map(of, list(points))

    def noise(self, like: Tensor, index: int, samples: int, restart: int) -> Tensor:
        """Return noise for the inside of an attack, shape (samples, 1, C, H, W); each restart has its own."""
        zero, stream = like.new_zeros(like.shape), Stream(self.seed, index)
        sizes = {"sigma": self.g.sigma, "count": samples, "batch_size": samples, "part": restart}
        return next(noisy_batches(zero, stream, Purpose.ATTACK, **sizes))[:, None]  # type: ignore[arg-type]

    @contextmanager
    def differentiable(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield f with frozen parameters, differentiable in its input; without the rounding of quantised noise.

        Args:
            gradient: Gradient through the fixed point of a DEQ; other networks are differentiated as they are, and so
                are few steps from an anchor, taken plainly: f itself if its solver is Picard, near it otherwise.
        """
        base = self.g.base
        if not isinstance(base, SolvedClassifier):
            with frozen(base):
                yield base
            return
        network, solver = base.network, base.solver
        with frozen(network):
            if base.start == "anchor":
                yield lambda x: few_step_logits(network, x, solver.max_steps)
            else:
                yield WarmStarted(network, network.cell, solver, gradient)
