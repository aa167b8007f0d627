"""What the bounds demand of their arguments before they compute anything."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deqcert.errors import SettingError, is_real, require

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def demand(condition: ArrayLike, field: str, value: NDArray[Any], allowed: str) -> None:
    """Raise :class:`SettingError` with the first element of ``value`` at which ``condition`` is false."""
    held, values = np.broadcast_arrays(condition, value)
    refused = values[~held]
    if refused.size:
        raise SettingError(field, refused[0].item(), allowed)


def demand_level(field: str, level: float) -> None:
    """Raise :class:`SettingError` unless ``level`` can be an error probability."""
    require(is_real(level) and 0 < level < 1, field, level, "must be in (0, 1)")


def checked_counts(**counts: ArrayLike) -> list[IntArray]:
    """Return counts as int64, each at most the one before; a whole float is refused, because counts never are floats.

    Args:
        **counts: Each by the name of its argument, the largest first.
    """
    checked = []
    for field, value in counts.items():
        array = np.asarray(value)
        if array.dtype.kind not in "iu":
            raise SettingError(field, value, "must be of integer type")
        checked.append(array.astype(np.int64))
        demand(checked[-1] >= 0, field, checked[-1], "must be >= 0")
    for (larger, most), (field, count) in pairwise(zip(counts, checked, strict=True)):
        demand(count <= most, field, count, f"must be <= {larger}")
    return checked


def checked_level(field: str, value: ArrayLike) -> FloatArray:
    """Return an error probability as float64, strictly between 0 and 1."""
    level = np.asarray(value, dtype=np.float64)
    demand((level > 0) & (level < 1), field, level, "must be in (0, 1)")
    return level


def binomial_arguments(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[IntArray, IntArray, FloatArray]:
    """Return successes and trials, 0 <= k <= n and n >= 1, and an error probability."""
    n, k = checked_counts(n=n, k=k)
    demand(n >= 1, "n", n, "must be >= 1")
    return k, n, checked_level("alpha", alpha)
