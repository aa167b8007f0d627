"""Training the learned mixing of an MDEQ, which is left as it is otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.errors import SettingError, TrainingError, require, require_count
from deqcert.models import MDEQ
from deqcert.models.mixing import LearnedMixer
from deqcert.solvers import Anderson, Function, LearnedMixing, Picard, Solver
from deqcert.solvers.learned import unrolled
from deqcert.training.starts import FixedPoints, noisy_fixed_points

_MEASURED = 10
"""Batches with fresh noise that the report is made of."""


class MixingReport(NamedTuple):
    """How near few steps from the anchor come: roots of the mean of ‖X_k − z*‖² / ‖z*‖² after k = 1, 2, … steps.

    Attributes:
        images: Noisy images that the mixing was trained on.
        plain: After plain steps.
        anderson: After steps of Anderson acceleration.
        learned: After steps of learned mixing.
    """

    images: int
    plain: tuple[float, ...]
    anderson: tuple[float, ...]
    learned: tuple[float, ...]


def train_mixing(
    network: MDEQ, batches: Iterable[Tensor], sigma: float, solver: Solver, steps: int, learning_rate: float = 1e-2
) -> MixingReport:
    """Train the mixer of ``network`` so that few steps from the anchor come close to converged fixed points.

    The loss is the sum over the steps of the logarithm of the mean relative squared distance, so that each step counts
    alike however near it is. Adam, with a learning rate that falls along a cosine; all else stays frozen in evaluation
    mode (after Bai, Koltun and Kolter, "Neural deep equilibrium solvers", ICLR 2022).

    Args:
        network: The trained network, with its start computed and the mixer to train.
        batches: Clean images in [0, 1], shape (B, C, H, W); begun again when they end.
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        solver: Finds the fixed points from a cold start.
        steps: Batches to take, >= 1.
        learning_rate: At the beginning.

    Raises:
        SettingError: The network has no mixer or a start that was not computed, or a setting is out of range.
        TrainingError: A fixed point, or a distance to it, is not finite.
    """
    require_count("mixing_batches", steps, minimum=1)
    require(sigma > 0, "sigma", sigma, "must be > 0: mixing without noise is none for noisy copies")
    mixer = network.mixer
    if mixer is None:
        raise SettingError("model.network.mixing_steps", 0, "must be >= 1 to be trained")
    require(network.start_sigma != 0, "model.network.start", network.start_kind, "must be computed first")
    network.eval()
    fixed_points = noisy_fixed_points(network, batches, sigma, solver)
    images = _fit(network, mixer, islice(fixed_points, steps), steps, learning_rate)
    return _measure(network, mixer, images, islice(fixed_points, _MEASURED))


def _fit(
    network: MDEQ, mixer: LearnedMixer, fixed_points: Iterable[FixedPoints], steps: int, learning_rate: float
) -> int:
    """Train, and return the number of images."""
    parameters = list(mixer.parameters())
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    images = 0
    for each in fixed_points:
        optimizer.zero_grad()
        iterates = unrolled(_function(network, each), _anchor(network, each), mixer)
        loss = torch.stack([_error(iterate, each.value).log() for iterate in iterates]).sum()
        if not math.isfinite(float(loss.detach())):
            raise TrainingError("the learned mixing is not finite")
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        images += len(each.value)
    return images


@torch.no_grad()
def _measure(network: MDEQ, mixer: LearnedMixer, images: int, fixed_points: Iterable[FixedPoints]) -> MixingReport:
    counts = range(1, mixer.steps + 1)
    kinds = (Picard, Anderson, LearnedMixing)
    solvers = [kind(max_steps=count).bound_to(mixer) for kind in kinds for count in counts]
    errors = torch.stack([torch.stack(list(_errors(network, each, solvers))) for each in fixed_points])
    roots = errors.mean(dim=0).sqrt().view(len(kinds), -1).tolist()
    return MixingReport(images, *(tuple(each) for each in roots))


def _errors(network: MDEQ, fixed_points: FixedPoints, solvers: Iterable[Solver]) -> Iterator[Tensor]:
    function, start = _function(network, fixed_points), _anchor(network, fixed_points)
    for solver in solvers:
        yield _error(solver.solve(function, start).value, fixed_points.value)


@torch.no_grad()
def _anchor(network: MDEQ, fixed_points: FixedPoints) -> Tensor:
    return network.anchor(fixed_points.injection)


def _function(network: MDEQ, fixed_points: FixedPoints) -> Function:
    return lambda z: network.cell(z, fixed_points.injection)


def _error(iterate: Tensor, target: Tensor) -> Tensor:
    """Return the mean over images of the relative squared distance."""
    return ((iterate - target).square().sum(dim=1) / target.square().sum(dim=1)).mean()
