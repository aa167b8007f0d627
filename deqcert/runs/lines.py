"""Lines of a ledger: JSON, chained by SHA-256 digests.

Each line ends in the digest of its own bytes and of the digest before it, so a changed number, a lost line or swapped
lines break the chain at the first place that was touched. The chain has no key: it detects accidents, not forgers, who
can compute all digests again. Publishing :func:`~deqcert.runs.contents.votes_digest` commits to the votes of a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

START = ""
"""What the first line of a file is chained to."""

_SEAL = re.compile(rb', "sha256": "([0-9a-f]{64})"\}')
_SEAL_LENGTH = len(b', "sha256": ""}') + 64


def seal(record: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """Return the line of ``record``, line end included, and its digest.

    Args:
        record: Not empty, strict JSON.
        previous: Digest of the line before, or ``START``.
    """
    body = json.dumps(record, allow_nan=False)[:-1].encode()
    digest = _digest(previous, body)
    return body + f', "sha256": "{digest}"}}\n'.encode(), digest


def unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str]:
    """Return the record of a line, given without line end, and its digest.

    Raises:
        ValueError: The line has no seal, does not follow from the one before, or is not a JSON object.
    """
    body, found = line[:-_SEAL_LENGTH], _SEAL.fullmatch(line[-_SEAL_LENGTH:])
    if found is None:
        raise ValueError("no SHA-256 at its end")
    digest = found[1].decode()
    if digest != _digest(previous, body):
        raise ValueError("its SHA-256 is not that of its content after the lines before it")
    try:
        record = json.loads(body + b"}")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record, digest


def _digest(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()
