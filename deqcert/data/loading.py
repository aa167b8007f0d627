"""Which images each process sees, in which order: a function of (seed, epoch, rank) only, resumable in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from deqcert.data.images import Batch, Example


class EpochSampler(DistributedSampler[int]):
    """Shuffles by (seed, epoch), passes the epoch on to the data set and can start in mid-epoch.

    Every process gets the same number of images (a few may be repeated), as gradient averaging needs it.
    """

    skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch`` (and its augmentation, where the data set has an attribute ``epoch``)."""
        super().set_epoch(epoch)
        if hasattr(self.dataset, "epoch"):
            self.dataset.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Iterate over the epoch, without its first ``skipped`` images the first time."""
        positions = list(super().__iter__())[self.skipped :]
        self.skipped = 0
        return iter(positions)


class UnpaddedSampler(DistributedSampler[int]):
    """Deals the images out in order without repeating any, so that metrics count each image once.

    It is a ``DistributedSampler`` because Lightning would deal out the images of any other sampler again.
    Lightning would wait for ever for a process without an image.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def _positions(self) -> range:
        return range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]  # Sized in practice


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
