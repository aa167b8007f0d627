"""What all sampling strategies share: from a smoothed classifier, images and their random streams to votes."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import require, require_count
from deqcert.seeding import Purpose
from deqcert.smoothing.engine import Engine, Execution, Predictions, count_classes
from deqcert.smoothing.noise import Stream, demand_unit_interval
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.statistics import CertificationRule, Stopping, Votes, most_frequent, noise_error

_MAXIMUM = 10**9
"""Largest number of noisy samples: far beyond use, and within what the exact bounds compute."""


@dataclass(frozen=True)
class Sampling(ABC):
    """Takes votes of a smoothed classifier g.

    The votes of an image are a function of g, the image, its random stream and these settings: not of the process, the
    order of the images or what was certified before or beside it, up to the rounding of the kernels.

    Args:
        n0: Noisy samples that select the class, >= 1.
        n: Fresh noisy samples that estimate its probability, >= 1.
        batch_size: Noisy samples of an image side by side (serialized: width of the chain), >= 1.
        execution: How noisy samples are spread over batches.

    Raises:
        SettingError: If a setting is out of range.
    """

    n0: int = 100
    n: int = 10_000
    batch_size: int = 400
    execution: Execution = Execution()

    stopping: ClassVar[Stopping | None] = None
    """When an image has votes enough; a strategy of independent predictions may make this a setting."""

    def __post_init__(self) -> None:
        for field in ("n0", "n", "batch_size"):
            require_count(field, getattr(self, field), minimum=1)
            require(getattr(self, field) <= _MAXIMUM, field, getattr(self, field), f"must be <= {_MAXIMUM}")

    @abstractmethod
    def name(self, base: nn.Module) -> str:
        """Name for tables of votes of the base classifier ``base``, e.g. ``SRS-3A``."""

    @abstractmethod
    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take the votes of E images side by side, best ``engine.images`` of them.

        Args:
            g: Smoothed classifier.
            engine: From :meth:`engine`.
            images: Clean images in [0, 1], shape (E, C, H, W), on the device of f.
            streams: Their random streams, E of them.

        Returns:
            The votes of each image.

        Raises:
            DataError: The images are not floats in [0, 1], in which sigma and radius are measured.
        """

    def votes(self, g: SmoothedClassifier, x: Tensor, stream: Stream) -> Votes:
        """Take the votes of one image.

        Args:
            g: Smoothed classifier.
            x: Clean image in [0, 1], shape (C, H, W), on the device of f.
            stream: Its random stream.

        Raises:
            SettingError: :meth:`engine` refuses f.
            DataError: The image is not one of floats in [0, 1].
        """
        return self.group_votes(g, self.engine(g, x), x[None], [stream])[0]

    def engine(self, g: SmoothedClassifier, image: Tensor) -> Engine:
        """Prepare f for images like ``image``, shape (C, H, W); see :meth:`SmoothedClassifier.engine`.

        Raises:
            SettingError: f is not of the kind that the strategy needs, or not a function of one image.
            DataError: The image is not one of floats in [0, 1].
        """
        return g.engine(image, self.execution, self.batch_size)

    def _predictions(
        self,
        g: SmoothedClassifier,
        predict: Callable[[Tensor], Predictions],
        images: Tensor,
        streams: Sequence[Stream],
    ) -> list[_Sampled]:
        """Classify selection and estimation samples of each image, batch by batch; who has votes enough leaves."""
        demand_unit_interval(images)
        started = time.perf_counter()
        sampled = [_Sampled(self) for _ in streams]
        going = sampled
        for purpose, count in ((Purpose.SELECTION, self.n0), (Purpose.ESTIMATION, self.n)):
            noise = {
                each: g.noisy(image, stream, purpose, count, self.batch_size)
                for each, image, stream in zip(sampled, images, streams, strict=True)
            }
            for _ in range(0, count, self.batch_size):
                # Sample by sample: row i·E + e is sample i of image e.
                batch = torch.stack([next(noise[each]) for each in going], dim=1).flatten(0, 1)
                predictions = predict(batch)
                for position, each in enumerate(going):
                    each.add(Predictions(*(tensor[position :: len(going)] for tensor in predictions)), purpose)
                going = [each for each in going if not each.settled]
                if not going:
                    break
        for each in sampled:
            each.finish()
        seconds = (time.perf_counter() - started) / sum(len(each.all.classes) for each in sampled)
        for each in sampled:
            each.seconds = seconds * len(each.all.classes)
        return sampled

    def aimed_at(self, rule: CertificationRule) -> Sampling:
        """Return the strategy with its audit or stopping rule aimed at the certificates of ``rule``."""
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Everything here that determines the votes, JSON-able."""
        description: dict[str, Any] = describe(self)
        return description


class _Sampled:
    """The predictions of one image's noisy samples as they come in, and whether there are enough of them."""

    def __init__(self, sampling: Sampling) -> None:
        self._n0, self._n_max, self._stopping = sampling.n0, sampling.n, sampling.stopping
        self._parts: list[Predictions] = []
        self._budget = self._n_max
        self._n = self._n_a = self._selected = 0
        self.seconds = 0.0

    def add(self, predictions: Predictions, purpose: Purpose) -> None:
        """Take a batch, shape (B,); votes are only looked at, and a GPU waited for, if a stopping rule asks."""
        if self._stopping is not None and purpose is Purpose.ESTIMATION:
            if self._n == 0:
                self._select(self._stopping)
            self._n_a += int((predictions.classes == self._selected).sum())
            self._n += len(predictions.classes)
        self._parts.append(predictions)

    def _select(self, stopping: Stopping) -> None:
        classes = Predictions.joined(self._parts).classes.cpu().numpy()
        counts = count_classes(classes, num_classes=1)
        self._selected = most_frequent(counts)
        self._budget = stopping.budget(counts[self._selected], self._n0, self._n_max)

    @property
    def settled(self) -> bool:
        """Whether the image needs no further samples."""
        if self._stopping is None or self._n == 0:
            return False
        # Rules that claim not to look at the votes never see them: otherwise the bound for a fixed n would be invalid.
        looks = self._stopping.anytime
        return self._n >= self._budget or (looks and self._stopping.settled(self._n_a, self._n, self._n_max))

    def finish(self) -> None:
        """Bring everything to the CPU, in the order in which it came."""
        self.all = Predictions(*(tensor.cpu() for tensor in Predictions.joined(self._parts)))

    @property
    def estimation(self) -> NDArray[np.int64]:
        """Predicted classes of the estimation samples."""
        return self.all.classes[self._n0 :].numpy()

    def votes(self, g: SmoothedClassifier, image: Tensor, num_classes: int) -> Votes:
        """Return the votes as they are before any audit."""
        return Votes(
            n0=self._n0,
            n=len(self.estimation),
            selection=count_classes(self.all.classes[: self._n0].numpy(), num_classes),
            estimation=count_classes(self.estimation, num_classes),
            audited=None,
            mismatches=0,
            nfe_fast=int(self.all.steps.sum()),
            nfe_audit=0,
            residual=float(self.all.residual[self._n0 :].mean()),
            seconds=self.seconds,
            sigma=g.sigma,
            noise_error=noise_error(g.noise, image.numel()),
            anytime=self._stopping is not None and self._stopping.anytime,
        )


def describe(value: Any) -> Any:
    """Turn nested configuration dataclasses into plain data that names their classes, ours without their module."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": stable_name(type(value)), **fields}
    return value


def stable_name(kind: Any) -> str:
    """Name a class or function: ours without its module, so that it may move to another file."""
    ours = kind.__module__.split(".")[0] == "deqcert"
    return str(kind.__qualname__) if ours else f"{kind.__module__}.{kind.__qualname__}"
