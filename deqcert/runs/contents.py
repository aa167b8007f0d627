"""What a ledger holds, whichever file it was in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from deqcert.errors import DataError
from deqcert.statistics import Votes


@dataclass
class Contents:
    """The votes of a ledger by image index."""

    votes: dict[int, Votes] = field(default_factory=dict)

    def add(self, votes: Votes) -> bool:
        """Add the votes of an image; return whether they are new.

        Raises:
            DataError: The image already has other votes. Times may differ.
        """
        new, known = votes.index not in self.votes, self.votes.setdefault(votes.index, votes)
        if not new and _without_time(known) != _without_time(votes):
            raise DataError(f"image {votes.index} has other votes in another line")
        return new


def votes_digest(votes: Iterable[Votes]) -> str:
    """Return the SHA-256 of votes, in the order of their indices, times left out.

    Anyone can compute it again from the ledger. Published beside a table, it commits to what the run has measured: a
    ledger that is rewritten later has another digest. It does not show that the measurement itself was right.
    """
    digest = hashlib.sha256()
    for each in sorted(votes, key=lambda vote: vote.index):
        digest.update(json.dumps(_without_time(each), allow_nan=False).encode() + b"\n")
    return digest.hexdigest()


def _without_time(votes: Votes) -> dict[str, object]:
    record = votes.to_json()
    del record["seconds"]
    return record
