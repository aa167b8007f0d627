"""The labels of one image's copies as they come in, and whether there are enough of them."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from deqcert.seeding import Purpose
from deqcert.smoothing.engine import Labels
from deqcert.smoothing.labels import INVALID
from deqcert.statistics import Stopping, most_frequent


class Tally:
    """Collects the batches of one image and counts the votes that its stopping rule asks for.

    Args:
        stopping: When the image has votes enough; None if it takes the whole budget, and nothing is counted, so that
            nothing waits for a GPU.
        n_max: The budget of estimation copies.
    """

    def __init__(self, stopping: Stopping | None, n_max: int) -> None:
        self._stopping = stopping
        self._n_max = n_max
        self._parts: list[Labels] = []
        self._n = self._n_a = 0

    def add(self, labels: Labels, purpose: Purpose) -> None:
        """Take a batch, shape (B,); all selection copies come before the first estimation copies."""
        if self._stopping is not None and purpose is Purpose.ESTIMATION:
            self._n_a += int((labels.labels == self._selection.selected).sum())
            self._n += len(labels.labels)
        self._parts.append(labels)

    @property
    def settled(self) -> bool:
        """Whether the image needs no further copies."""
        if self._stopping is None or self._n == 0:
            return False
        # Who says that no vote is looked at is not shown any: the bound for a fixed n would not hold.
        looks = self._stopping.anytime
        return self._n >= self._budget or (looks and self._stopping.settled(self._n_a, self._n, self._n_max))

    def joined(self) -> Labels:
        """Return all labels in the order in which they came, on the CPU."""
        return Labels(*(tensor.cpu() for tensor in Labels.joined(self._parts, -1)))

    @cached_property
    def _budget(self) -> int:
        if self._stopping is None:
            return self._n_max
        return self._stopping.budget(self._selection.k0, self._selection.n0, self._n_max)

    @cached_property
    def _selection(self) -> _Selection:
        """What the selection copies chose: the lowest of the most frequent classes."""
        labels = self.joined().labels.numpy()
        counts = np.bincount(labels[labels != INVALID], minlength=1).tolist()
        selected = most_frequent(counts)
        return _Selection(selected, counts[selected], len(labels))


class _Selection(NamedTuple):
    selected: int
    k0: int
    n0: int
