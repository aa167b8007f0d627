"""Gaussian noise that belongs to an image and a purpose, not to a process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from deqcert.errors import DataError, require
from deqcert.seeding import Purpose, image_seed
from deqcert.smoothing.quantised import integer_noise, pixel_levels
from deqcert.statistics.noise_error import Noise


def demand_unit_interval(images: Tensor) -> None:
    """Refuse images that are not in the unit of sigma: floats in [0, 1].

    Args:
        images: Any shape.

    Raises:
        DataError: Naming the type or a pixel.
    """
    if not images.is_floating_point():
        raise DataError(f"image: must hold floats in [0, 1], not {images.dtype}; divide integers in [0, 255] by 255")
    inside = (images >= 0) & (images <= 1)  # false for NaN too
    if not bool(inside.all()):
        raise DataError(f"image: must hold floats in [0, 1], but a pixel is {images[~inside][0].item()!r}")


def noisy_batches(
    image: Tensor,
    index: int,
    purpose: Purpose,
    *,
    sigma: float,
    count: int,
    batch_size: int,
    seed: int,
    chain: int = 0,
    noise: Noise = "float32",
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
        noise: ``float32`` adds Gaussian floats; what the rounding does is outside of any theorem. ``quantised`` adds
            whole levels of 1/255, with the probabilities of Gaussian noise that is rounded to them, to the levels of an
            8-bit image: a certificate for the network behind a rounding of its input to multiples of 1/255
            (docs/floating_point.md; Voráček and Hein, ICLR 2023).

    Yields:
        Tensors of shape (at most ``batch_size``, C, H, W), float32.

    Raises:
        SettingError: ``noise`` is neither, or ``quantised`` and the image is not 8-bit or sigma > 14.
    """
    require(noise in get_args(Noise), "noise", noise, f"must be one of {', '.join(get_args(Noise))}")
    levels = pixel_levels(image) if noise == "quantised" else None
    generator = torch.Generator(image.device).manual_seed(image_seed(seed, index, purpose, chain))
    for first in range(0, count, batch_size):
        size = min(batch_size, count - first)
        shape = (size, *image.shape)
        if levels is None:
            yield image + sigma * torch.randn(shape, generator=generator, device=image.device, dtype=torch.float32)
        else:
            yield (levels + integer_noise(shape, sigma, generator)).div_(255)


def audit_subset(positions: np.ndarray, size: int, index: int, seed: int) -> np.ndarray:
    """Draw ``size`` of ``positions`` uniformly without replacement, sorted; independent of all noise."""
    generator = np.random.default_rng(image_seed(seed, index, Purpose.AUDIT_SUBSET))
    return np.sort(generator.choice(positions, size=size, replace=False, shuffle=True))
