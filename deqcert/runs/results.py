"""The results of a finished run: ``certificates.tsv`` and ``certificates.json``, which has everything in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deqcert.errors import DataError, reason
from deqcert.files import file_digest, write_atomically
from deqcert.runs.contents import votes_digest
from deqcert.runs.summary import Summary, match_votes, summarize
from deqcert.runs.tsv import write_tsv
from deqcert.statistics import Certificate, CertificationRule, Votes

JSON_NAME, TSV_NAME = "certificates.json", "certificates.tsv"

_DIGESTED = (TSV_NAME, "certify.yaml", "curve.png")
"""Other files of a run, whose digests ``certificates.json`` holds."""

_SEAL = b',\n"sha256":'


def certify_votes(votes: Sequence[Votes], rule: CertificationRule) -> tuple[Certificate, ...]:
    """Turn the votes of a run into its certificates, in the same order."""
    return tuple(rule.certify(vote) for vote in votes)


def write_results(
    directory: Path,
    votes: Sequence[Votes],
    rule: CertificationRule,
    settings: Mapping[str, object],
    *,
    radii: Sequence[float],
) -> Summary:
    """Certify votes and write ``certificates.tsv`` and ``certificates.json`` beside their ledger.

    Args:
        directory: Directory of the run.
        votes: Votes of all images.
        rule: How they become certificates.
        settings: Identity of the run, and what else to record of it. What JSON has no form for is written as text.
        radii: Where the summary gives certified accuracy.

    Returns:
        The summary.

    Raises:
        DataError: There is no image, or one comes twice.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    certificates = certify_votes(votes, rule)
    summary = summarize(certificates, votes, radii)
    write_tsv(directory / TSV_NAME, certificates, {vote.index: vote.seconds for vote in votes})
    files = {name: file_digest(directory / name) for name in _DIGESTED if (directory / name).exists()}
    recorded = {
        **settings,
        "certificate": asdict(rule),
        "votes_sha256": votes_digest(votes),
        "scipy": version("scipy"),
        "files": files,
    }
    strict = json.loads(json.dumps(recorded, default=str), parse_constant=str)
    lines = ",\n".join(json.dumps(example, allow_nan=False) for example in example_records(certificates, votes))
    text = (
        f'{{\n"settings": {json.dumps(strict, indent=2)},\n'
        f'"summary": {json.dumps(summary._asdict(), indent=2, allow_nan=False)},\n'
        f'"examples": [\n{lines}\n]'
    ).encode()
    write_atomically(directory / JSON_NAME, text + _seal(text))
    return summary


def example_records(certificates: Sequence[Certificate], votes: Sequence[Votes]) -> list[dict[str, object]]:
    """Return what ``certificates.json`` says of each image: certificate, votes, ``correct`` and ``n_a``.

    Raises:
        DataError: Certificates and votes are not of the same images.
    """
    return [
        {**certificate._asdict(), "correct": certificate.correct, "n_a": vote.n_a, **vote.to_json()}
        for certificate, vote in match_votes(certificates, votes)
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Read ``certificates.json`` without believing it.

    Returns:
        An object with the objects ``settings`` and ``summary`` and the list of objects ``examples``.

    Raises:
        DataError: The file cannot be read, is not strict JSON (a key that comes twice, NaN), has another form or does
            not end in the SHA-256 of what stands before.
    """
    try:
        content = path.read_bytes()
        document = json.loads(content, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    parts = {"settings": dict, "summary": dict, "examples": list, "sha256": str}
    if not isinstance(document, dict) or document.keys() != parts.keys():
        raise DataError(f"{path}: must be an object with {', '.join(parts)}")
    for part, kind in parts.items():
        if not isinstance(document[part], kind):
            raise DataError(f"{path}: {part} must be a {kind.__name__}")
    if not all(isinstance(example, dict) for example in document["examples"]):
        raise DataError(f"{path}: examples must be objects")
    body = content[: content.rfind(_SEAL)]
    if content != body + _seal(body):
        raise DataError(f"{path}: was changed after it was written: its SHA-256 is not that of its content")
    return document


def _seal(body: bytes) -> bytes:
    return _SEAL + b' "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
