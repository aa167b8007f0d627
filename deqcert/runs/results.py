"""The results of a finished run: ``certificates.tsv`` and ``certificates.json``, which has everything in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from deqcert.files import file_digest, write_atomically
from deqcert.runs.lines import votes_digest
from deqcert.runs.summary import Summary, match_votes, summarize
from deqcert.runs.tsv import write_tsv
from deqcert.statistics import Certificate, CertificationRule, Votes

JSON_NAME, TSV_NAME = "certificates.json", "certificates.tsv"


def write_results(
    directory: Path,
    votes: Sequence[Votes],
    rule: CertificationRule,
    settings: Mapping[str, object],
    *,
    radii: Sequence[float],
) -> Summary:
    """Certify votes, write ``certificates.tsv`` and ``certificates.json`` beside their ledger, and return the summary.

    Args:
        votes: Votes of all images.
        rule: How they become certificates.
        settings: Identity of the run, and what else to record of it. What JSON has no form for is written as text.
        radii: Where the summary gives certified accuracy.

    Raises:
        DataError: There is no image, or one comes twice.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    certificates = [rule.certify(vote) for vote in votes]
    summary = summarize(certificates, votes, radii)
    write_tsv(directory / TSV_NAME, certificates, {vote.index: vote.seconds for vote in votes})
    others = [directory / name for name in (TSV_NAME, "certify.yaml", "curve.png")]
    recorded = {
        **settings,
        "certificate": asdict(rule),
        "votes_sha256": votes_digest(votes),
        "scipy": version("scipy"),
        "files": {path.name: file_digest(path) for path in others if path.exists()},
    }
    strict = json.loads(json.dumps(recorded, default=str), parse_constant=str)
    lines = ",\n".join(json.dumps(example, allow_nan=False) for example in example_records(certificates, votes))
    text = (
        f'{{\n"settings": {json.dumps(strict, indent=2)},\n'
        f'"summary": {json.dumps(summary._asdict(), indent=2, allow_nan=False)},\n'
        f'"examples": [\n{lines}\n]'
    ).encode()
    write_atomically(directory / JSON_NAME, sealed(text))
    return summary


def example_records(certificates: Sequence[Certificate], votes: Sequence[Votes]) -> list[dict[str, object]]:
    """Return what ``certificates.json`` says: certificate, votes, ``correct`` and ``n_a``; p_B only with two sides."""
    records: list[dict[str, object]] = [
        {**certificate._asdict(), "correct": certificate.correct, "n_a": vote.n_a, **vote.to_json()}
        for certificate, vote in match_votes(certificates, votes)
    ]
    return [{key: value for key, value in each.items() if (key, value) != ("p_b_upper", None)} for each in records]


def sealed(body: bytes) -> bytes:
    """Return a JSON object, given without its last brace, with the SHA-256 of what was given as its last field."""
    return body + f',\n"sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()
