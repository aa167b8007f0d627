"""``certificates.json``: everything about a run in one file, for programs and for the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deqcert.errors import DataError, reason
from deqcert.files import write_atomically
from deqcert.report.summary import match_votes, summarize
from deqcert.statistics import Certificate, Votes

_SEAL = b',\n"sha256":'


def write_json(
    path: str | Path,
    certificates: Sequence[Certificate],
    votes: Sequence[Votes],
    settings: Mapping[str, object],
    *,
    radii: Sequence[float],
) -> None:
    """Write ``{"settings": …, "summary": …, "examples": […], "sha256": …}`` as strict JSON, one image per line.

    An example has every field of its certificate and of its votes, and ``correct`` and ``n_a``. What is not
    a number (a residual that diverged) is null. The last line is the SHA-256 of all bytes before it. The file is
    replaced in one step.

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
    examples = report_examples(certificates, votes)
    summary = summarize(certificates, votes, radii)._asdict()
    text = (
        f'{{\n"settings": {json.dumps(strict_settings, indent=2)},\n'
        f'"summary": {json.dumps(summary, indent=2, allow_nan=False)},\n'
        f'"examples": [\n{_lines(examples)}\n]'
    ).encode()
    write_atomically(path, text + _seal(text))


def report_examples(certificates: Sequence[Certificate], votes: Sequence[Votes]) -> list[dict[str, object]]:
    """Return what the report says of each image: every field of certificate and votes, ``correct`` and ``n_a``.

    Raises:
        DataError: Certificates and votes are not of the same images.
    """
    return [
        {**certificate._asdict(), "correct": certificate.correct, "n_a": vote.n_a, **vote.to_json()}
        for certificate, vote in match_votes(certificates, votes)
    ]


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a report without believing it.

    Returns:
        An object with the objects ``settings`` and ``summary`` and the list of objects ``examples``.

    Raises:
        DataError: The file cannot be read, is no strict JSON (a key that comes twice, NaN), has another form or is
            not as it was written.
    """
    try:
        content = Path(path).read_bytes()
        report = json.loads(content, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    parts = {"settings": dict, "summary": dict, "examples": list, "sha256": str}
    if not isinstance(report, dict) or report.keys() != parts.keys():
        raise DataError(f"{path}: must be an object with {', '.join(parts)}")
    for part, kind in parts.items():
        if not isinstance(report[part], kind):
            raise DataError(f"{path}: {part} must be a {kind.__name__}")
    if not all(isinstance(example, dict) for example in report["examples"]):
        raise DataError(f"{path}: examples must be objects")
    body = content[: content.rfind(_SEAL)]
    if content != body + _seal(body):
        raise DataError(f"{path}: was changed after it was written: its SHA-256 is not that of its content")
    return report


def _seal(body: bytes) -> bytes:
    return _SEAL + b' "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _lines(examples: Sequence[Mapping[str, object]]) -> str:
    return ",\n".join(json.dumps(example, allow_nan=False) for example in examples)
