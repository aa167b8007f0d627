"""What is attacked: a smoothed classifier, judged by fresh noise, or a network certified without it, judged exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, get_args

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from deqcert.attacks.networks import Classifier, WarmStarted, classify_noisy, few_step_logits, frozen, log_smoothed
from deqcert.attacks.pgd import Loss
from deqcert.deterministic import Norm
from deqcert.errors import require
from deqcert.implicit import GradientEstimator
from deqcert.models import DEQ
from deqcert.models.certified import LipschitzClassifier
from deqcert.seeding import Purpose
from deqcert.smoothing import SmoothedClassifier, SolvedClassifier, Stream
from deqcert.smoothing.execution import Workers
from deqcert.smoothing.noise import noisy_batches
from deqcert.solvers import Solver
from deqcert.statistics import Certificate, claimed_probability, clopper_pearson_lower, clopper_pearson_upper


class Target(ABC):
    """A classifier at points that are not images of a run.

    Attributes:
        norm: Norm of its certified radii.
        rows: Maximum number of inputs of the classifier per batch.
        seed: Seed of attack and fresh noise, in [0, 2^64).
    """

    norm: Norm = "l2"
    rows: int
    seed: int

    @abstractmethod
    def counts(self, points: Tensor, index: int, n: int) -> list[tuple[int, ...]]:
        """Return how many of ``n`` samples get each class at each of R points, shape (R, C, H, W)."""

    @abstractmethod
    def differentiable(self, gradient: GradientEstimator) -> AbstractContextManager[Classifier]:
        """Yield the classifier with frozen parameters, differentiable in its input.

        ``gradient`` is for the fixed point of a DEQ; other networks are differentiated as they are.
        """

    @abstractmethod
    def noise(self, like: Tensor, index: int, samples: int, restart: int) -> Tensor:
        """Return noise for the inside of an attack, shape (samples, 1, C, H, W); each restart has its own."""

    @abstractmethod
    def loss(self, classifier: Classifier, predicted: int, noise: Tensor, restart: int = 0) -> Loss:
        """Return what an attack on the class ``predicted`` maximizes; restart 0 is the one to compare points by."""

    @abstractmethod
    def judged(
        self, certificate: Certificate, norm: float, counts: Sequence[int], n: int, alpha: float
    ) -> dict[str, Any]:
        """Return claims and bounds of an outcome: what is claimed at this distance, what ``counts`` of ``n`` say."""


class SmoothedTarget(Target):
    """g at points that are not images of a run: its votes, and f with gradients, however its votes were taken.

    Args:
        g: Smoothed classifier.
        image: One clean image, shape (C, H, W), on the device of f.
        seed: Seed of attack and fresh noise, in [0, 2^64).

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
        zero, stream = torch.zeros_like(like), Stream(self.seed, index)
        batches = noisy_batches(
            zero, stream, Purpose.ATTACK, sigma=self.g.sigma, count=samples, batch_size=samples, part=restart
        )
        return next(batches)[:, None]

    @contextmanager
    def differentiable(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield f with frozen parameters, differentiable in its input; without the rounding of quantised noise.

        ``gradient`` is for the fixed point of a DEQ. Other networks are differentiated as they are, and so are few
        steps from an anchor, taken plainly: f itself if its solver is Picard, near it otherwise.
        """
        base = self.g.base
        with frozen(base):
            if not isinstance(base, SolvedClassifier):
                yield base
            elif base.start == "anchor":
                yield lambda x: few_step_logits(base.network, x, base.solver.max_steps)
            else:
                yield WarmStarted(base.network, base.network.cell, base.solver, gradient)

    def loss(self, classifier: Classifier, predicted: int, noise: Tensor, restart: int = 0) -> Loss:
        """Return −log mean_j softmax(f(x + η_j))_A, over noise η_j that stays the same throughout."""

        def loss(points: Tensor) -> Tensor:
            repeated = noise.expand(-1, len(points), *noise.shape[2:])
            return -log_smoothed(classify_noisy(classifier, points, repeated))[:, predicted]

        return loss

    def judged(
        self, certificate: Certificate, norm: float, counts: Sequence[int], n: int, alpha: float
    ) -> dict[str, Any]:
        """Return claims and bounds; with two sides each has half of ``alpha``, p_B's shared by all other classes."""
        n_a, sigma = counts[certificate.prediction], self.g.sigma
        if certificate.p_a_lower is None or certificate.p_b_upper is None:
            claimed = float(claimed_probability(certificate.radius, norm, sigma))
            return {"claimed": claimed, "p_a_upper": float(clopper_pearson_upper(n_a, n, alpha))}
        at_image = (sigma * float(ndtri(p)) for p in (certificate.p_a_lower, 1 - certificate.p_b_upper))
        claimed, claimed_not_b = (float(claimed_probability(each, norm, sigma)) for each in at_image)
        others = [count for c, count in enumerate(counts) if c != certificate.prediction] or [0]
        return {
            "claimed": claimed,
            "p_a_upper": float(clopper_pearson_upper(n_a, n, alpha / 2)),
            "claimed_b": 1 - claimed_not_b,
            "p_b_lower": float(clopper_pearson_lower(max(others), n, alpha / 2 / len(others))),
        }


class ExactTarget(Target):
    """A network that was certified without noise: at each point one class, and nothing random.

    Args:
        network: The copy that was certified: float64, in evaluation mode.
        solver: Solver of the certificates.
        norm: Norm of the certified radii: l2 or linf.
        seed: Seed of the directions that are taken where a gradient vanishes, in [0, 2^64).

    Raises:
        SettingError: The network cannot bound the error of its logits, is not in float64 or in training mode, or
            the norm is unknown.
    """

    rows = 64

    def __init__(self, network: nn.Module, solver: Solver, norm: Norm = "l2", seed: int = 0) -> None:
        name = type(network).__name__
        require(isinstance(network, LipschitzClassifier), "network", name, "must bound the error of its logits")
        double = all(each.dtype == torch.float64 for each in network.parameters())
        require(double and not network.training, "network", name, "must be in float64 and in evaluation mode")
        require(norm in get_args(Norm), "norm", norm, f"must be one of {get_args(Norm)}")
        self.network: Any = network
        self.solver, self.norm, self.seed = solver, norm, seed

    def counts(self, points: Tensor, index: int, n: int) -> list[tuple[int, ...]]:
        """Return ``n`` for the class of each point, shape (R, C, H, W); 0 for all where errors leave it open."""
        with torch.no_grad():
            bounded = self.network.bounded_logits(points.double(), self.solver)
        best, classes = bounded.logits.max(dim=1, keepdim=True)
        ahead = best - bounded.logits > bounded.errors
        certain = ahead.scatter(1, classes, True).all(dim=1, keepdim=True)
        counts = torch.zeros_like(bounded.logits, dtype=torch.int64).scatter(1, classes, n * certain.long())
        return [tuple(row) for row in counts.tolist()]

    @contextmanager
    def differentiable(self, gradient: GradientEstimator) -> Iterator[Classifier]:
        """Yield the network with frozen parameters; inputs of any precision are classified in float64."""
        network = self.network
        with frozen(network):
            solved = WarmStarted(network, network.cell, self.solver, gradient) if isinstance(network, DEQ) else network
            yield lambda x: solved(x.double())

    def noise(self, like: Tensor, index: int, samples: int, restart: int) -> Tensor:
        """Return zero, shape (1, 1, C, H, W)."""
        return torch.zeros_like(like)[None, None]

    def loss(self, classifier: Classifier, predicted: int, noise: Tensor, restart: int = 0) -> Loss:
        """Return y_j − y_A, j being the best of all other classes, and at restart k >= 1 the k-th class after A.

        As many restarts as there are classes attack towards each other class, too.
        """

        def loss(points: Tensor) -> Tensor:
            own, *others = classifier(points).roll(-predicted, dims=1).unbind(dim=1)
            best = others[(restart - 1) % len(others)] if restart else torch.stack(others).amax(dim=0)
            return best - own

        return loss

    def judged(
        self, certificate: Certificate, norm: float, counts: Sequence[int], n: int, alpha: float
    ) -> dict[str, Any]:
        """Return p_A as 0 or 1: strictly inside of the radius 1 is claimed, and only another class refutes it."""
        other = sum(counts) - counts[certificate.prediction]
        return {"claimed": float(norm < certificate.radius), "p_a_upper": float(other == 0)}
