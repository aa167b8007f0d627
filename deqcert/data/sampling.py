"""Which images each process sees, in which order: a function of (seed, epoch, rank) only."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DistributedSampler

from deqcert.data.images import IndexedImages


class EpochSampler(DistributedSampler[int]):
    """Shuffles by (seed, epoch), passes the epoch on to the data set and can start in mid-epoch.

    Every process gets the same number of images (a few may be repeated), as gradient averaging needs it.

    Args:
        images: What to draw from. Its attribute ``epoch``, if there is one, follows :meth:`set_epoch`.
        replicas: Number of processes.
        rank: Number of this process.
        seed: Seed of the order, >= 0.
    """

    def __init__(self, images: IndexedImages, replicas: int, rank: int, seed: int) -> None:
        super().__init__(images, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch`` (and its augmentation, where the data set does that)."""
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

    Args:
        images: What to deal out; at least one image per process, or Lightning would wait for ever for the
            process without one.
        replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(self, images: IndexedImages, replicas: int, rank: int) -> None:
        super().__init__(images, num_replicas=replicas, rank=rank, shuffle=False)
        self._positions = range(rank, len(images), replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)
