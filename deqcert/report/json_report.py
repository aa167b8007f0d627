"""``certificates.json``: everything about a run in one file, for programs and for the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from deqcert.report.files import write_atomically
from deqcert.report.summary import match_votes, summarize
from deqcert.statistics import Certificate, Votes


def write_json(
    path: str | Path,
    certificates: Sequence[Certificate],
    votes: Sequence[Votes],
    settings: Mapping[str, object],
    *,
    radii: Sequence[float],
) -> None:
    """Write ``{"settings": …, "summary": …, "examples": […]}`` as strict JSON, one image per line.

    An example has every field of its certificate and of its votes, and ``correct`` and ``n_a``. What is not
    a number (a residual that diverged) is null. The file is replaced in one step.

    Args:
        path: File to write.
        certificates: One for each image.
        votes: What they were derived from, in any order.
        settings: Every setting, the digest of the weights, the versions. What JSON has no form for is written
            as text, infinities and NaN included.
        radii: Where the summary gives certified accuracy.

    Raises:
        DataError: There is no image, or certificates and votes are not of the same images.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    strict_settings = json.loads(json.dumps(settings, default=str), parse_constant=str)
    summary = summarize(certificates, votes, radii)._asdict()
    examples = [
        {**certificate._asdict(), "correct": certificate.correct, "n_a": vote.n_a, **vote.to_json()}
        for certificate, vote in match_votes(certificates, votes)
    ]
    text = (
        f'{{\n"settings": {json.dumps(strict_settings, indent=2)},\n'
        f'"summary": {json.dumps(summary, indent=2, allow_nan=False)},\n'
        f'"examples": [\n{_lines(examples)}\n]\n}}\n'
    )
    write_atomically(path, text.encode())


def _lines(examples: Sequence[Mapping[str, object]]) -> str:
    return ",\n".join(json.dumps(example, allow_nan=False) for example in examples)
