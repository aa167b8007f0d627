"""Projected gradient descent on what was certified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.attacks.pgd import PGD
from deqcert.attacks.targets import Target
from deqcert.deterministic import Norm
from deqcert.errors import require_count
from deqcert.implicit import GradientEstimator, ImplicitAdjoint
from deqcert.seeding import Purpose, purpose_seed

# Far above the rounding of a float32 norm, far below what matters to an attack.
_SHORTER = 1 - 1e-6


@dataclass(frozen=True)
class CertificateAttack:
    """Looks for points near an image where a classifier changes its class, by PGD on the loss of the target.

    That of a smoothed classifier is −log mean_j softmax(f(x + δ + η_j))_A, A being the certified class, over noise η_j
    that stays the same throughout (Salman et al., NeurIPS 2019); that of a network certified without noise is the lead
    of another class over A. The gradient passes through the fixed points of a DEQ.

    Args:
        steps: Gradient steps, >= 1.
        samples: Noise vectors η_j, >= 1; not used without noise.
        restarts: Attacks, >= 1: with noise of their own, of which the one that does best on further noise counts, or
            without noise towards other classes.
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
                    loss = target.loss(classifier, predicted, noise, restart)
                    pgd = PGD(steps=self.steps, norm=target.norm)
                    deltas.append(pgd.perturb(image.expand(len(some), *image.shape), loss, some))
        return _within(image, torch.cat(deltas), radii, target.norm)

    @torch.no_grad()
    def _losses(self, target: Target, points: Tensor, predicted: int, noise: Tensor) -> Tensor:
        losses = []
        for some in self._groups(target, points):
            with target.differentiable(self.gradient) as classifier:
                losses.append(target.loss(classifier, predicted, noise)(some))
        return torch.cat(losses)

    def _groups(self, target: Target, rows: Tensor) -> Sequence[Tensor]:
        """Split rows so that the noisy samples of each group fit into a batch."""
        return torch.split(rows, max(1, target.rows // self.samples))


def distances(points: Tensor, image: Tensor, norm: Norm = "l2") -> Tensor:
    """Return the distances of points, shape (R, C, H, W), from an image, shape (C, H, W), in float64; shape (R,)."""
    order = torch.inf if norm == "linf" else 2
    norms: Tensor = torch.linalg.vector_norm((points.double() - image.double()).flatten(1), order, dim=1)
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


def _within(image: Tensor, delta: Tensor, radii: Sequence[float], norm: Norm) -> Tensor:
    """Return ``image + delta`` in [0, 1], shortened until it is within its radius as float64 measures it."""
    limits = torch.tensor(radii, dtype=torch.float64, device=image.device)
    while True:
        points = (image + delta).clamp(0, 1)
        far = distances(points, image, norm) > limits
        if not far.any():
            return points
        delta = torch.where(far.view(-1, 1, 1, 1), delta * _SHORTER, delta)
