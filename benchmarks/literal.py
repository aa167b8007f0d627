"""The published algorithm, followed literally: what the engine is measured against.

Anderson acceleration of the whole batch with k + 2 evaluations for X_k, a Gram matrix computed anew at every step, and
a stop by the norms of the whole batch; state flattened and concatenated at every step; weight and batch normalization
at every evaluation; nothing reused, compiled or run in slices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deqcert.models import MDEQ

MEMORY = 6
RIDGE = 1e-4


def anderson(function: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float) -> Tensor:
    """Return X_steps of a batch of flat states, or the iterate at which its mean residual meets the tolerance."""
    batch, size = start.shape
    points, values = start.new_zeros(batch, MEMORY, size), start.new_zeros(batch, MEMORY, size)
    points[:, 0], values[:, 0] = start, function(start)
    points[:, 1], values[:, 1] = values[:, 0], function(values[:, 0])
    bordered = start.new_zeros(batch, MEMORY + 1, MEMORY + 1)
    bordered[:, 0, 1:] = bordered[:, 1:, 0] = 1
    right = start.new_zeros(batch, MEMORY + 1, 1)
    right[:, 0] = 1
    returned = points[:, 1].clone()
    for step in range(2, steps + 2):
        filled = min(step, MEMORY)
        residuals = values[:, :filled] - points[:, :filled]
        ridge = RIDGE * torch.eye(filled, device=start.device)
        bordered[:, 1 : filled + 1, 1 : filled + 1] = torch.bmm(residuals, residuals.transpose(1, 2)) + ridge
        weights = torch.linalg.solve(bordered[:, : filled + 1, : filled + 1], right[:, : filled + 1])[:, 1:, 0]
        slot = step % MEMORY
        points[:, slot] = torch.bmm(weights[:, None], values[:, :filled])[:, 0]
        if step == steps:
            returned = points[:, slot].clone()
        values[:, slot] = function(points[:, slot])
        residual = (values[:, slot] - points[:, slot]).norm().item() / (values[:, slot].norm().item() + 1e-5)
        if residual < tolerance:
            return points[:, slot].clone()
    return returned


class Literal:
    """Predictions for noisy samples of one image by the published procedures.

    Args:
        network: A plain network in evaluation mode.
        width: Noisy samples per batch.
        sigma: Standard deviation of the noise.
    """

    def __init__(self, network: MDEQ, width: int, sigma: float) -> None:
        self.network, self.width, self.sigma = network, width, sigma

    def standard(self, image: Tensor, n: int, steps: int, tolerance: float = 0.0) -> Tensor:
        """Classify ``n`` noisy samples, each batch from a cold start."""
        return torch.cat([self._solve(x, None, steps, tolerance)[0] for x in self._noisy(image, n)])

    def serialized(self, image: Tensor, n0: int, n: int, steps: int, warmup_steps: int = 10) -> Tensor:
        """Classify ``n0`` and then ``n`` samples, each batch from the fixed points of the last one."""
        predictions, cache = [], None
        for count in (n0, n):
            for x in self._noisy(image, count):
                start = None if cache is None else cache[torch.arange(len(x)) % len(cache)]
                given, cache = self._solve(x, start, warmup_steps if start is None else steps, 0.0)
                predictions.append(given)
        return torch.cat(predictions)

    def _noisy(self, image: Tensor, count: int) -> list[Tensor]:
        sizes = [min(self.width, count - first) for first in range(0, count, self.width)]
        return [
            image.repeat(size, 1, 1, 1) + self.sigma * torch.randn(size, *image.shape, device=image.device)
            for size in sizes
        ]

    @torch.no_grad()
    def _solve(self, x: Tensor, start: Tensor | None, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
        injection = self.network.inject(x)
        if start is None:
            start = self.network.initial_state(injection)
        state = anderson(lambda z: self.network.cell(z, injection), start, steps, tolerance)
        return self.network.head(state).argmax(dim=1), state
