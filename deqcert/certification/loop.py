"""The certification loop. With trainer.py, the only module that uses Lightning's private names."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.certification.hooks import CertificationCallback, CertificationRun
from deqcert.certification.identity import run_identity
from deqcert.certification.shards import SHARDS, Job, Shard
from deqcert.data import CertificationSet
from deqcert.errors import TERMINATED, DataError, LedgerError
from deqcert.ledger import Contents, Ledger, identity_differences
from deqcert.smoothing import Smoothing
from deqcert.statistics import Votes

_POLL_SECONDS = 0.5
_UNCONVERGED = 0.1  # share of solves that may end above their tolerance without a word
_FILE_SYSTEM_SECONDS = 90.0  # NFS caches a directory for up to a minute


class CertificationLoop(_Loop):
    """Certifies a shard of the images, or of their copies, per rank, in place of Lightning's prediction loop.

    There is no collective between the first image and the end: ranks learn of each other's votes from the ledger, so
    a slow or stopped rank cannot block the others in a collective.

    Args:
        trainer: The trainer that runs the loop.
        smoothing: Strategy that takes the votes.
        directory: Directory of the ledger.
        shard: What ranks share: whole images, or the chains of copies of each image.
        patience: Seconds without any new measurement after which a waiting rank gives up, > 0.
    """

    trainer: Any  # lightning's annotation lacks what its trainer sets elsewhere

    def __init__(
        self, trainer: Any, smoothing: Smoothing, directory: str | Path, shard: Shard, patience: float
    ) -> None:
        super().__init__(trainer)
        self.smoothing = smoothing
        self.directory = Path(directory)
        self.shard: Shard = shard
        self.patience = patience
        # What Trainer.predict reads and writes on its loop.
        self.inference_mode = False
        self.return_predictions = False
        self.max_batches: list[int] = []
        self._data_source = _DataLoaderSource(None, "predict_dataloader")
        self._combined_loader = None
        self._results = None

    def run(self) -> bytes:
        """Certify what the ledger does not hold yet; return the :func:`packed` indices of all images of the run.

        The votes are in the ledger. Launchers that fork hand results through a pipe that nobody empties before the
        processes have ended: more than it holds would block them for ever.
        """
        trainer, module = self.trainer, self.trainer.lightning_module
        examples = self._examples()
        classifier = getattr(module, "network", module)
        module.eval()
        self._warn_about_sigma(module)
        shape = examples[0][0].shape
        identity = run_identity(
            self.smoothing, classifier, examples.identity(), shape, module.device, trainer.precision
        )
        ledger = Ledger(self.directory, identity)
        with ExitStack() as stack:
            self._begin(ledger, stack)
            wanted = set(examples.indices)
            known = ledger.contents.votes
            done = [known[index] for index in sorted(wanted & known.keys())]
            label = self.smoothing.label_for(classifier)
            run = CertificationRun(self.smoothing, self.directory, label, ledger.identity, examples, len(wanted), done)
            self._notify("on_certify_start", run)
            stack.enter_context(torch.no_grad())
            stack.enter_context(trainer.precision_plugin.predict_step_context())
            rank, world_size = trainer.global_rank, trainer.world_size
            job = Job(self.smoothing, classifier, examples, module.device, ledger, rank, world_size, engines=[])
            self._work(job, wanted)
            self._warn_of_unconverged(job)
            everything = [ledger.contents.votes[index] for index in sorted(wanted)]
            self._notify("on_certify_end", everything)
        return packed(wanted)

    def teardown(self) -> None:
        """Nothing to tear down; called by the trainer."""

    def _begin(self, ledger: Ledger, stack: ExitStack) -> None:
        """Take hold of the ledger; afterwards all ranks know the same contents, or all of them have failed.

        Raises:
            LedgerError: If another run writes to it, it is damaged, it is of another run, or the ranks themselves
                would certify different things (another model, other data, other versions on some node).
        """
        strategy, rank = self.trainer.strategy, self.trainer.global_rank
        found: tuple[dict[str, Any], Contents] | LedgerError | None = None
        if rank == 0:
            try:
                stack.enter_context(ledger.claim())
                ledger.refresh()
                found = ledger.identity, ledger.contents
            except LedgerError as error:
                found = error
        found = strategy.broadcast(found)
        if isinstance(found, LedgerError):
            raise found
        assert found is not None, "broadcast by rank 0"
        identity, contents = found
        problem = self._join_run(ledger, identity, contents, stack)
        if not strategy.reduce_boolean_decision(problem is None, all=True):
            raise problem or LedgerError("another rank cannot take part in this run; its message says why")
        if rank == 0:
            ledger.demand_ranks(self.trainer.world_size, _FILE_SYSTEM_SECONDS)

    def _join_run(
        self, ledger: Ledger, identity: dict[str, Any], contents: Contents, stack: ExitStack
    ) -> LedgerError | None:
        """Check this rank against rank 0 and open its file; return what is wrong."""
        differences = identity_differences(ledger.identity, identity)
        if differences:
            return LedgerError(f"rank {self.trainer.global_rank} would certify another run: {'; '.join(differences)}")
        ledger.contents = contents
        try:
            stack.enter_context(ledger.open(self.trainer.global_rank))
        except LedgerError as error:
            return error
        return None

    def _work(self, job: Job, wanted: set[int]) -> None:
        """Do this rank's part, then wait for the others."""
        # The parent of a process that nobody has launched for this run may be a shell that logs out (nohup).
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        launched = self.trainer.local_rank != 0 or getattr(environment, "creates_processes_externally", False)
        parent = os.getppid()
        last_news = time.monotonic()
        ledger = job.ledger
        for own in chain(SHARDS[self.shard](job), repeat(None)):
            news = ledger.refresh()
            heard = [entry for entry in news if isinstance(entry, Votes)] if self.trainer.is_global_zero else []
            for votes in (*(own or ()), *heard):
                if votes.index in wanted:
                    self._notify("on_certify_example_end", votes)
            missing = len(wanted - ledger.contents.votes.keys())
            if not missing:
                return
            if self.trainer.received_sigterm:
                raise SIGTERMException(TERMINATED)
            if launched and os.getppid() != parent:
                raise LedgerError("the process that launched this rank is gone; run the same command again to resume")
            if own is not None or news:
                last_news = time.monotonic()
            elif time.monotonic() - last_news > self.patience:
                raise LedgerError(
                    f"no new votes for {self.patience:g} s while {missing} images are missing: another rank has "
                    "stopped; run the same command again to resume"
                )
            if own is None:
                time.sleep(_POLL_SECONDS)

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

    def _warn_of_unconverged(self, job: Job) -> None:
        """Say so if many solves ended at their step limit: the tolerance then says nothing of the base classifier."""
        solver = self.smoothing.base_solver
        for share, residual in (engine.unconverged for engine in job.engines):
            if share > _UNCONVERGED:
                rank_zero_warn(
                    f"{share:.0%} of the solves of the base classifier ended after {solver.max_steps} steps above "
                    f"their tolerance of {solver.tolerance:g}, with a residual of {residual:.1e} on the average. "
                    "Certificates are about the network solved this far, which is not at its fixed points."
                )

    def _notify(self, hook: str, argument: CertificationRun | Votes | Sequence[Votes]) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, CertificationCallback):
                getattr(callback, hook)(self.trainer, self.trainer.lightning_module, argument)


def packed(indices: Iterable[int]) -> bytes:
    """Return indices in ascending order as a few bytes, far below the 64 KiB of a pipe for any regular selection."""
    steps = np.diff(np.array(sorted(indices), dtype=np.int64), prepend=0)
    return zlib.compress(steps.tobytes())


def unpacked(content: bytes) -> list[int]:
    """Return the indices that were :func:`packed`."""
    indices: list[int] = np.cumsum(np.frombuffer(zlib.decompress(content), dtype=np.int64)).tolist()
    return indices
