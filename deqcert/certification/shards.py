"""What each rank labels, and how its measurements become votes.

Both ways cut what the ledger lacks into shards ``remaining[rank::world_size]``. No shard is padded, and no rank waits
for another inside of a collective: ranks learn of each other's measurements from the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from deqcert.data import CertificationSet
from deqcert.errors import require
from deqcert.runs import Ledger
from deqcert.smoothing import Engine, Smoothing
from deqcert.smoothing.base import AuditTask
from deqcert.statistics import ChainLabels, Votes

Shard = Literal["images", "samples"]
Work = TypeVar("Work")


class Job(NamedTuple):
    """One rank's part in a run.

    Attributes:
        smoothing: Strategy that takes the votes.
        classifier: Base classifier.
        examples: All images of the run.
        device: Where to label.
        ledger: Open for writing; its contents are the same on all ranks when the job begins.
        rank: Global rank.
        world_size: Number of ranks.
        engines: Those that the job has prepared.
    """

    smoothing: Smoothing
    classifier: nn.Module
    examples: CertificationSet
    device: torch.device
    ledger: Ledger
    rank: int
    world_size: int
    engines: list[Engine]

    def share(self, remaining: Sequence[Work]) -> list[Work]:
        """Return what this rank is to do of ``remaining``."""
        return list(remaining[self.rank :: self.world_size])

    def image(self, position: int) -> tuple[Tensor, int, int]:
        """Return the image at ``position`` on the device, its label and its original index."""
        image, label, index = self.examples[position]
        return image.to(self.device), label, index

    def engine(self, position: int) -> Engine:
        """Prepare the classifier for images like the one at ``position``."""
        engine = self.smoothing.engine(self.classifier, self.image(position)[0])
        self.engines.append(engine)
        return engine


Place = tuple[int, int]
"""Position of an image, number of a chain."""

Progress = Iterator[Sequence[Votes] | None]
"""Yields after each piece of work, when it is safe in the ledger, the votes it completed; None if it has to wait."""


def shard_images(job: Job) -> Progress:
    """Label whole images, of as many at a time as suits the device."""
    known = job.ledger.contents.votes
    mine = job.share([position for position, index in enumerate(job.examples.indices) if index not in known])
    if not mine:
        return
    engine = job.engine(mine[0])
    for first in range(0, len(mine), engine.images):
        images, labels, indices = zip(*map(job.image, mine[first : first + engine.images]), strict=True)
        group = job.smoothing.vote_group(engine, torch.stack(images), indices, labels)
        for votes in group:
            job.ledger.append(votes)
        yield group


def shard_samples(job: Job) -> Progress:
    """Label chains of copies; several ranks work on the same image.

    The audit of an image is drawn by every rank alike as soon as the labels of all its chains are in the ledger. Each
    rank labels its share; meanwhile it goes on with chains of later images. Rank 0 adds up.

    Raises:
        SettingError: If the copies of an image are a single chain.
    """
    chains = job.smoothing.chains
    require(chains >= 2, "smoothing.chains", chains, "must be >= 2 for shard = samples: the chains are what is shared")
    return _SampleShard(job).work()


class _SampleShard:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._contents = job.ledger.contents
        self._indices = job.examples.indices
        unknown = [position for position, index in enumerate(self._indices) if index not in self._contents.votes]
        places = [(position, chain) for position in unknown for chain in range(job.smoothing.chains)]
        self._to_label = job.share([place for place in places if self._key(place) not in self._contents.labels])
        self._to_audit = job.share([place for place in places if self._key(place) not in self._contents.audits])
        self._to_join = unknown if job.rank == 0 else []
        self._drawn: dict[int, list[AuditTask] | None] = {}
        self._engine: Engine | None = None

    def work(self) -> Progress:
        while self._to_label or self._to_audit or self._to_join:
            votes = self._join()
            if votes:
                yield votes
            else:
                yield () if self._audit() or self._label() else None

    def _join(self) -> list[Votes]:
        """Add up the images of which everything is known."""
        joined = []
        for position in list(self._to_join):
            labels = self._labels(position)
            if labels is None:
                continue
            audits = None
            if self._tasks(position, labels) is not None:
                keys = [self._key((position, each.chain)) for each in labels]
                audits = [self._contents.audits[key] for key in keys if key in self._contents.audits]
                if len(audits) < len(keys):
                    continue
            image, label, _ = self._job.image(position)
            votes = self._job.smoothing.joined(image, label, labels, audits)
            self._job.ledger.append(votes)
            self._to_join.remove(position)
            self._forget(position)
            joined.append(votes)
        return joined

    def _audit(self) -> bool:
        """Audit a chain of the first image that is labelled; return whether there was one."""
        for place in self._to_audit:
            labels = self._labels(place[0])
            if labels is None:
                continue
            self._to_audit.remove(place)
            tasks = self._tasks(place[0], labels)
            if tasks is not None:
                (audit,) = self._job.smoothing.audit_chains(self._prepared(place[0]), [tasks[place[1]]])
                self._job.ledger.append(audit)
            self._forget(place[0])
            return True
        return False

    def _label(self) -> bool:
        """Label the next chain; return whether there was one."""
        if not self._to_label:
            return False
        position, chain = self._to_label.pop(0)
        image, _, index = self._job.image(position)
        engine = self._prepared(position)
        (labels,) = self._job.smoothing.label_chain(engine, image[None], [index], chain)
        self._job.ledger.append(labels)
        return True

    def _tasks(self, position: int, labels: Sequence[ChainLabels]) -> list[AuditTask] | None:
        """Draw the audit of an image, once."""
        if position not in self._drawn:
            self._drawn[position] = self._job.smoothing.audit_tasks(self._job.image(position)[0], labels)
        return self._drawn[position]

    def _forget(self, position: int) -> None:
        """Drop the audit of an image that this rank has done with."""
        if position not in self._to_join and all(place[0] != position for place in self._to_audit):
            self._drawn.pop(position, None)

    def _labels(self, position: int) -> list[ChainLabels] | None:
        """Return the labels of all chains of an image; None if some are missing."""
        keys = [self._key((position, chain)) for chain in range(self._job.smoothing.chains)]
        found = [self._contents.labels[key] for key in keys if key in self._contents.labels]
        return found if len(found) == len(keys) else None

    def _key(self, place: Place) -> Place:
        return self._indices[place[0]], place[1]

    def _prepared(self, position: int) -> Engine:
        if self._engine is None:
            self._engine = self._job.engine(position)
        return self._engine


SHARDS: dict[Shard, Callable[[Job], Progress]] = {"images": shard_images, "samples": shard_samples}
