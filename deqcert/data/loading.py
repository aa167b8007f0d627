"""A training loader that a killed run can resume in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from deqcert.data.images import Batch, Example
from deqcert.data.sampling import EpochSampler


def collated(batch: Any) -> Any:
    """Pass on what the data set has collated already (``collate_fn`` must be picklable: no lambda)."""
    return batch


class ResumableLoader(DataLoader[Example]):
    """Loads batches; Lightning stores and restores how many of this epoch were used.

    Iteration begins with the first batch and not with ``iter()``: Lightning calls ``iter()`` before it tells
    the sampler the epoch of a resumed run, and worker processes would draw from the order of epoch 0.
    """

    sampler: EpochSampler
    _used = 0
    _resume_at = 0
    _resume_epoch = -1

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises a private iterator class
        # A checkpoint at the end of an epoch resumes with the next one, whose batches are all unused.
        self._used = self._resume_at if self.sampler.epoch == self._resume_epoch else 0
        self._resume_epoch = -1
        self.sampler.skipped = self._used * (self.batch_size or 1)
        for batch in super().__iter__():
            self._used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of which epoch were used."""
        return {"batches": self._used, "epoch": self.sampler.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let that epoch go on after the batches that were used."""
        self._resume_at, self._resume_epoch = state["batches"], state["epoch"]
