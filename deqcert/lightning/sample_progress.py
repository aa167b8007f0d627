"""How far the images are that are being measured: one of 224 × 224 pixels may take minutes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deqcert.lightning.forecast import duration

_SECONDS = 1.0  # between two reports at least, and before the first one


class SampleProgress(NamedTuple):
    """Noisy samples of the images that are being measured.

    Attributes:
        indices: The images.
        done: Noisy samples that are classified.
        expected: Those of selection and estimation together, at most; audit and escalation come on top of them.
        seconds: Time so far.
    """

    indices: Sequence[int]
    done: int
    expected: int
    seconds: float

    def __str__(self) -> str:
        """Say it in a few words, e.g. ``image 340: 1200/10100 samples, 12 s``."""
        images = f"image{'s' if len(self.indices) > 1 else ''} {', '.join(map(str, self.indices))}"
        further = f" + {self.done - self.expected} for audit and escalation" if self.done > self.expected else ""
        return f"{images}: {min(self.done, self.expected)}/{self.expected} samples{further}, {duration(self.seconds)}"


class SampleCounter:
    """Counts the samples of a group of images as an engine classifies them, in any thread; tells from time to time.

    Args:
        indices: The images.
        expected: See :class:`SampleProgress`.
        tell: Receives the progress, by the thread that has classified the latest samples.
    """

    def __init__(self, indices: Sequence[int], expected: int, tell: Callable[[SampleProgress], None]) -> None:
        self._indices, self._expected, self._tell = indices, expected, tell
        self._done, self._lock = 0, threading.Lock()
        self._started = time.monotonic()
        self._next = self._started + _SECONDS

    def __call__(self, samples: int) -> None:
        """Count so many more."""
        with self._lock:
            self._done += samples
            now = time.monotonic()
            if now >= self._next:
                self._next = now + _SECONDS
                self._tell(SampleProgress(self._indices, self._done, self._expected, now - self._started))
