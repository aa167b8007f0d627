"""Converged fixed points of noisy training images, to learn from while the network is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.errors import TrainingError
from deqcert.models import MDEQ, MDEQInjection
from deqcert.solvers import Solver


class FixedPoints(NamedTuple):
    """Those of one batch.

    Attributes:
        injection: Injection of the noisy images.
        value: Fixed points, shape (B, D).
    """

    injection: MDEQInjection
    value: Tensor


def noisy_fixed_points(network: MDEQ, batches: Iterable[Tensor], sigma: float, solver: Solver) -> Iterator[FixedPoints]:
    """Yield fixed points without end, each batch with fresh noise.

    Args:
        network: The network in evaluation mode.
        batches: Clean images in [0, 1], shape (B, C, H, W); begun again when they end.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        solver: Finds the fixed points from a cold start.

    Raises:
        TrainingError: A fixed point is not finite.
    """
    while True:
        for images in batches:
            yield _solved(network, images + sigma * torch.randn_like(images), solver)


@torch.no_grad()
def _solved(network: MDEQ, noisy: Tensor, solver: Solver) -> FixedPoints:
    injection = network.inject(noisy)
    solution = solver.solve(lambda z: network.cell(z, injection), network.initial_state(injection))
    if bool(solution.diverged.any()):
        raise TrainingError("a fixed point is not finite: the network has not been trained to have one")
    return FixedPoints(injection, solution.value)
