"""What a certification run will cost, measured on its first batches."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from deqcert.seeding import Purpose
from deqcert.smoothing import Engine, Sampling, SmoothedClassifier, Stream
from deqcert.smoothing.checks import SAMPLES
from deqcert.smoothing.engine import Predictions

_BATCHES = 3  # measured after the first one, which also allocates and compiles


class Forecast(NamedTuple):
    """What the images that have no votes yet will cost, about.

    Attributes:
        images: Images of the run without votes.
        own: Those that this process certifies.
        samples: Noisy samples per image, at most.
        nfe_fast: Evaluations per noisy sample, for the predictions; ``nfe_audit`` for audit and escalation.
        seconds: Time per image.
        rows: Maximum number of noisy samples per batch.
        side_by_side: Images whose samples share batches.
        memory: Bytes to expect at most on this device, besides the network and libraries.
    """

    images: int
    own: int
    samples: int
    nfe_fast: float
    nfe_audit: float
    seconds: float
    rows: int
    side_by_side: int
    memory: int

    def __str__(self) -> str:
        """Say it in one sentence."""
        nfe = self.nfe_fast + self.nfe_audit
        parts = f" ({self.nfe_fast:.1f} + {self.nfe_audit:.1f} for audit and escalation)" if self.nfe_audit else ""
        total = f"{nfe * self.samples * self.images:.2g} evaluations and {duration(self.seconds * self.own)}"
        shared = "" if self.own == self.images else f", {self.own} of them by this process"
        beside = f" of {self.side_by_side} images side by side" if self.side_by_side > 1 else ""
        return (
            f"about {nfe:.1f} evaluations per noisy sample{parts} and {duration(self.seconds)} per image: "
            f"{total} for {self.images} images{shared}; batches of {self.rows} noisy samples{beside}, "
            f"{_two_digits(self.memory / 2**20)} MiB of memory besides the network"
        )


def duration(seconds: float) -> str:
    """Write a time with two digits in the largest unit of which it is at least one and a half."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds)} s"


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.2g}"


class Measurement:
    """Listens to an engine during the first image, and tells a :class:`Forecast` after a few batches.

    What f will be asked of an image besides its predictions, it takes from the strategy and the votes so far; how many
    steps that takes, from a few noisy samples that f classifies here, of the kind that it was checked on.

    Args:
        sampling: The strategy.
        g: What is certified.
        engine: Its engine.
        images: The images of the first group, shape (E, C, H, W).
        left: Images without votes: of the run, and of this process.
        tell: Receives the forecast.
    """

    def __init__(
        self,
        sampling: Sampling,
        g: SmoothedClassifier,
        engine: Engine,
        images: Tensor,
        left: tuple[int, int],
        tell: Callable[[Forecast], None],
    ) -> None:
        self._sampling, self._g, self._engine, self._tell, self._left = sampling, g, engine, tell, left
        self._side_by_side = len(images)
        self._memory = engine.memory
        expected = sampling.anticipated(sampling.n, sampling.n, g.sigma)
        sizes = sampling.n0, expected[0].n  # an image may end at the first look
        self._batches = min(1 + _BATCHES, sum(math.ceil(size / sampling.batch_size) for size in sizes))
        self._steps_of_f = 0.0
        if expected[0].audited is not None:
            samples = next(g.noisy(images[0], Stream(0, 0), Purpose.CHECK, SAMPLES, SAMPLES))
            self._steps_of_f = float(engine.predict(samples).steps.double().mean())
        self._heard = 0
        self._votes: Counter[int] = Counter()
        self._samples = self._steps = 0
        self._since = 0.0
        engine.listener = self.add

    def add(self, predictions: Predictions) -> None:
        """Take a batch of the predictions into account."""
        self._heard += 1
        if self._votes.total() < self._sampling.predicted:  # not what f is asked because it is in doubt
            self._votes.update(predictions.classes[:: self._side_by_side].tolist())
        if self._heard == 1:
            self._since = time.perf_counter()
            return
        self._samples += len(predictions.classes)
        self._steps += int(predictions.steps.sum())
        if self._heard == self._batches:
            self._engine.listener = None
            self._tell(self._forecast(time.perf_counter() - self._since))

    def _forecast(self, seconds: float) -> Forecast:
        sampling = self._sampling
        share = self._votes.most_common(1)[0][1] / self._votes.total()
        votes = sampling.anticipated(sampling.n, round(share * sampling.n), self._g.sigma)[-1]
        samples, asked = votes.n0 + votes.n, votes.escalations + votes.examined
        nfe_fast = self._steps / self._samples * sampling.predicted / (sampling.n0 + sampling.n)
        nfe_audit = asked * self._steps_of_f / samples
        per_sample = seconds / self._steps * (nfe_fast + nfe_audit)
        room = self._engine.rows, self._engine.images, self._memory
        return Forecast(*self._left, samples, nfe_fast, nfe_audit, samples * per_sample, *room)
