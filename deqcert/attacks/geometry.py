"""Steps and projections in image space, each row of a batch on its own."""

from __future__ import annotations

import torch
from torch import Tensor


def row_norms(x: Tensor) -> Tensor:
    """Return the l2 norms of the rows of ``x``, shape (B, ...) to (B, 1, ...)."""
    return _per_row(x.flatten(1).norm(dim=1), x)


def ascent_direction(loss: Tensor, point: Tensor) -> Tensor:
    """Return the l2-normalized gradient of each row's loss.

    A row whose gradient is zero or not finite gets a random direction from torch's global generator: it neither
    stands still nor spoils the other rows.

    Args:
        loss: Losses with their graph to ``point``, shape (B,).
        point: Where they were evaluated, shape (B, ...).

    Returns:
        Unit vectors without graph, shape (B, ...).
    """
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    # Where the model is confident the squares in a norm would underflow; quotients by the largest entry do not.
    largest = _per_row(gradient.flatten(1).abs().amax(dim=1), gradient)
    usable = largest.isfinite() & (largest > 0)
    # Drawn for every row, so that what is drawn next does not depend on the model.
    direction = torch.where(usable, gradient / largest, torch.randn_like(gradient))
    return direction / row_norms(direction)


def into_box(images: Tensor, delta: Tensor) -> Tensor:
    """Return ``delta`` cut so that ``images + delta`` is in [0, 1], as ``images`` are; no entry grows."""
    return delta.clamp(-images, 1 - images)


def into_ball(delta: Tensor, radius: float | Tensor) -> Tensor:
    """Return ``delta`` with the rows longer than ``radius`` shortened to it, shape (B, ...); radii (B, 1, ...)."""
    norms = row_norms(delta).clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * (radius / norms).clamp(max=1)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
