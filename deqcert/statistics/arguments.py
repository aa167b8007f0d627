"""What the bounds demand of their arguments before they compute anything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deqcert.errors import SettingError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def demand(condition: ArrayLike, field: str, value: NDArray[Any], allowed: str) -> None:
    """Raise :class:`SettingError` with the first element of ``value`` at which ``condition`` is false."""
    held, values = np.broadcast_arrays(condition, value)
    refused = values[~held]
    if refused.size:
        raise SettingError(field, refused[0].item(), allowed)


def checked_counts(field: str, value: ArrayLike) -> IntArray:
    """Return ``value`` as int64; a float is refused even if it is whole, because counts never are floats."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise SettingError(field, value, "must be of integer type")
    counts = array.astype(np.int64)
    demand(counts >= 0, field, counts, "must be >= 0")
    return counts


def checked_level(field: str, value: ArrayLike) -> FloatArray:
    """Return an error probability as float64, strictly between 0 and 1."""
    level = np.asarray(value, dtype=np.float64)
    demand((level > 0) & (level < 1), field, level, "must be in (0, 1)")
    return level


def binomial_arguments(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[IntArray, IntArray, FloatArray]:
    """Return successes and trials, 0 <= k <= n and n >= 1, and an error probability."""
    k, n = checked_counts("k", k), checked_counts("n", n)
    demand(n >= 1, "n", n, "must be >= 1")
    demand(k <= n, "k", k, "must be <= n")
    return k, n, checked_level("alpha", alpha)


def sampling_arguments(
    m: ArrayLike, population: ArrayLike, sample: ArrayLike, alpha: ArrayLike
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Return marked, all and drawn items, m <= sample <= population, and an error probability."""
    m, sample = checked_counts("m", m), checked_counts("sample", sample)
    population, alpha = checked_counts("population", population), checked_level("alpha", alpha)
    demand(sample <= population, "sample", sample, "must be <= population")
    demand(m <= sample, "m", m, "must be <= sample")
    return m, population, sample, alpha
