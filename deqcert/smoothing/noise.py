"""Gaussian noise that belongs to an image and a purpose, not to a process."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from deqcert.seeding import mixed_seed


class Purpose(IntEnum):
    """What a random stream is for; different purposes never share noise."""

    SELECTION = 0
    ESTIMATION = 1
    AUDIT_SUBSET = 2


def noisy_batches(
    image: Tensor, index: int, purpose: Purpose, *, sigma: float, count: int, batch_size: int, seed: int, chain: int = 0
) -> Iterator[Tensor]:
    """Yield ``count`` noisy copies of ``image``; the same arguments yield the same copies again.

    Args:
        image: Clean image in [0, 1], shape (C, H, W); its device draws the noise.
        index: Original index of the image.
        purpose: Stream to draw from.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        count: Copies in all.
        batch_size: Copies per batch; part of what determines the noise.
        seed: Seed of the run.
        chain: Chain of the image; each has noise of its own.

    Yields:
        Tensors of shape (at most ``batch_size``, C, H, W), float32.
    """
    generator = torch.Generator(image.device).manual_seed(mixed_seed(seed, index, purpose, chain))
    for first in range(0, count, batch_size):
        size = min(batch_size, count - first)
        noise = torch.randn(size, *image.shape, generator=generator, device=image.device, dtype=torch.float32)
        yield image + sigma * noise


def audit_subset(positions: np.ndarray, size: int, index: int, seed: int) -> np.ndarray:
    """Draw ``size`` of ``positions`` uniformly without replacement, sorted; independent of all noise."""
    generator = np.random.default_rng(mixed_seed(seed, index, Purpose.AUDIT_SUBSET))
    return np.sort(generator.choice(positions, size=size, replace=False))
