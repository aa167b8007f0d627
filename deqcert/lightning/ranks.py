"""How the processes of a certification run take part in it together, and when one of them gives up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from deqcert.errors import TERMINATED, LedgerError
from deqcert.runs import Ledger, identity_differences

_FILE_SYSTEM_SECONDS = 90.0  # NFS caches a directory for up to a minute


@contextmanager
def joined(ledger: Ledger, trainer: Any) -> Iterator[None]:
    """Take hold of a ledger; within it all ranks know the same contents, or all of them have failed.

    Raises:
        LedgerError: If another run writes to it, it is damaged, it is of another run, or the ranks themselves would
            certify different things (another model, other data, other versions on some node).
    """
    rank, strategy = trainer.global_rank, trainer.strategy
    with ExitStack() as stack:
        found: Any = None
        if rank == 0:
            try:
                stack.enter_context(ledger.claim())
                ledger.refresh()
                found = ledger.identity, ledger.votes
            except LedgerError as error:
                found = error
        found = strategy.broadcast(found)
        if isinstance(found, LedgerError):
            raise found
        identity, ledger.votes = found
        problem = None
        try:
            if differences := identity_differences(ledger.identity, identity):
                raise LedgerError(f"rank {rank} would certify another run: {'; '.join(differences)}")
            stack.enter_context(ledger.open(rank))
        except LedgerError as error:
            problem = error
        if not strategy.reduce_boolean_decision(problem is None, all=True):
            raise problem or LedgerError("another rank cannot take part in this run; its message says why")
        if rank == 0:
            ledger.demand_ranks(trainer.world_size, _FILE_SYSTEM_SECONDS)
        yield


class Watch:
    """Ends a rank that is to stop, or that has waited ``patience`` seconds in vain for any new votes."""

    def __init__(self, trainer: Any, patience: float) -> None:
        self._trainer, self._patience = trainer, patience
        # The parent of a process that nobody has launched for this run may be a shell that logs out (nohup).
        self._parent = os.getppid() if _launched(trainer) else None
        self._last_news = time.monotonic()

    def check(self, news: bool, missing: int) -> None:
        """Go on while ``missing`` images have no votes, or raise; ``news`` says whether one has got some.

        Raises:
            SIGTERMException: With code 143, if SIGTERM has come.
            LedgerError: If the rank waits in vain.
        """
        if self._trainer.received_sigterm:
            raise SIGTERMException(TERMINATED)
        if self._parent not in (None, os.getppid()):
            raise LedgerError("the process that launched this rank is gone; run the same command again to resume")
        if news:
            self._last_news = time.monotonic()
        elif time.monotonic() - self._last_news > self._patience:
            raise LedgerError(
                f"no new votes for {self._patience:g} s while {missing} images are missing: another rank has stopped; "
                "run the same command again to resume"
            )


def _launched(trainer: Any) -> bool:
    """Return whether another process has started this one for the run."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    # Lightning's launcher sets LOCAL_RANK for itself as well, and then takes itself for a process of a cluster.
    launches = bool(getattr(trainer.strategy.launcher, "procs", None))
    return trainer.local_rank != 0 or (getattr(environment, "creates_processes_externally", False) and not launches)
