"""The certification loop. With trainer.py, the only module that uses Lightning's private names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.certification.hooks import CertificationCallback, CertificationRun
from deqcert.certification.identity import run_identity
from deqcert.data import CertificationSet
from deqcert.errors import TERMINATED, DataError, LedgerError
from deqcert.runs import Contents, Ledger, identity_differences
from deqcert.smoothing import Engine, Sampling, SmoothedClassifier, Smoothing, SolvedClassifier, Stream
from deqcert.statistics import Votes

_POLL_SECONDS = 0.5
_UNCONVERGED = 0.1  # share of solves that may end above their tolerance without a word
_FILE_SYSTEM_SECONDS = 90.0  # NFS caches a directory for up to a minute


class CertificationLoop(_Loop):
    """Certifies a share of the images per rank, in place of Lightning's prediction loop.

    For each image that the ledger lacks: take the votes, write them to the ledger, tell the callbacks. There is no
    collective between the first image and the end: ranks learn of each other's votes from the ledger, so a slow or
    stopped rank cannot block the others in a collective.

    Args:
        trainer: The trainer that runs the loop.
        smoothing: What makes the network the smoothed classifier g.
        sampling: Strategy that takes the votes.
        seed: Seed of all random streams.
        directory: Directory of the ledger.
        patience: Seconds without any new votes after which a waiting rank gives up, > 0.
    """

    trainer: Any  # lightning's annotation lacks what its trainer sets elsewhere

    def __init__(
        self, trainer: Any, smoothing: Smoothing, sampling: Sampling, seed: int, directory: Path, patience: float
    ) -> None:
        super().__init__(trainer)
        self.smoothing, self.sampling, self.seed = smoothing, sampling, seed
        self.directory = directory
        self.patience = patience
        self.examples: CertificationSet | None = None  # known once it runs, in the processes that run it
        # What Trainer.predict reads and writes on its loop.
        self.inference_mode = False
        self.return_predictions = False
        self.max_batches: list[int] = []
        self._data_source = _DataLoaderSource(None, "predict_dataloader")
        self._combined_loader = None
        self._results = None

    def run(self) -> None:
        """Certify what the ledger does not hold yet."""
        trainer, module = self.trainer, self.trainer.lightning_module
        examples = self.examples = self._examples()
        network = getattr(module, "network", module)
        module.eval()
        self._warn_about_sigma(module)
        g = self.smoothing.of(network)
        identity = run_identity(
            self.smoothing,
            self.sampling,
            self.seed,
            network,
            examples.identity(),
            examples[0][0].shape,
            module.device,
            trainer.precision,
        )
        ledger = Ledger(self.directory, identity)
        with ExitStack() as stack:
            self._begin(ledger, stack)
            wanted = set(examples.indices)
            known = ledger.contents.votes
            run = CertificationRun(
                smoothing=self.smoothing,
                sampling=self.sampling,
                seed=self.seed,
                directory=self.directory,
                name=self.sampling.name(g.base),
                identity=ledger.identity,
                examples=examples,
                total=len(wanted),
                done=[known[index] for index in sorted(wanted & known.keys())],
            )
            self._notify("on_certify_start", run)
            stack.enter_context(torch.no_grad())
            stack.enter_context(trainer.precision_plugin.predict_step_context())
            remaining = [position for position, index in enumerate(examples.indices) if index not in known]
            mine = remaining[trainer.global_rank :: trainer.world_size]
            self._certify(ledger, self._votes(g, examples, mine), wanted)
            self._notify("on_certify_end", [known[index] for index in sorted(wanted)])

    def _votes(
        self, g: SmoothedClassifier, examples: CertificationSet, positions: Sequence[int]
    ) -> Iterator[list[Votes]]:
        """Take the votes of the images at ``positions``, of as many at a time as suits the device."""
        if not positions:
            return
        device = self.trainer.lightning_module.device
        engine = self.sampling.engine(g, examples[positions[0]][0].to(device))
        for first in range(0, len(positions), engine.images):
            group = [examples[position] for position in positions[first : first + engine.images]]
            images = torch.stack([image.to(device) for image, _, _ in group])
            streams = [Stream(self.seed, index) for _, _, index in group]
            votes = self.sampling.group_votes(g, engine, images, streams)
            yield [each._replace(index=i, label=label) for each, (_, label, i) in zip(votes, group, strict=True)]
        self._warn_of_unconverged(engine)

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

    def _certify(self, ledger: Ledger, groups: Iterator[list[Votes]], wanted: set[int]) -> None:
        """Write this rank's votes to the ledger, tell the callbacks of all, then wait for the other ranks."""
        # The parent of a process that nobody has launched for this run may be a shell that logs out (nohup).
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        launched = self.trainer.local_rank != 0 or getattr(environment, "creates_processes_externally", False)
        parent = os.getppid()
        last_news = time.monotonic()
        for own in chain(groups, repeat(None)):
            for votes in own or ():
                ledger.append(votes)
            heard = ledger.refresh()
            for votes in (*(own or ()), *(heard if self.trainer.is_global_zero else ())):
                if votes.index in wanted:
                    self._notify("on_certify_example_end", votes)
            missing = len(wanted - ledger.contents.votes.keys())
            if not missing:
                if own is None:
                    return
                continue  # the generator has a last word
            if self.trainer.received_sigterm:
                raise SIGTERMException(TERMINATED)
            if launched and os.getppid() != parent:
                raise LedgerError("the process that launched this rank is gone; run the same command again to resume")
            if own is not None or heard:
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

    def _warn_of_unconverged(self, engine: Engine) -> None:
        """Say so if many solves ended at their step limit: the tolerance then says nothing about f."""
        share = engine.unconverged
        if share > _UNCONVERGED and isinstance(engine.base, SolvedClassifier):
            solver = engine.base.solver
            rank_zero_warn(
                f"{share:.0%} of the solves of the base classifier ended after {solver.max_steps} steps above "
                f"their tolerance of {solver.tolerance:g}. "
                "Certificates are about the network solved this far, which is not at its fixed points."
            )

    def _notify(self, hook: str, argument: CertificationRun | Votes | Sequence[Votes]) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, CertificationCallback):
                getattr(callback, hook)(self.trainer, self.trainer.lightning_module, argument)
