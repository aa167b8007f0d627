"""What all sampling strategies share: from a smoothed classifier, images and their random streams to votes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from deqcert.errors import SettingError, require, require_count
from deqcert.seeding import Purpose
from deqcert.smoothing.engine import Engine, Predictions, count_classes
from deqcert.smoothing.execution import Execution
from deqcert.smoothing.identity import describe
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.solvers import Solver
from deqcert.statistics import CertificationRule, Votes, noise_error
from deqcert.statistics.packing import packed

_MAXIMUM = 10**9  # far beyond use, and within what the exact bounds compute


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
        store_predictions: Store the prediction of each estimation sample with the votes, half a byte each or less, for
            :class:`~deqcert.smoothing.Incremental` certification of another network to start from.
    """

    n0: int = 100
    n: int = 10_000
    batch_size: int = 400
    execution: Execution = Execution()
    store_predictions: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("n0", "n", "batch_size"):
            require_count(name, getattr(self, name), minimum=1)
            require(getattr(self, name) <= _MAXIMUM, name, getattr(self, name), f"must be <= {_MAXIMUM}")

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
            engine: From :meth:`engine`, for all images of one shape.
            images: Clean images in [0, 1], shape (E, C, H, W), on the device of f.
            streams: Their random streams.
        """

    def votes(self, g: SmoothedClassifier, x: Tensor, stream: Stream) -> Votes:
        """Take the votes of one image, shape (C, H, W)."""
        return self.group_votes(g, self.engine(g, x), x[None], [stream])[0]

    def engine(self, g: SmoothedClassifier, image: Tensor) -> Engine:
        """Prepare f for images like ``image``, shape (C, H, W); see :meth:`SmoothedClassifier.engine`."""
        return g.engine(image, self.execution, self.batch_size, self.proposals)

    def identity(self) -> dict[str, Any]:
        """Return the settings as the identity of a run has them, JSON-able.

        Stored predictions do not change votes, but the lines of one ledger either have them or do not.
        """
        settings: dict[str, Any] = describe(self)
        if not self.store_predictions:
            del settings["store_predictions"]  # as in runs from before there were any
        return settings

    @property
    def predicted(self) -> int:
        """Noisy samples of an image that the strategy predicts; what it asks f about comes on top of them."""
        return self.n0 + self.n

    @property
    def proposals(self) -> tuple[Solver, ...]:
        """Solvers of the strategy's own; none without a chain."""
        return ()

    def aimed_at(self, rule: CertificationRule) -> Sampling:
        """Return the strategy with its audit or stopping rule aimed at the certificates of ``rule``."""
        return self

    def anticipated(self, n: int, n_a: int, sigma: float) -> list[Votes]:
        """Return the votes to expect of an image of which ``n_a`` of ``n`` estimation samples say A.

        One for each number of samples at which sampling may end, the last one after all ``n``; costs are left at 0.
        Audited and escalated samples all agree.
        """
        return [
            Votes(
                n0=self.n0,
                n=n,
                selection=(round(self.n0 * n_a / n), 0),
                estimation=(n_a, n - n_a),
                audited=None,
                mismatches=0,
                nfe_fast=0,
                nfe_audit=0,
                residual=math.nan,
                seconds=0.0,
                sigma=sigma,
                noise_error=0.0,
            )
        ]

    def largest_radius(self, rule: CertificationRule, sigma: float) -> float:
        """Return the radius that ``rule`` gives where all noisy samples agree: about the largest possible one."""
        return max(rule.certify(votes).radius for votes in self.anticipated(self.n, self.n, sigma))

    def demand_decisive(self, rule: CertificationRule) -> None:
        """Refuse settings with which ``rule`` abstains whatever the votes.

        Raises:
            SettingError: It does even where all noisy samples agree. Names the least n that can certify, or the audit
                if that is too small for this n.
        """
        if self.largest_radius(rule, 1.0) > 0:
            return
        problem = f"certifies nothing at alpha = {rule.alpha:g}, even if all noisy samples agree"

        def decides(n: int) -> bool:
            """Whether n samples can certify, audited as far as it takes."""
            votes = self.anticipated(n, n, 1.0)
            return any(rule.certify(each.audited_whole()).radius > 0 for each in votes)

        enough = self.n
        while not decides(enough):
            enough *= 2
        least = bisect_left(range(enough), True, lo=self.n, key=decides)
        few = "a larger audit is needed" if least == self.n else f"must be at least {least}"
        raise SettingError("sampling.n", self.n, f"{problem}; {few}")

    def with_predictions(self, votes: Votes, classes: Tensor) -> Votes:
        """Return the votes with the predictions of the estimation samples, shape (n,), if they are to be stored.

        Args:
            votes: The votes of an image.
            classes: What each sample was classified as, and by f where it was escalated; on the CPU.
        """
        stored = packed(classes.numpy(), len(votes.estimation)) if self.store_predictions else ""
        return votes._replace(predictions=stored)

    def noise(
        self, g: SmoothedClassifier, images: Tensor, streams: Sequence[Stream], purpose: Purpose
    ) -> list[Iterator[Tensor]]:
        """Return the noisy samples of each image, batch by batch."""
        count = self.n0 if purpose is Purpose.SELECTION else self.n
        return [g.noisy(*each, purpose, count, self.batch_size) for each in zip(images, streams, strict=True)]


def sample_under_noise(
    predict: Callable[[Tensor], Predictions],
    noise: Sequence[Iterator[Tensor]],
    enough: Callable[[int, Sequence[Predictions]], bool] | None = None,
) -> list[Predictions]:
    """Classify the noisy samples of E images side by side (SAMPLEUNDERNOISE of Cohen et al.); bring each to the CPU.

    Args:
        predict: Classifies samples of all images, shape (size · E, C, H, W); row i·E + e is sample i of image e.
        noise: Batches of each image, all of the same sizes.
        enough: Told an image's position and its batches so far, says whether it needs no more.
    """
    batches: list[list[Predictions]] = [[] for _ in noise]
    going = list(range(len(noise)))
    while samples := [batch for e in going for batch in islice(noise[e], 1)]:
        predictions = predict(taken(samples, dim=1).flatten(0, 1))
        for place, e in enumerate(going):
            batches[e].append(Predictions(*(tensor[place :: len(going)] for tensor in predictions)))
        going = [e for e in going if enough is None or not enough(e, batches[e])]
    return [Predictions(*(tensor.cpu() for tensor in Predictions.joined(each))) for each in batches]


def taken(samples: list[Tensor], dim: int) -> Tensor:
    """Stack the samples and empty the list: large images need not lie in memory twice."""
    stacked = torch.stack(samples, dim)
    samples.clear()
    return stacked


def count_votes(
    g: SmoothedClassifier,
    engine: Engine,
    images: Tensor,
    selection: Sequence[Predictions],
    estimation: Sequence[Predictions],
) -> list[Votes]:
    """Return the votes of each image without time and audit."""
    return [
        Votes(
            n0=len(chosen.classes),
            n=len(drawn.classes),
            selection=count_classes(chosen.classes, engine.num_classes),
            estimation=count_classes(drawn.classes, engine.num_classes),
            audited=None,
            mismatches=0,
            nfe_fast=int(chosen.steps.sum() + drawn.steps.sum()),
            nfe_audit=0,
            residual=float(drawn.residual.mean()),
            seconds=0.0,
            sigma=g.sigma,
            noise_error=noise_error(g.noise, images[0].numel()),
        )
        for chosen, drawn in zip(selection, estimation, strict=True)
    ]
