"""The field's table of certificates, one image per line, as locuslab/smoothing writes it.

Tab-separated columns ``idx label predict radius correct time``: most published certification logs have this form and
the public analysis scripts read it. The form cannot say that a certificate has no proof, so a table with such a
certificate gets a seventh column ``sound`` of 0 and 1; scripts that read columns by name still work. Whether a table
without that column is sound, it does not tell.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any, NamedTuple

from deqcert.errors import DataError, reason
from deqcert.files import write_atomically
from deqcert.statistics import ABSTAIN, Certificate


class TsvRow(NamedTuple):
    """One image of a table: its time is None, and ``sound`` True, where the table does not tell."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int
    prediction: int
    radius: float
    correct: bool
    seconds: float | None
    sound: bool = True


CertifiedImage = Certificate | TsvRow
"""An image of a run, whether its certificate is ours or was read from a table."""


def write_tsv(path: str | Path, certificates: Sequence[CertifiedImage], seconds: Mapping[int, float] | None) -> None:
    """Write certificates as a table, sorted by index, with the time spent on each image unless ``seconds`` is None."""
    write_atomically(path, format_tsv(certificates, seconds).encode())


def format_tsv(certificates: Sequence[CertifiedImage], seconds: Mapping[int, float] | None) -> str:
    """Return the text that :func:`write_tsv` writes."""
    all_sound = all(certificate.sound for certificate in certificates)
    columns = [*_DEMANDED, *([] if seconds is None else ["time"]), *([] if all_sound else ["sound"])]
    lines = ["\t".join(columns)]
    for certificate in sorted(certificates, key=lambda certificate: certificate.index):
        fields = [str(certificate.index), str(certificate.label), str(certificate.prediction)]
        fields += [_rounded_down(certificate.radius), str(int(certificate.correct))]
        if seconds is not None:
            fields.append(_clock(seconds[certificate.index]))
        if not all_sound:
            fields.append(str(int(certificate.sound)))
        lines.append("\t".join(fields))
    return "".join(f"{line}\n" for line in lines)


def read_tsv(path: str | Path) -> list[TsvRow]:
    """Read a table of certificates, ours or a published one, in the order of the file.

    Columns are found by their names; ``time``, in seconds or ``h:mm:ss``, may be missing, and others than those above
    are ignored with a warning. The header may come again, as in shards that were joined.

    Raises:
        DataError: Naming file and line: the file cannot be read or has no image, a column is missing or comes twice, a
            field cannot be read, a row contradicts itself, or an index comes twice.
    """
    lines = read_text(path).split("\n")
    columns = lines[0].split("\t")
    if not set(_DEMANDED) <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(f"{path}, line 1: expected the columns {' '.join(_DEMANDED)}, found {lines[0][:80]!r}")
    if ignored := [column for column in columns if column not in _READERS]:
        warnings.warn(f"{path}, line 1: columns ignored: {', '.join(ignored)}", stacklevel=2)
    rows: dict[int, TsvRow] = {}
    for number, line in enumerate(lines, start=1):
        if line == lines[0] or not line.strip():
            continue
        try:
            row = _parse(line, columns)
            if row.index in rows:
                raise ValueError(f"idx {row.index} comes twice")
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        rows[row.index] = row
    if not rows:
        raise DataError(f"{path}, line 2: expected an image, found none")
    return list(rows.values())


def read_text(path: str | Path) -> str:
    """Read a text file whose lines end in LF, CR LF or CR; a byte-order mark is left out.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error


def _rounded_down(radius: float) -> str:
    """Print the largest number of six decimals that does not exceed the radius: rounding must not certify anything."""
    nearest = f"{radius:.6f}"
    if float(nearest) <= radius:
        return nearest
    return str(Decimal(radius).quantize(Decimal("0.000001"), rounding=ROUND_DOWN))


def _clock(seconds: float) -> str:
    minutes, microseconds = divmod(round(seconds * 1e6), 60_000_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{microseconds // 1_000_000:02}.{microseconds % 1_000_000:06}"


def _parse(line: str, columns: Sequence[str]) -> TsvRow:
    """Return what a line says, or raise ValueError if that is not possible of an image."""
    fields = line.split("\t")
    if len(fields) != len(columns):
        raise ValueError(f"expected {len(columns)} columns, found {len(fields)}")
    found: dict[str, Any] = {"time": None, "sound": True}
    for column, field in zip(columns, fields, strict=True):
        try:
            found[column] = _READERS.get(column, str)(field)
        except (KeyError, ValueError):
            raise ValueError(f"{column} {field[:80]!r} cannot be read") from None
    row = TsvRow(*(found[column] for column in (*_DEMANDED, "time", "sound")))
    if not 0 <= row.radius < math.inf:
        raise ValueError(f"radius {row.radius} is not a finite number >= 0")
    if row.prediction == ABSTAIN and row.radius > 0:
        raise ValueError(f"an abstention (predict {ABSTAIN}) has the radius {row.radius}")
    if row.correct != (row.prediction == row.label):
        raise ValueError(f"correct {int(row.correct)} contradicts label {row.label} and predict {row.prediction}")
    if row.seconds is not None and not 0 <= row.seconds < math.inf:
        raise ValueError(f"time {row.seconds} is not a finite number >= 0")
    return row


def _seconds(field: str) -> float:
    # As str() of a timedelta writes it, in the published scripts too.
    if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", field):
        hours, minutes, seconds = clock.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return float(field)


_FLAGS = {"0": False, "1": True, "False": False, "True": True}
_READERS: dict[str, Callable[[str], Any]] = {
    "idx": int,
    "label": int,
    "predict": int,
    "radius": float,
    "correct": _FLAGS.__getitem__,
    "time": _seconds,
    "sound": _FLAGS.__getitem__,
}
_DEMANDED = ("idx", "label", "predict", "radius", "correct")
