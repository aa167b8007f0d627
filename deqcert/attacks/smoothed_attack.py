"""Projected gradient descent on a smoothed classifier g."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.attacks.networks import Classifier, WarmStarted, classify_noisy, few_step_logits, frozen, log_smoothed
from deqcert.attacks.pgd import PGD, Loss
from deqcert.errors import require_count
from deqcert.implicit import GradientEstimator, ImplicitAdjoint
from deqcert.seeding import Purpose, purpose_seed
from deqcert.smoothing import SmoothedClassifier, SolvedClassifier, Stream
from deqcert.smoothing.execution import Workers
from deqcert.smoothing.noise import noisy_batches

# Far above the rounding of a float32 norm, far below what matters to an attack.
_SHORTER = 1 - 1e-6


class Target:
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
        self.rows = self._engine.rows  # maximum number of noisy samples per batch

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


@dataclass(frozen=True)
class SmoothedAttack:
    """Looks for points near an image where the smoothed classifier changes its class (Salman et al., NeurIPS 2019).

    PGD maximizes −log mean_j softmax(f(x + δ + η_j))_A, A being the certified class, over noise η_j that stays the same
    throughout. The gradient passes through the fixed points of a DEQ.

    Args:
        steps: Gradient steps, >= 1.
        samples: Noise vectors η_j, >= 1.
        restarts: Attacks with noise of their own, of which the one that does best on further noise counts, >= 1.
        gradient: Gradient through the fixed point of a DEQ.

    Raises:
        SettingError: A setting is out of range.
    """

    steps: int = 20
    samples: int = 16
    restarts: int = 1
    gradient: GradientEstimator = ImplicitAdjoint()

    def __post_init__(self) -> None:
        for field in ("steps", "samples", "restarts"):
            require_count(field, getattr(self, field), minimum=1)

    def points(self, target: Target, image: Tensor, index: int, predicted: int, radii: Sequence[float]) -> Tensor:
        """Attack an image in [0, 1], shape (C, H, W), with the original index and certified class, at R radii >= 0.

        A point depends on what is attacked beside it by the rounding of kernels only; and where a gradient vanishes or
        is not finite, by the random direction that is taken in its place.

        Returns:
            Points in [0, 1], shape (R, C, H, W), each within its radius by :func:`distances`, without a tolerance.
        """
        found = [self._search(target, image, index, predicted, radii, restart) for restart in range(self.restarts)]
        if len(found) == 1:
            return found[0]
        noise = target.noise(image, index, self.samples, self.restarts)
        losses = torch.stack([self._losses(target, points, predicted, noise) for points in found])
        return torch.stack(found)[losses.argmax(dim=0), torch.arange(len(radii), device=losses.device)]

    def _search(
        self, target: Target, image: Tensor, index: int, predicted: int, radii: Sequence[float], restart: int
    ) -> Tensor:
        noise = target.noise(image, index, self.samples, restart)
        limits = torch.tensor(radii, dtype=image.dtype, device=image.device).view(-1, 1, 1, 1)
        deltas = []
        with torch.random.fork_rng([image.device] if image.is_cuda else []), _one_thread(image.device):
            torch.manual_seed(purpose_seed(Purpose.ATTACK_DIRECTION, target.seed, index, restart))
            for some in self._groups(target, limits):
                with target.differentiable(self.gradient) as classifier:
                    loss = _loss(classifier, predicted, noise)
                    deltas.append(PGD(steps=self.steps).perturb(image.expand(len(some), *image.shape), loss, some))
        return _within(image, torch.cat(deltas), radii)

    @torch.no_grad()
    def _losses(self, target: Target, points: Tensor, predicted: int, noise: Tensor) -> Tensor:
        losses = []
        for some in self._groups(target, points):
            with target.differentiable(self.gradient) as classifier:
                losses.append(_loss(classifier, predicted, noise)(some))
        return torch.cat(losses)

    def _groups(self, target: Target, rows: Tensor) -> Sequence[Tensor]:
        """Split rows so that the noisy samples of each group fit into a batch."""
        return torch.split(rows, max(1, target.rows // self.samples))


def distances(points: Tensor, image: Tensor) -> Tensor:
    """Return the l2 distances of points, shape (R, C, H, W), from an image, shape (C, H, W), in float64; shape (R,)."""
    norms: Tensor = torch.linalg.vector_norm((points.double() - image.double()).flatten(1), dim=1)
    return norms


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Keep a CPU from sharing kernels between cores: those of an attack are too small for that."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _loss(classifier: Classifier, predicted: int, noise: Tensor) -> Loss:
    def loss(points: Tensor) -> Tensor:
        repeated = noise.expand(-1, len(points), *noise.shape[2:])
        return -log_smoothed(classify_noisy(classifier, points, repeated))[:, predicted]

    return loss


def _within(image: Tensor, delta: Tensor, radii: Sequence[float]) -> Tensor:
    """Return ``image + delta`` in [0, 1], shortened until it is within its radius as float64 measures it."""
    limits = torch.tensor(radii, dtype=torch.float64, device=image.device)
    while True:
        points = (image + delta).clamp(0, 1)
        far = distances(points, image) > limits
        if not far.any():
            return points
        delta = torch.where(far.view(-1, 1, 1, 1), delta * _SHORTER, delta)
