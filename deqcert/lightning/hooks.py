"""What callbacks are told during a certification run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from deqcert.data import CertificationSet
from deqcert.lightning.forecast import Forecast
from deqcert.lightning.methods import Method
from deqcert.lightning.sample_progress import SampleProgress
from deqcert.statistics import CertificationRule, Record


class CertificationRun(NamedTuple):
    """The run that is about to start.

    Attributes:
        method: How images are measured, and how measurements become certificates.
        directory: Where the ledger lies and results belong.
        name: Short name of what is certified, for tables.
        identity: Everything that determines the measurements, as written in the ledger.
        examples: The images to certify.
        done: Votes (or margins) that the ledger already holds.
    """

    method: Method
    directory: Path
    name: str
    identity: Mapping[str, Any]
    examples: CertificationSet
    done: Sequence[Record]


class CertificationCallback(Callback):
    """A callback with certification hooks.

    Global rank 0 hears of every image, whichever rank certified it; other ranks hear of their own.
    """

    rule: CertificationRule | None = None
    """How votes become certificates, of the callback that decides it."""

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Called once before the first image."""

    def on_certify_forecast(self, trainer: Trainer, module: LightningModule, forecast: Forecast) -> None:
        """Called once on rank 0 after the first batches, unless it has no image left to certify."""

    def on_certify_samples(self, trainer: Trainer, module: LightningModule, progress: SampleProgress) -> None:
        """Called on rank 0 about once a second while images take longer than that; it may be by another thread."""

    def on_certify_example_end(self, trainer: Trainer, module: LightningModule, votes: Record) -> None:
        """Called when the votes (or margins) of one more image are known and safe in a ledger."""

    def on_certify_end(self, trainer: Trainer, module: LightningModule, votes: Sequence[Record]) -> None:
        """Called once with the votes (or margins) of all images of the run, sorted by index."""
