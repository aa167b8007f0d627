"""The results of a finished run: ``certificates.tsv`` and ``certificates.json``, which has everything in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from deqcert.files import file_digest, write_atomically
from deqcert.runs.lines import votes_digest
from deqcert.runs.summary import Summary, match_votes, summarize
from deqcert.runs.tsv import write_tsv
from deqcert.statistics import Certificate, CertificationRule, MarginRule, Record, Votes

_BOUNDS = ("p_a_lower", "p_b_upper")
JSON_NAME, TSV_NAME = "certificates.json", "certificates.tsv"


def write_results(
    directory: Path,
    votes: Sequence[Record],
    rule: CertificationRule | MarginRule,
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
    certificates = certify_all(rule, votes)
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


def example_records(certificates: Sequence[Certificate], votes: Sequence[Record]) -> list[dict[str, object]]:
    """Return what ``certificates.json`` says: certificate, votes, ``correct`` and ``n_a``; bounds that there are.

    Predictions of single samples stand in the ledger only.
    """
    records: list[dict[str, object]] = []
    for certificate, vote in match_votes(certificates, votes):
        counted = {"n_a": vote.n_a} if isinstance(vote, Votes) else {}
        known = {key: value for key, value in certificate._asdict().items() if key not in _BOUNDS or value is not None}
        measured = {key: value for key, value in vote.to_json().items() if key != "predictions"}
        records.append({**known, "correct": certificate.correct, **counted, **measured})
    return records


def certify_all(rule: CertificationRule | MarginRule, votes: Iterable[Record]) -> list[Certificate]:
    """Return the certificates of measurements of the kind that the rule is for."""
    return [rule.certify(vote) for vote in votes]  # type: ignore[arg-type]  # a run has one kind


def sealed(body: bytes) -> bytes:
    """Return a JSON object, given without its last brace, with the SHA-256 of what was given as its last field."""
    return body + f',\n"sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()
