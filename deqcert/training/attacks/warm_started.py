"""A deep equilibrium network as attacks see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqcert.implicit import GradientEstimator
from deqcert.models import DEQ
from deqcert.solvers import Solver


class WarmStarted:
    """Classifies images with a graph to them; each solve starts from the fixed points of the one before it.

    The steps of an attack are small, so its next fixed points are near. A batch of another size and rows whose last
    fixed point is not finite start cold, and so does every batch where the gradient is unrolled.

    Args:
        network: The network, in evaluation mode.
        cell: Its cell; compiled where that is asked for.
        solver: Forward solver.
        gradient: Gradient through the fixed point.
    """

    def __init__(
        self, network: DEQ, cell: Callable[[Tensor, Any], Tensor], solver: Solver, gradient: GradientEstimator
    ) -> None:
        self._network = network
        self._cell = cell
        self._solver = solver
        self._gradient = gradient
        self._last: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``, shape (B, C, H, W) to (B, classes)."""
        injection = self._network.inject(x)
        start = self._start(self._network.initial_state(injection))
        fixed_point = self._gradient.fixed_point(lambda z: self._cell(z, injection), start, self._solver)
        self._last = None if fixed_point.solution is None else fixed_point.state.detach()
        return self._network.head(fixed_point.value)

    def _start(self, cold: Tensor) -> Tensor:
        if self._last is None or len(self._last) != len(cold):
            return cold
        finite = self._last.flatten(1).isfinite().all(dim=1).view(-1, *[1] * (cold.dim() - 1))
        return torch.where(finite, self._last, cold)
