"""Gaussian noise that belongs to an image and a purpose, not to a process."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deqcert.errors import require
from deqcert.seeding import Purpose, image_seed
from deqcert.smoothing.quantized import integer_noise, pixel_levels
from deqcert.statistics.noise_error import Noise


@dataclass(frozen=True)
class Stream:
    """The random numbers of one image: its noise in each purpose, and the choice of what is audited.

    Args:
        seed: Seed of the run, in [0, 2^64).
        index: Original index of the image, in [0, 2^32).
    """

    seed: int
    index: int

    def __post_init__(self) -> None:
        self.seed_of(Purpose.SELECTION)  # refuses what is out of range

    @classmethod
    def fresh(cls) -> Stream:
        """Return a stream that nobody can foresee: an adversary who knows the noise can aim at the votes."""
        return cls(secrets.randbits(64), secrets.randbits(32))

    def seed_of(self, purpose: Purpose, part: int = 0) -> int:
        """Return the 64-bit seed of a purpose; each ``part`` has its own."""
        return image_seed(self.seed, self.index, purpose, part)


def noisy_batches(
    image: Tensor,
    stream: Stream,
    purpose: Purpose,
    sigma: float,
    count: int,
    batch_size: int,
    noise: Noise = "float32",
    part: int = 0,
) -> Iterator[Tensor]:
    """Yield ``count`` noisy samples of an image, batch by batch; the same arguments yield the same samples again.

    Args:
        image: Clean image in [0, 1], shape (C, H, W); its device draws the noise.
        stream: Random numbers of the image, of which each purpose has its own.
        purpose: What the noise is for.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        count: Number of samples.
        batch_size: Samples per batch; part of what determines the noise.
        noise: "float32" adds Gaussian floats, whose rounding is outside of any theorem. "quantised" adds whole levels
            of 1/255, distributed as Gaussian noise rounded to them, to an 8-bit image: a certificate for the network
            behind a rounding of its input (docs/floating_point.md; Voráček and Hein, ICLR 2023).
        part: Each part of a purpose has noise of its own.

    Raises:
        SettingError: ``noise`` is neither, or "quantised" and the image is not 8-bit or sigma > 14.
    """
    require(noise in get_args(Noise), "noise", noise, f"must be one of {', '.join(get_args(Noise))}")
    levels = pixel_levels(image) if noise == "quantised" else None
    generator = torch.Generator(image.device).manual_seed(stream.seed_of(purpose, part))
    for first in range(0, count, batch_size):
        shape = (min(batch_size, count - first), *image.shape)
        if levels is None:
            yield image + torch.randn(shape, generator=generator, device=image.device, dtype=torch.float32).mul_(sigma)
        else:
            yield (levels + integer_noise(shape, sigma, generator)).div_(255)


def audit_subset(positions: NDArray[np.int64], size: int, stream: Stream, part: int = 0) -> NDArray[np.int64]:
    """Draw ``size`` of ``positions`` uniformly without replacement, sorted; independent of all noise and parts."""
    generator = np.random.default_rng(stream.seed_of(Purpose.AUDIT_SUBSET, part))
    return np.sort(generator.choice(positions, size=size, replace=False, shuffle=True))
