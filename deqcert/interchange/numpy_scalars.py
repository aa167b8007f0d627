"""Numbers of numpy beside the weights of a file, e.g. the best accuracy: read as plain ones, without numpy's own code.

Numpy's constructors take more than numbers (objects, structures); these take a size and the bytes of one number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[fiu][1248]|b1")
_ORDER = re.compile(r"[<>|=]")


class NumberType:
    """Stands for a ``numpy.dtype`` of one number; ``code`` is its kind and bytes, e.g. ``f8``."""

    def __init__(self, code: str, *unused: object) -> None:
        if not _NUMBER.fullmatch(code):
            raise ValueError(f"numpy type {code[:20]!a} beside the weights")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order out of the state of a ``numpy.dtype``."""
        if not _ORDER.fullmatch(state[1]):
            raise ValueError("byte order of a numpy type")
        self.order = state[1]


def number(kind: NumberType, content: bytes) -> bool | int | float:
    """Stand for numpy's ``scalar``: return the one number whose bytes these are."""
    (value,) = np.frombuffer(content, np.dtype(kind.order + kind.code)).tolist()
    return value  # type: ignore[no-any-return]


STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (NumberType, "numpy.dtype"),
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]
"""What is called in place of what a file names, see :func:`torch.serialization.safe_globals`."""
