"""Lines of a ledger: JSON, chained by SHA-256 digests. The first has the identity of the run, each further one votes.

Each line ends in the digest of its own bytes and of the digest before it, so a changed number, a lost line or swapped
lines break the chain at the first place that was touched. The chain has no key: it detects accidents, not forgers, who
can compute all digests again. Publishing :func:`votes_digest` commits to the votes of a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deqcert.errors import LedgerError
from deqcert.statistics import Margins, Record, Votes

SCHEMA = 2
START = ""  # what the first line of a file is chained to

_SEALED = re.compile(rb'(.*), "sha256": "([0-9a-f]{64})"\}', re.DOTALL)


def seal(record: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """Return the line of ``record``, which is not empty, with its line end; and its digest, that of the next line."""
    body = json.dumps(record, allow_nan=False)[:-1].encode()
    digest = _digest(previous, body)
    return body + f', "sha256": "{digest}"}}\n'.encode(), digest


def unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str]:
    """Return the record of a line, given without line end, and its digest; raise ValueError if it is damaged."""
    found = _SEALED.fullmatch(line)
    if found is None:
        raise ValueError("no SHA-256 at its end")
    body, digest = found[1], found[2].decode()
    if digest != _digest(previous, body):
        raise ValueError("its SHA-256 is not that of its content after the lines before it")
    try:
        record: dict[str, Any] = json.loads(body + b"}")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return record, digest


def first_line_identity(path: Path, line: bytes) -> dict[str, Any]:
    """Return the identity in the first line of the file at ``path``, or raise LedgerError if it has none of ours."""
    try:
        record, _ = unseal(line, START)
        if not isinstance(identity := record.get("identity"), dict):
            raise ValueError("identity must be an object")
    except ValueError as error:
        raise LedgerError(f"{path}, line 1: damaged ({error})") from error
    if (schema := record.get("schema", 1)) != SCHEMA:
        raise LedgerError(
            f"{path}: has ledger schema {schema!r}, but this version of deqcert reads schema {SCHEMA}; finish the "
            "run with the version that began it, or use another directory"
        )
    return identity


def record_kind(identity: Mapping[str, Any]) -> type[Votes] | type[Margins]:
    """Return what a run of this identity measures of an image: votes, or, without noise, margins."""
    return Margins if "certification" in identity else Votes


def identity_differences(theirs: Any, ours: Any, setting: str = "") -> list[str]:
    """Return, for each setting that differs, what it is there and here."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return [] if theirs == ours else [f"{setting} = {theirs!r} there, {ours!r} here"]
    return [
        difference
        for key in sorted(theirs.keys() | ours.keys())
        for difference in identity_differences(theirs.get(key), ours.get(key), f"{setting}.{key}".removeprefix("."))
    ]


def votes_digest(votes: Iterable[Record]) -> str:
    """Return the SHA-256 of votes or margins, in the order of their indices, times left out.

    Published beside a table, it commits to what the run has measured: a ledger that is rewritten later has another
    digest. It does not show that the measurement itself was right.
    """
    digest = hashlib.sha256()
    for each in sorted(votes, key=lambda vote: vote.index):
        digest.update(json.dumps(without_time(each), allow_nan=False).encode() + b"\n")
    return digest.hexdigest()


def without_time(votes: Record) -> dict[str, object]:
    """Return what votes say, but for the time that they took."""
    record = votes.to_json()
    del record["seconds"]
    return record


def _digest(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()
