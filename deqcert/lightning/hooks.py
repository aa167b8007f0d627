"""What callbacks are told during a certification run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from deqcert.data import CertificationSet
from deqcert.lightning.forecast import Forecast
from deqcert.smoothing import Sampling, Smoothing
from deqcert.statistics import CertificationRule, Votes


class CertificationRun(NamedTuple):
    """The run that is about to start.

    Attributes:
        smoothing: What makes the network the smoothed classifier g.
        sampling: The strategy that takes the votes.
        directory: Where the ledger lies and results belong.
        name: Short name of the strategy on f, for tables.
        identity: Everything that determines the votes, as written in the ledger.
        examples: The images to certify.
        done: Votes that the ledger already holds.
    """

    smoothing: Smoothing
    sampling: Sampling
    directory: Path
    name: str
    identity: Mapping[str, Any]
    examples: CertificationSet
    done: Sequence[Votes]


class CertificationCallback(Callback):
    """A callback with certification hooks.

    Global rank 0 hears of every image, whichever rank certified it; other ranks hear of their own.
    """

    rule: CertificationRule | None = None
    """How the run's votes become certificates, of the callback that decides it."""

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Called once before the first image."""

    def on_certify_forecast(self, trainer: Trainer, module: LightningModule, forecast: Forecast) -> None:
        """Called once on rank 0 after the first batches, unless it has no image left to certify."""

    def on_certify_example_end(self, trainer: Trainer, module: LightningModule, votes: Votes) -> None:
        """Called when the votes of one more image are known and safe in a ledger."""

    def on_certify_end(self, trainer: Trainer, module: LightningModule, votes: Sequence[Votes]) -> None:
        """Called once with the votes of all images of the run, sorted by index."""
