"""Projected gradient descent on a smoothed classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.attacks import PGD, Classifier, Score, classify_noisy, log_smoothed
from deqcert.errors import require_count
from deqcert.implicit import GradientEstimator, ImplicitAdjoint
from deqcert.robustness.target import Target
from deqcert.seeding import Purpose, purpose_seed

# Far above the rounding of a float32 norm, far below what matters to an attack.
_SHORTER = 1 - 1e-6


@dataclass(frozen=True)
class SmoothedAttack:
    """Looks for points near an image where the smoothed classifier changes its class (Salman et al., NeurIPS 2019).

    PGD maximises −log mean_j softmax(f(x + δ + η_j))_A, A being the certified class, over noise η_j that stays the same
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
        """Attack an image at several radii side by side.

        A point depends on what is attacked beside it by the rounding of kernels only; and where a gradient vanishes or
        is not finite, by the random direction that is taken in its place.

        Args:
            target: What is attacked.
            image: Clean image in [0, 1], shape (C, H, W).
            index: Its original index.
            predicted: The class A.
            radii: R l2 radii, >= 0.

        Returns:
            Points in [0, 1], shape (R, C, H, W), each within its radius by :func:`distances`, without a tolerance.
        """
        found = [self._search(target, image, index, predicted, radii, restart) for restart in range(self.restarts)]
        if len(found) == 1:
            return found[0]
        noise = target.noise(image, index, self.samples, self.restarts)
        with torch.no_grad():
            losses = torch.stack([self._losses(target, points, predicted, noise) for points in found])
        return torch.stack(found)[losses.argmax(dim=0), torch.arange(len(radii), device=losses.device)]

    def _search(
        self,
        target: Target,
        image: Tensor,
        index: int,
        predicted: int,
        radii: Sequence[float],
        restart: int,
    ) -> Tensor:
        noise = target.noise(image, index, self.samples, restart)
        pgd = PGD(steps=self.steps)
        deltas = []
        with torch.random.fork_rng([image.device] if image.is_cuda else []), _one_thread(image.device):
            torch.manual_seed(purpose_seed(Purpose.ATTACK_DIRECTION, target.seed, index, restart))
            for some in self._groups(target, torch.tensor(radii, dtype=image.dtype, device=image.device)):
                with target.differentiable(self.gradient) as classifier:
                    score = _score(classifier, predicted, noise)
                    images = image.expand(len(some), *image.shape)
                    deltas.append(pgd.perturb(images, score, some.view(-1, 1, 1, 1)))
        return _within(image, torch.cat(deltas), radii)

    def _losses(self, target: Target, points: Tensor, predicted: int, noise: Tensor) -> Tensor:
        losses = []
        for some in self._groups(target, points):
            with target.differentiable(self.gradient) as classifier:
                losses.append(_score(classifier, predicted, noise)(some).loss.detach())
        return torch.cat(losses)

    def _groups(self, target: Target, points: Tensor) -> Sequence[Tensor]:
        """Split points so that the copies of each group fit into a launch."""
        return torch.split(points, max(1, target.rows // self.samples))


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


def distances(points: Tensor, image: Tensor) -> Tensor:
    """Return the l2 distances of points, shape (R, C, H, W), from an image, shape (C, H, W), in float64; shape (R,)."""
    norms: Tensor = torch.linalg.vector_norm((points.double() - image.double()).flatten(1), dim=1)
    return norms


def _score(classifier: Classifier, predicted: int, noise: Tensor) -> Callable[[Tensor], Score]:
    def score(points: Tensor) -> Score:
        copies = noise.expand(-1, len(points), *noise.shape[2:])
        prediction = log_smoothed(classify_noisy(classifier, points, copies))
        return Score(-prediction[:, predicted], prediction.argmax(dim=1) != predicted)

    return score


def _within(image: Tensor, delta: Tensor, radii: Sequence[float]) -> Tensor:
    """Return ``image + delta`` in [0, 1], shortened until it is within its radius as float64 measures it."""
    limits = torch.tensor(radii, dtype=torch.float64, device=image.device)
    points = (image + delta).clamp(0, 1)
    while bool((far := distances(points, image) > limits).any()):
        delta = torch.where(far.view(-1, 1, 1, 1), delta * _SHORTER, delta)
        points = (image + delta).clamp(0, 1)
    return points
