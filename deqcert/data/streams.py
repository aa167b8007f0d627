"""Random numbers that are a function of integers and of nothing else.

Only the raw output of numpy's bit generators is promised never to change between numpy versions, so the
splits and augmentations of a run are derived from it and not from ``Generator`` methods.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class DataPurpose(IntEnum):
    """What a stream of the data is for: the second word of its key, after the seed."""

    FIXED_SPLIT = 0
    AUGMENTATION = 1
    VALIDATION_SPLIT = 2
    FILE_AUGMENTATION = 3


def raw_stream(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """Return the first ``count`` 64-bit words of the stream of ``key``: seed, purpose, at most two more, below 2^32.

    Keys that differ by trailing zeros coincide (numpy pads them), so one purpose always uses one length.
    """
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.asarray(words, dtype=np.uint64)


def permutation(count: int, *key: int) -> npt.NDArray[np.int64]:
    """Return the permutation of ``0 .. count - 1`` that belongs to ``key``."""
    return np.argsort(raw_stream(count, *key), kind="stable").astype(np.int64)
