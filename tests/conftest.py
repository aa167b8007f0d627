"""A deep equilibrium classifier whose fixed point is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from deqcert.models import DEQ
from deqcert.solvers import Picard

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class ThresholdDEQ(DEQ):
    """z = rate · z + u with u the mean pixel, hence z* = u / (1 − rate); class 0 where z > threshold, else class 1.

    Rows with u > poison are NaN. ``rows`` records the batch size of every evaluation of the cell and ``inputs`` every
    batch of images.
    """

    def __init__(self, threshold: float = 1.0, rate: float = 0.5, poison: float = float("inf")) -> None:
        super().__init__(Picard(max_steps=60))
        self.threshold = threshold
        self.rate = rate
        self.poison = poison
        self.rows: list[int] = []
        self.inputs: list[Tensor] = []
        self.eval()

    def inject(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return x.flatten(1).mean(dim=1, keepdim=True)

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros_like(injection)

    def cell(self, z: Tensor, injection: Tensor) -> Tensor:
        self.rows.append(len(z))
        return torch.where(injection > self.poison, torch.nan, self.rate * z + injection)

    def head(self, z: Tensor) -> Tensor:
        return torch.cat([z, torch.full_like(z, self.threshold)], dim=1)


@pytest.fixture(scope="session")
def threshold_deq() -> Callable[..., ThresholdDEQ]:
    return ThresholdDEQ
