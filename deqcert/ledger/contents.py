"""What a ledger holds, whichever file it was in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deqcert.errors import DataError
from deqcert.statistics import ChainAudit, ChainLabels, Votes

Entry = Votes | ChainLabels | ChainAudit
Place = tuple[int, int]
"""Index of an image, number of a chain."""

_LABELS, _AUDIT = "labels_of_chain", "audit_of_chain"


@dataclass
class Contents:
    """Measurements by what they are of.

    Attributes:
        votes: Votes by image index.
        labels: Labels of chains by (image index, chain).
        audits: Shares of audits by (image index, chain).
    """

    votes: dict[int, Votes] = field(default_factory=dict)
    labels: dict[Place, ChainLabels] = field(default_factory=dict)
    audits: dict[Place, ChainAudit] = field(default_factory=dict)

    def add(self, entry: Entry) -> bool:
        """Take over an entry; return whether it is new.

        Raises:
            DataError: Another entry says something else of the same thing. Times may differ.
        """
        known: Entry
        if isinstance(entry, Votes):
            new, known = entry.index not in self.votes, self.votes.setdefault(entry.index, entry)
        elif isinstance(entry, ChainLabels):
            place = entry.index, entry.chain
            new, known = place not in self.labels, self.labels.setdefault(place, entry)
        else:
            place = entry.index, entry.chain
            new, known = place not in self.audits, self.audits.setdefault(place, entry)
        if not new and known.to_json() | {"seconds": 0} != entry.to_json() | {"seconds": 0}:
            raise DataError(f"image {entry.index} has other votes in another line")
        return new


def to_record(entry: Entry) -> dict[str, Any]:
    """Return the JSON object that stands for ``entry`` in a line."""
    if isinstance(entry, Votes):
        return entry.to_json()
    return {_LABELS if isinstance(entry, ChainLabels) else _AUDIT: entry.to_json()}


def from_record(record: Mapping[str, Any]) -> Entry:
    """Read what :func:`to_record` wrote.

    Raises:
        DataError: It is no entry, or one that contradicts itself.
    """
    kinds: tuple[tuple[str, type[ChainLabels] | type[ChainAudit]], ...] = ((_LABELS, ChainLabels), (_AUDIT, ChainAudit))
    for key, kind in kinds:
        if record.keys() == {key}:
            if not isinstance(record[key], dict):
                raise DataError(f"{key} must be an object")
            return kind.from_json(record[key])
    return Votes.from_json(record)


def votes_digest(votes: Iterable[Votes]) -> str:
    """Return the SHA-256 of votes, in the order of their indices, times left out.

    It fixes what a run has measured: publish it beside a table, and nobody can change the run afterwards.
    """
    digest = hashlib.sha256()
    for each in sorted(votes, key=lambda vote: vote.index):
        record = each.to_json()
        del record["seconds"]
        digest.update(json.dumps(record, allow_nan=False).encode() + b"\n")
    return digest.hexdigest()
