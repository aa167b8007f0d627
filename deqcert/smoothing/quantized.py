"""Gaussian noise in whole levels of 8-bit images: no float is ever rounded.

Draws the integers whose distribution :mod:`deqcert.statistics.noise_error` bounds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.errors import SettingError
from deqcert.statistics.noise_error import BITS, thresholds

# Pixels drawn at a time, 8 bytes each: 2 MiB stay in the caches of a CPU, 128 MiB fill a GPU.
_AT_A_TIME_CPU, _AT_A_TIME = 2**18, 2**24

_GUIDE_BITS = 18
_UNDECIDED = -(2**15)  # no level: those are below 2^15 in size


class _Table(NamedTuple):
    """How a uniform integer becomes a level.

    Attributes:
        thresholds: Shape (2K,), int64, ascending.
        guide: Shape (2^18,), int16: the level of all integers that begin with these 18 bits, or ``_UNDECIDED`` if they
            have several. Spares a CPU the binary search of more than 99 % of the integers at sigma <= 1. None
            elsewhere: picking out the others would wait for the GPU.
    """

    thresholds: Tensor
    guide: Tensor | None

    def levels(self, uniform: Tensor) -> Tensor:
        """Return the levels of uniform integers in [0, 2^63), shape (P,), as int16."""
        if self.guide is None:
            return self._searched(uniform)
        levels = self.guide.index_select(0, uniform >> (BITS - _GUIDE_BITS))
        undecided = (levels == _UNDECIDED).nonzero().squeeze(1)
        levels[undecided] = self._searched(uniform[undecided])
        return levels

    def _searched(self, uniform: Tensor) -> Tensor:
        at_most = torch.bucketize(uniform, self.thresholds, right=True, out_int32=True)
        return (at_most - len(self.thresholds) // 2).to(torch.int16)


def integer_noise(shape: tuple[int, ...], sigma: float, generator: torch.Generator) -> Tensor:
    """Draw round(255 ε) as int16, ε ~ N(0, sigma²) in pixels of [0, 1], on the device of ``generator``."""
    table = _table(float(sigma), generator.device)
    noise = torch.empty(shape, dtype=torch.int16, device=generator.device)
    for part in torch.split(noise.view(-1), _AT_A_TIME_CPU if noise.device.type == "cpu" else _AT_A_TIME):
        # Without bounds int64 is uniform on all of its 2^63 non-negative values.
        part.copy_(table.levels(torch.empty_like(part, dtype=torch.int64).random_(generator=generator)))
    return noise


def pixel_levels(image: Tensor) -> Tensor:
    """Return the levels v of an 8-bit image v/255, integers in [0, 255] as float32.

    Raises:
        SettingError: A pixel is not a v/255, up to the two units in the last place by which devices round it.
    """
    # float32 holds all sums of levels and noise; bfloat16, in which an image of 0 and 1 may come, rounds them.
    scaled = image.to(torch.float32) * 255
    levels = scaled.round()
    foreign = image[~(((scaled - levels).abs() <= levels * 2.0**-22) & (levels <= 255))]  # NaN too
    if len(foreign):
        allowed = f"needs 8-bit images, pixels v/255, but a pixel is {foreign[0].item()!r}"
        raise SettingError("noise", "quantised", allowed)
    return levels


@lru_cache(maxsize=8)
def _table(sigma: float, device: torch.device) -> _Table:
    table = _Table(torch.from_numpy(thresholds(sigma)).to(device), None)
    if device.type != "cpu":
        return table
    first = torch.arange(2**_GUIDE_BITS) << (BITS - _GUIDE_BITS)
    last = first + (2 ** (BITS - _GUIDE_BITS) - 1)
    lowest, highest = table.levels(first), table.levels(last)
    return table._replace(guide=torch.where(lowest == highest, lowest, _UNDECIDED).to(torch.int16))
