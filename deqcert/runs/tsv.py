"""The field's table of certificates, one image per line, as locuslab/smoothing writes it.

Tab-separated columns ``idx label predict radius correct time``: most published certification logs have this
form and the public analysis scripts read it. The form cannot say that a certificate has no proof, so a table
with such a certificate gets a seventh column ``sound`` of 0 and 1; scripts that read columns by name still
work. Whether a table without that column is sound, it does not tell.
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

TIME_COLUMN, SOUND_COLUMN = "time", "sound"

_DEMANDED = ("idx", "label", "predict", "radius", "correct")

_LONGEST = 80
"""Characters of a field or header that an error shows."""


class TsvRow(NamedTuple):
    """One image of a table.

    Attributes:
        index: Position of the image in its data set.
        label: True class.
        prediction: Class of the smoothed classifier, or −1 for an abstention.
        radius: Certified ℓ2 radius.
        correct: Whether the prediction is the label.
        seconds: Time spent on the image; None if the table does not tell.
        sound: False only where the table says so.
    """

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
    """Write certificates as a table, sorted by index.

    The printed radius is the largest number of six decimals that, read back, does not exceed the certified
    one: rounding must not certify anything. The file is replaced in one step.

    Args:
        path: File to write.
        certificates: One for each image, or rows of a table.
        seconds: Time spent on each image, by index; None leaves out the column.

    Raises:
        DataError: Two certificates have one index, or an index has no time.
    """
    write_atomically(path, format_tsv(certificates, seconds).encode())


def format_tsv(certificates: Sequence[CertifiedImage], seconds: Mapping[int, float] | None) -> str:
    """Return the text that :func:`write_tsv` writes.

    Raises:
        DataError: Two certificates have one index, or an index has no time.
    """
    ordered = sorted(certificates, key=lambda certificate: certificate.index)
    indices = [certificate.index for certificate in ordered]
    if len(set(indices)) < len(indices):
        raise DataError("two certificates have one index")
    if missing := [index for index in indices if seconds is not None and index not in seconds]:
        raise DataError(f"no time is known for image {missing[0]}")

    all_sound = all(certificate.sound for certificate in ordered)
    columns = [*_DEMANDED, *([] if seconds is None else [TIME_COLUMN]), *([] if all_sound else [SOUND_COLUMN])]
    lines = ["\t".join(columns)]
    for certificate in ordered:
        fields = [
            str(certificate.index),
            str(certificate.label),
            str(certificate.prediction),
            _rounded_down(certificate.radius),
            str(int(certificate.correct)),
        ]
        if seconds is not None:
            fields.append(_clock(seconds[certificate.index]))
        if not all_sound:
            fields.append(str(int(certificate.sound)))
        lines.append("\t".join(fields))
    return "".join(f"{line}\n" for line in lines)


def read_tsv(path: str | Path) -> list[TsvRow]:
    """Read a table of certificates, ours or a published one.

    Columns are found by their names; others than those above are ignored with a warning. Whole numbers may be written
    as ``3.0``, ``correct`` as True and False. The header may come again, as in shards that were joined. A last line
    that was torn off (no line end, not readable) or has no index (a summary) is left out with a warning.

    Args:
        path: File with the columns above; ``time``, in seconds or ``h:mm:ss``, may be missing.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        DataError: Naming file and line: the file cannot be read or holds no image, a column is missing or comes twice,
            a field cannot be read, a radius is negative or not finite or belongs to an abstention, ``correct``
            contradicts ``label`` and ``predict``, or an index comes twice.
    """
    text = read_text(path)
    header, *lines = text.removesuffix("\n").split("\n")
    columns = header.split("\t")
    if not set(_DEMANDED) <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(f"{path}, line 1: expected the columns {' '.join(_DEMANDED)}, found {header[:_LONGEST]!r}")
    if ignored := [column for column in columns if column not in _READERS]:
        warnings.warn(f"{path}, line 1: columns ignored: {', '.join(ignored)}", stacklevel=2)

    rows: dict[int, TsvRow] = {}
    for number, line in enumerate(lines, start=2):
        if line == header:
            continue
        try:
            row = _parse(line, columns)
        except ValueError as error:
            cause = "torn off" if not text.endswith("\n") else "" if _has_index(line, columns) else "not an image"
            if number == len(lines) + 1 and cause:
                warnings.warn(f"{path}, line {number}: left out, {cause}: {error}", stacklevel=2)
                break
            raise DataError(f"{path}, line {number}: {error}") from error
        if complaint := _complaint(row):
            raise DataError(f"{path}, line {number}: {complaint}")
        if row.index in rows:
            raise DataError(f"{path}, line {number}: idx {row.index} comes twice")
        rows[row.index] = row
    if not rows:
        raise DataError(f"{path}, line 2: expected an image, found none")
    return list(rows.values())


def read_text(path: str | Path) -> str:
    """Read a text file whose lines end in LF, CR LF or CR, without a byte-order mark and blank lines at the end.

    Raises:
        DataError: It cannot be read, or is not UTF-8, naming the line.
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: cannot be read: not UTF-8 text") from error
    return re.sub(r"(?:\n[ \t]*)+\Z", "\n", text.replace("\r\n", "\n").replace("\r", "\n"))


def _rounded_down(radius: float) -> str:
    nearest = f"{radius:.6f}"
    if float(nearest) <= radius:
        return nearest
    return str(Decimal(radius).quantize(Decimal("0.000001"), rounding=ROUND_DOWN))


def _clock(seconds: float) -> str:
    minutes, microseconds = divmod(round(seconds * 1e6), 60_000_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{microseconds // 1_000_000:02}.{microseconds % 1_000_000:06}"


def _parse(line: str, columns: Sequence[str]) -> TsvRow:
    """Return what ``line`` says, or raise ValueError if it does not have the form of a row."""
    fields = line.split("\t")
    if len(fields) != len(columns):
        raise ValueError(f"expected {len(columns)} columns, found {len(fields)}")
    found = {column: _read(column, field) for column, field in zip(columns, fields, strict=True) if column in _READERS}
    demanded = [found[column] for column in _DEMANDED]
    return TsvRow._make([*demanded, found.get(TIME_COLUMN), found.get(SOUND_COLUMN, True)])


def _has_index(line: str, columns: Sequence[str]) -> bool:
    try:
        _whole(line.split("\t")[columns.index("idx")])
    except (IndexError, ValueError):
        return False
    return True


def _read(column: str, field: str) -> Any:
    try:
        return _READERS[column](field)
    except ValueError:
        raise ValueError(f"{column} {field[:_LONGEST]!r} cannot be read") from None


def _complaint(row: TsvRow) -> str:
    """Say what is impossible about a row; empty if nothing is."""
    if not 0 <= row.radius < math.inf:
        return f"radius {row.radius} is not a finite number >= 0"
    if row.prediction == ABSTAIN and row.radius > 0:
        return f"an abstention (predict {ABSTAIN}) has the radius {row.radius}"
    if row.correct != (row.prediction == row.label):
        return f"correct {int(row.correct)} contradicts label {row.label} and predict {row.prediction}"
    if row.seconds is not None and not 0 <= row.seconds < math.inf:
        return f"time {row.seconds} is not a finite number >= 0"
    return ""


def _whole(field: str) -> int:
    # As tables of numbers write it that pandas has read with a gap.
    return int(re.sub(r"\.0*\Z", "", field))


def _flag(field: str) -> bool:
    if field in ("True", "False"):
        return field == "True"
    number = _whole(field)
    if number not in (0, 1):
        raise ValueError(field)
    return bool(number)


def _seconds(field: str) -> float:
    # As str() of a timedelta writes it, in the published scripts too.
    if clock := re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d*)?)", field):
        days, hours, minutes, seconds = clock.groups()
        return (int(days or 0) * 24 + int(hours)) * 3600 + int(minutes) * 60 + float(seconds)
    return float(field)


_READERS: dict[str, Callable[[str], Any]] = {
    "idx": _whole,
    "label": _whole,
    "predict": _whole,
    "radius": float,
    "correct": _flag,
    TIME_COLUMN: _seconds,
    SOUND_COLUMN: _flag,
}
