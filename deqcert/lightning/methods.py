"""What a certification run measures of each image: votes under noise, or margins without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from deqcert.data import CertificationSet
from deqcert.deterministic import Deterministic
from deqcert.errors import require
from deqcert.lightning.cautions import warn_of_another_sigma, warned_of_unconverged
from deqcert.lightning.forecast import Forecast, Measurement
from deqcert.lightning.sample_progress import SampleCounter, SampleProgress
from deqcert.smoothing import Incremental, Sampling, Serialized, Smoothing, Stream
from deqcert.smoothing.identity import describe
from deqcert.statistics import CertificationRule, MarginRule, Record


class Share(NamedTuple):
    """The images that this process measures.

    Attributes:
        examples: The images of the run.
        positions: Where those of this process are among them, in the order in which they are measured.
        remaining: How many images of the run are not measured yet.
        device: Device of the classifier.
        forecast: Receives a forecast; None where another process makes it.
        progress: Receives from time to time how far the images are; None for nobody.
    """

    examples: CertificationSet
    positions: Sequence[int]
    remaining: int
    device: torch.device
    forecast: Callable[[Forecast], None] | None = None
    progress: Callable[[SampleProgress], None] | None = None

    def groups(self, size: int) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
        """Yield at most ``size`` images at a time, shape (E, C, H, W), with label and index of each."""
        for first in range(0, len(self.positions), size):
            group = [self.examples[position] for position in self.positions[first : first + size]]
            yield torch.stack([image.to(self.device) for image, _, _ in group]), [each[1:] for each in group]


class Method(ABC):
    """How the images of a run are measured."""

    rule: CertificationRule | MarginRule
    """How a measurement becomes a certificate."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what determines the measurements besides classifier, data and machine, JSON-able."""

    @abstractmethod
    def demand_fitting(self, identity: Mapping[str, Any], examples: CertificationSet) -> None:
        """Refuse a run of this identity, before any work, that the settings do not suit."""

    @abstractmethod
    def prepare(self, module: LightningModule) -> str:
        """Take the network of a module; return the name of what is certified, for tables."""

    @abstractmethod
    def measure(self, share: Share) -> Iterator[list[Record]]:
        """Measure images in groups that suit the device; :meth:`prepare` comes before."""


class Smoothed(Method):
    """Randomized smoothing: votes of noisy samples."""

    rule: CertificationRule

    def __init__(self, smoothing: Smoothing, sampling: Sampling, seed: int, rule: CertificationRule) -> None:
        self.smoothing, self.sampling, self.seed, self.rule = smoothing, sampling, seed, rule

    def settings(self) -> dict[str, Any]:
        """Return smoothing, sampling and seed."""
        return {"smoothing": describe(self.smoothing), "sampling": self.sampling.identity(), "seed": self.seed}

    def demand_fitting(self, identity: Mapping[str, Any], examples: CertificationSet) -> None:
        """Compare the run with the one that it builds on, if it does."""
        if isinstance(self.sampling, Incremental):
            self.sampling.demand_fitting(identity, examples.indices)

    def prepare(self, module: LightningModule) -> str:
        """Build g; its name is that of the strategy on f."""
        warn_of_another_sigma(module, self.smoothing.sigma)
        self._g = self.smoothing.of(getattr(module, "network", module))
        return self.sampling.name(self._g.base)

    def measure(self, share: Share) -> Iterator[list[Record]]:
        """Take the votes of images."""
        first = share.examples[share.positions[0]][0].to(share.device)
        engine, warned, forecast = self.sampling.engine(self._g, first), False, share.forecast
        for images, labels in share.groups(engine.images):
            streams = [Stream(self.seed, index) for _, index in labels]
            if forecast is not None:
                left = share.remaining, len(share.positions)
                Measurement(self.sampling, self._g, engine, images, left, forecast)
                forecast = None
            if share.progress is not None:
                samples = len(labels) * self.sampling.predicted
                engine.counter = SampleCounter([index for _, index in labels], samples, share.progress)
            votes = self.sampling.group_votes(self._g, engine, images, streams)
            yield [each._replace(index=i, label=label) for each, (label, i) in zip(votes, labels, strict=True)]
            warned = warned or warned_of_unconverged(engine)


class WithoutNoise(Method):
    """A deterministic certificate: the margins of the network itself."""

    rule = MarginRule()

    def __init__(self, certification: Deterministic) -> None:
        self.certification = certification

    def settings(self) -> dict[str, Any]:
        """Return the certification."""
        return {"certification": describe(self.certification)}

    def demand_fitting(self, identity: Mapping[str, Any], examples: CertificationSet) -> None:
        """Every run suits."""

    def prepare(self, module: LightningModule) -> str:
        """Compute what does not depend on the image."""
        network = getattr(module, "network", module)
        self._measure = self.certification.of(network)
        return f"{type(self.certification).__name__} {type(network).__name__}"

    def measure(self, share: Share) -> Iterator[list[Record]]:
        """Solve images and take their margins."""
        for images, labels in share.groups(self.certification.batch_size):
            with torch.autocast(share.device.type, enabled=False):
                margins = self._measure(images)
            yield [each._replace(index=i, label=label) for each, (label, i) in zip(margins, labels, strict=True)]


def choose_method(
    smoothing: Smoothing, sampling: Sampling, certification: Deterministic | None, seed: int, rule: CertificationRule
) -> Method:
    """Choose how images are measured, by the arguments of :meth:`Trainer.certify`.

    Raises:
        SettingError: No votes could certify anything, or a setting would have no effect.
    """
    if certification is None:
        sampling = sampling.aimed_at(rule)
        sampling.demand_decisive(rule)
        return Smoothed(smoothing, sampling, seed, rule)
    given = {"smoothing": (smoothing, Smoothing()), "sampling": (sampling, Serialized())}
    given |= {"certificate": (rule, CertificationRule())}
    for name, (value, default) in given.items():
        allowed = f"must be left out: a certificate by {type(certification).__name__} is without noise"
        require(value == default, name, value, allowed)
    return WithoutNoise(certification)
