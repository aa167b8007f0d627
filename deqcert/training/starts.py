"""Computing the anchored start of a trained MDEQ, which is left as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.errors import SettingError, TrainingError, require, require_count
from deqcert.models import MDEQ
from deqcert.models.starts import LearnedStart, MeanStart
from deqcert.solvers import Solver

_FixedPoints = tuple[Tensor, list[Tensor]]
"""Injected features, and the fixed point of each branch, shape (B, C_i, H_i, W_i)."""

_MEAN_BATCHES, _REPORTED = 30, 50


class StartReport(NamedTuple):
    """Noisy images that a start was computed from; root of the mean of ‖start − z*‖² / ‖z*‖² over the last batches."""

    images: int
    error: float


def compute_start(
    network: MDEQ, batches: Iterable[Tensor], sigma: float, solver: Solver, steps: int, learning_rate: float = 3e-3
) -> StartReport:
    """Compute the start of ``network`` from converged fixed points of noisy training images.

    The mean start is their mean. The learned one begins with it and is trained by Adam on the relative squared distance
    to them, with a learning rate that falls along a cosine; the network itself stays frozen in evaluation mode (Bai,
    Koltun and Kolter, "Neural deep equilibrium solvers", ICLR 2022).

    Args:
        network: The trained network, with the start to compute.
        batches: Clean images in [0, 1], shape (B, C, H, W); begun again when they end.
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        solver: Finds the fixed points from a cold start.
        steps: Batches to take, >= 1.
        learning_rate: Of the learned start, at the beginning.

    Raises:
        SettingError: The network has no start to compute, or a setting is out of range.
        TrainingError: A fixed point, or the start, is not finite.
    """
    require_count("steps", steps, minimum=1)
    require(sigma > 0, "sigma", sigma, "must be > 0: a start computed without noise cannot be used for noisy inputs")
    start = network.start
    if start is None:
        raise SettingError("model.network.start", network.start_kind, "must be mean or learned to be computed")
    network.eval()
    fixed_points = _fixed_points(network, batches, sigma, solver)
    report = _average(start, islice(fixed_points, _MEAN_BATCHES if isinstance(start, LearnedStart) else steps))
    if isinstance(start, LearnedStart):
        report = _regress(start, islice(fixed_points, steps), steps, learning_rate)
    if not math.isfinite(report.error):
        raise TrainingError(f"the {network.start_kind} start is not finite")
    start.sigma.fill_(sigma)
    return report


def _average(start: MeanStart, fixed_points: Iterable[_FixedPoints]) -> StartReport:
    count, error = 0, 0.0
    sums: list[Tensor] = []
    for _, target in fixed_points:
        added = [branch.sum(dim=0) for branch in target]
        sums = [total + more for total, more in zip(sums, added, strict=True)] if sums else added
        count += len(target[0])
        start.set_mean([total / count for total in sums])
        error = float(_error([total / count for total in sums], target))
    return StartReport(count, math.sqrt(error))


def _regress(
    start: LearnedStart, fixed_points: Iterable[_FixedPoints], steps: int, learning_rate: float
) -> StartReport:
    optimizer = torch.optim.Adam(start.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count = 0
    errors: list[float] = []
    for features, target in fixed_points:
        optimizer.zero_grad()
        error = _error(start(features), target)
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        count += len(features)
        errors = [*errors[-_REPORTED:], float(error.detach())]
    return StartReport(count, math.sqrt(sum(errors) / len(errors)))


def _error(guess: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return the mean over images of the relative squared distance."""
    distance = sum(((g - t) ** 2).flatten(1).sum(dim=1) for g, t in zip(guess, target, strict=True))
    size = sum((t**2).flatten(1).sum(dim=1) for t in target)
    return torch.as_tensor(distance / size).mean()


def _fixed_points(network: MDEQ, batches: Iterable[Tensor], sigma: float, solver: Solver) -> Iterator[_FixedPoints]:
    """Yield them without end, each batch with fresh noise."""
    while True:
        for images in batches:
            yield _solved(network, images + sigma * torch.randn_like(images), solver)


@torch.no_grad()
def _solved(network: MDEQ, noisy: Tensor, solver: Solver) -> _FixedPoints:
    injection = network.inject(noisy)
    solution = solver.solve(lambda z: network.cell(z, injection), network.initial_state(injection))
    if bool(solution.diverged.any()):
        raise TrainingError("a fixed point is not finite: the network has not been trained to have one")
    return injection.features, network.branches_of(solution.value)
