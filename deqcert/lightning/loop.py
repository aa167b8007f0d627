"""The certification loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource

from deqcert.data import CertificationSet
from deqcert.errors import DataError
from deqcert.lightning.forecast import Forecast
from deqcert.lightning.hooks import CertificationCallback, CertificationRun
from deqcert.lightning.identity import run_identity
from deqcert.lightning.methods import Method, Share
from deqcert.lightning.ranks import Watch, joined
from deqcert.lightning.sample_progress import SampleProgress
from deqcert.runs import Ledger
from deqcert.statistics import Record

# Between two looks for the votes of others: a twentieth of the time waited so far, within these bounds.
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.5, 10.0


class CertificationLoop(_Loop):
    """Certifies a share of the images per rank, in place of Lightning's prediction loop.

    For each image that the ledger lacks: measure it, write the votes (or margins) to the ledger, tell the callbacks.
    There is no collective between the first image and the end: ranks learn of each other's votes from the ledger, so a
    slow or stopped rank cannot block the others in a collective.

    Args:
        trainer: The trainer.
        method: How images are measured.
        directory: Directory of ledger and results.
        patience: Seconds without new votes after which a waiting rank gives up.
    """

    trainer: Any  # lightning's annotation lacks what its trainer sets elsewhere

    def __init__(self, trainer: Any, method: Method, directory: Path, patience: float) -> None:
        super().__init__(trainer)
        self.method, self.directory, self.patience = method, directory, patience
        self.examples: CertificationSet | None = None  # known once it runs, in the processes that run it
        # What Trainer.predict reads and writes on its loop.
        self.inference_mode = self.return_predictions = False
        self.max_batches: list[int] = []
        self._data_source = _DataLoaderSource(None, "predict_dataloader")
        self._combined_loader = self._results = None

    def run(self) -> None:
        """Certify what the ledger does not hold yet."""
        trainer, module, data = self.trainer, self.trainer.lightning_module.eval(), self.trainer.datamodule
        if not hasattr(data, "certification_set"):
            raise DataError(f"datamodule: {type(data).__name__} has no certification_set() to certify")
        examples: CertificationSet = data.certification_set()
        self.examples = examples
        name = self.method.prepare(module)
        identity = run_identity(self.method.settings(), module, examples, trainer.precision)
        ledger = Ledger(self.directory, identity)
        self.method.demand_fitting(ledger.identity, examples)
        with joined(ledger, trainer), torch.no_grad(), trainer.precision_plugin.predict_step_context():
            known, wanted, watch = ledger.votes, set(examples.indices), Watch(trainer, self.patience)
            missing = wanted - known.keys()
            run = CertificationRun(
                method=self.method,
                directory=self.directory,
                name=name,
                identity=ledger.identity,
                examples=examples,
                done=[known[index] for index in sorted(wanted & known.keys())],
            )
            self._notify("on_certify_start", run)
            remaining = [position for position, index in enumerate(examples.indices) if index not in known]
            own = remaining[trainer.global_rank :: trainer.world_size]
            told = ("on_certify_forecast", "on_certify_samples") if trainer.is_global_zero else ()
            tell = (partial(self._notify, hook) for hook in told)
            share = Share(examples, own, len(remaining), module.device, *tell)
            for votes in self.method.measure(share) if own else ():
                self._share(ledger, votes, missing, watch)
            began = time.monotonic()
            while self._share(ledger, [], missing, watch):  # until the other ranks have done theirs
                waited = time.monotonic() - began
                time.sleep(min(max(_POLL_SECONDS, waited / 20), _LONGEST_POLL_SECONDS))
            self._notify("on_certify_end", [known[index] for index in sorted(wanted)])

    def _share(self, ledger: Ledger, own: Sequence[Record], missing: set[int], watch: Watch) -> int:
        """Write this rank's votes to the ledger, tell the callbacks of all; return how many images have none yet.

        While they have votes of their own, ranks other than the first do not look for those of others: nobody is told
        of them, and N ranks that look into N files after each image would keep a file system busy.
        """
        for votes in own:
            ledger.append(votes)
        first = self.trainer.is_global_zero
        heard = [] if own and not first else ledger.refresh()
        for votes in (*own, *(heard if first else ())):
            if votes.index in missing:
                self._notify("on_certify_example_end", votes)
        missing.difference_update(votes.index for votes in (*own, *heard))
        if missing:
            watch.check(news=bool(own or heard), missing=len(missing))
        return len(missing)

    def _notify(
        self, hook: str, argument: CertificationRun | Forecast | SampleProgress | Record | Sequence[Record]
    ) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, CertificationCallback):
                getattr(callback, hook)(self.trainer, self.trainer.lightning_module, argument)

    def teardown(self) -> None:
        """Nothing to tear down; called by the trainer."""
