"""The certification loop. With trainer.py, the only module that uses Lightning's private names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from deqcert.certification.hooks import CertificationCallback, CertificationRun
from deqcert.certification.identity import run_identity
from deqcert.certification.ledger import Ledger
from deqcert.data import CertificationSet
from deqcert.errors import DataError, LedgerError
from deqcert.smoothing import Smoothing
from deqcert.statistics import Votes

_POLL_SECONDS = 0.5
_SIGTERM_EXIT = 128 + 15


class CertificationLoop(_Loop):
    """Certifies a shard of the images per rank, in place of Lightning's prediction loop.

    There is no collective between the first image and the end: ranks learn of each other's votes from the ledgers, so
    a slow or stopped rank cannot block the others in a collective.

    Args:
        trainer: The trainer that runs the loop.
        smoothing: Strategy that takes the votes.
        directory: Directory of the ledger.
        patience: Seconds without any new votes after which a waiting rank gives up, > 0.
    """

    trainer: Any  # lightning's annotation lacks what its trainer sets elsewhere

    def __init__(self, trainer: Any, smoothing: Smoothing, directory: str | Path, patience: float) -> None:
        super().__init__(trainer)
        self.smoothing = smoothing
        self.directory = Path(directory)
        self.patience = patience
        # What Trainer.predict reads and writes on its loop.
        self.inference_mode = False
        self.return_predictions = False
        self.max_batches: list[int] = []
        self._data_source = _DataLoaderSource(None, "predict_dataloader")
        self._combined_loader = None
        self._results = None

    def run(self) -> list[Votes]:
        """Certify what the ledger does not hold yet; return the votes of all images of the run, sorted by index."""
        trainer, module = self.trainer, self.trainer.lightning_module
        parent = os.getppid()
        examples = self._examples()
        classifier = getattr(module, "network", module)
        module.eval()
        self._warn_about_sigma(module)
        identity = run_identity(self.smoothing, classifier, examples.identity(), module.device, trainer.precision)
        ledger = Ledger(self.directory, identity)
        wanted = set(examples.indices)
        known = {index: votes for index, votes in ledger.read().items() if index in wanted}
        # No rank may write before every rank has read: all must cut the same remainder into shards.
        trainer.strategy.barrier("deqcert-ledger-read")
        remaining = [position for position, index in enumerate(examples.indices) if index not in known]
        shard = remaining[trainer.global_rank :: trainer.world_size]

        run = CertificationRun(
            self.smoothing,
            self.directory,
            ledger.identity,
            examples.num_classes,
            len(wanted),
            list(known.values()),
        )
        self._notify("on_certify_start", run)
        with (
            ledger.open(trainer.global_rank),
            torch.no_grad(),
            trainer.precision_plugin.predict_step_context(),
        ):
            for group in self._groups(classifier, examples, shard):
                for votes in group:
                    ledger.append(votes)
                    known[votes.index] = votes
                    self._notify("on_certify_example_end", votes)
                if trainer.is_global_zero and trainer.world_size > 1:
                    self._learn(ledger, known, wanted)
                self._stop_on_sigterm()
            self._wait_for_others(ledger, known, wanted, parent)
        everything = [known[index] for index in sorted(wanted)]
        self._notify("on_certify_end", everything)
        return everything

    def teardown(self) -> None:
        """Nothing to tear down; called by the trainer."""

    def _groups(self, classifier: nn.Module, examples: CertificationSet, shard: Sequence[int]) -> Iterator[list[Votes]]:
        """Yield the votes of the images at positions ``shard``, of as many images at a time as suits the device."""
        if not shard:
            return
        device = self.trainer.lightning_module.device
        engine = self.smoothing.engine(classifier, examples[shard[0]][0].to(device))
        for first in range(0, len(shard), engine.images):
            images, labels, indices = zip(*map(examples.__getitem__, shard[first : first + engine.images]), strict=True)
            yield self.smoothing.vote_group(engine, torch.stack(images).to(device), indices, labels)

    def _examples(self) -> CertificationSet:
        datamodule = self.trainer.datamodule
        if not hasattr(datamodule, "certification_set"):
            raise DataError(f"datamodule: {type(datamodule).__name__} has no certification_set() to certify")
        examples: CertificationSet = datamodule.certification_set()
        return examples

    def _warn_about_sigma(self, module: LightningModule) -> None:
        trained = getattr(module, "checkpoint_sigma", None)
        if trained is not None and trained != self.smoothing.sigma:
            rank_zero_warn(
                f"The checkpoint was trained at sigma = {trained}, but is certified at sigma = {self.smoothing.sigma}."
            )

    def _learn(self, ledger: Ledger, known: dict[int, Votes], wanted: set[int]) -> bool:
        """Take over votes that other ranks have written; return whether there were any."""
        news = [votes for index, votes in ledger.read().items() if index in wanted and index not in known]
        for votes in news:
            known[votes.index] = votes
            if self.trainer.is_global_zero:
                self._notify("on_certify_example_end", votes)
        return bool(news)

    def _wait_for_others(self, ledger: Ledger, known: dict[int, Votes], wanted: set[int], parent: int) -> None:
        last_news = time.monotonic()
        while len(known) < len(wanted):
            if self._learn(ledger, known, wanted):
                last_news = time.monotonic()
                continue
            self._stop_on_sigterm()
            if os.getppid() != parent:
                raise LedgerError("the process that launched this rank is gone; run the same command again to resume")
            if time.monotonic() - last_news > self.patience:
                raise LedgerError(
                    f"no new votes for {self.patience:g} s while {len(wanted) - len(known)} images are missing: "
                    "another rank has stopped; run the same command again to resume"
                )
            time.sleep(_POLL_SECONDS)

    def _stop_on_sigterm(self) -> None:
        if self.trainer.received_sigterm:
            raise SIGTERMException(_SIGTERM_EXIT)

    def _notify(self, hook: str, argument: CertificationRun | Votes | Sequence[Votes]) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, CertificationCallback):
                getattr(callback, hook)(self.trainer, self.trainer.lightning_module, argument)
