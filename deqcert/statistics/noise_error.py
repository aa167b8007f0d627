"""What drawing the noise by a computer costs a certificate.

The theorem is about p_A = P(f(x + eps) = A) with exact Gaussian eps; the votes estimate the same probability under
the noise that was drawn. With ``float32`` noise nothing bounds the difference. With ``quantised`` noise the base
classifier is f = F∘q, where q rounds pixels to multiples of 1/255, and images are 8-bit (Voráček and Hein, ICLR 2023):
for x = v/255, q(x + eps) = (v + k)/255 with integers k = round(255 eps), independent with
P(k <= j) = Phi((j + 1/2) / s), s = 255 sigma. What is drawn are such integers, by inversion: k is -K plus the number of
thresholds that are at most u, with u uniform on the integers of [0, 2^63).

**Bound.** :func:`thresholds` rounds the numbers 2^63 Phi((j + 1/2) / s) to integers and leaves out those that become 0
or 2^63, so that 2K of them are left and P(k <= j) is off by e_j, |e_j| <= 2^-64. On each side the exact distribution
has at most 2^-64 beyond K; clamping it to [-K, K] costs at most 2 * 2^-64 in total variation. The distance of two
distributions on [-K, K] is half of the sum of |e_j - e_(j-1)|, thus at most the sum of |e_j|, thus at most 2K * 2^-64.
Together: (K + 1) * 2^-63. For sigma <= 14, K + 1 < 2^15, and the distance is below 2^-48 for each pixel, the 10^-39 by
which the numbers before rounding may be wrong included. Pixels are independent: a copy of d of them is off by at most
d * 2^-48, and so is the probability of any class.
"""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from typing import Literal, get_args

import numpy as np

from deqcert.errors import require, require_count
from deqcert.statistics.arguments import IntArray

Noise = Literal["float32", "quantised"]
"""How Gaussian noise is drawn: as a float that is added to the pixel, or as an integer number of levels of 1/255."""

BITS = 63
"""Bits of the uniform integer that is inverted."""

LARGEST_SIGMA = 14
"""Up to which K + 1 < 2^15."""

_ERROR_PER_PIXEL = 2.0**-48

_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
_BEYOND = 10  # standard deviations: Phi(-10) < 2^-76 rounds to no threshold


def noise_error(noise: Noise, pixels: int) -> float:
    """Bound how much a class is more probable under the drawn noise than under exact Gaussian noise.

    Args:
        noise: ``float32`` or ``quantised``.
        pixels: Numbers that an image consists of, C·H·W, >= 1.

    Returns:
        For ``quantised`` the proven bound ``pixels`` * 2^-48, whatever sigma is. For ``float32`` 0: there is no bound,
        and certificates leave the rounding of noise outside of the theorem.

    Raises:
        SettingError: ``noise`` is neither, or ``pixels`` is no integer >= 1.

    Example:
        >>> noise_error("quantised", pixels=3 * 32 * 32)
        1.0913936421275139e-11
    """
    require(noise in get_args(Noise), "noise", noise, f"must be one of {', '.join(get_args(Noise))}")
    require_count("pixels", pixels, minimum=1)
    return pixels * _ERROR_PER_PIXEL if noise == "quantised" else 0.0


def thresholds(sigma: float) -> IntArray:
    """Return the integers that turn a uniform integer into quantised noise.

    Threshold i of 2K is 2^63 Phi((i - K + 1/2) / (255 sigma)) to within 1/2 + 10^-19. The ones above 2^62 mirror those
    below.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], in (0, 14].

    Returns:
        All thresholds in (0, 2^63), ascending, shape (2K,); none if sigma is so small that the noise is 0.

    Raises:
        SettingError: ``sigma`` is out of range.
    """
    require(0 < sigma <= LARGEST_SIGMA, "sigma", sigma, f"must be in (0, {LARGEST_SIGMA}] for quantised noise")
    lower: list[int] = []
    with localcontext(Context(prec=_DIGITS)):
        scale = 255 * Decimal(sigma)
        while (z := (len(lower) + Decimal("0.5")) / scale) <= _BEYOND:
            threshold = int((2**BITS * _upper_tail(z)).to_integral_value())
            if threshold == 0:
                break
            lower.append(threshold)
    return np.array([*reversed(lower), *(2**BITS - threshold for threshold in lower)], dtype=np.int64)


def _upper_tail(z: Decimal) -> Decimal:
    """Return 1 - Phi(z) for 0 <= z <= 10 to within 10^-39, in the decimal context that is set.

    Phi(z) = 1/2 + phi(z) (z + z^3/3 + z^5/(3·5) + ...) (Abramowitz and Stegun, 26.2.11). All terms are positive: no
    cancellation, fewer than 400 of them, each operation correct to 60 digits. The first term below 10^-40 comes after
    the terms have begun to halve, so what is left out is below 10^-39.
    """
    square = z * z
    term = total = z
    odd = 1
    while term > Decimal("1e-40"):
        odd += 2
        term *= square / odd
        total += term
    return Decimal("0.5") - total * (-square / 2).exp() / (2 * _PI).sqrt()
