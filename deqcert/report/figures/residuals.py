"""Residual over solver steps, from the cold and from the warm start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deqcert.errors import DataError
from deqcert.runs.tsv import read_text

_COLUMNS = ["step", "cold", "warm", "mismatches", "audited"]


class ResidualCurves(NamedTuple):
    """Mean relative residuals after 1, 2, … solver steps.

    Attributes:
        cold: From the cold start.
        warm: From the fixed point of another noisy sample of the same image.
    """

    cold: Sequence[float]
    warm: Sequence[float]


def read_residuals(path: str | Path) -> ResidualCurves:
    """Read ``convergence.tsv``, which ``validate`` writes.

    Raises:
        DataError: Naming file and line: it cannot be read or is not such a file.
    """
    header, *lines = read_text(path).removesuffix("\n").split("\n")
    if header.split("\t") != _COLUMNS:
        raise DataError(f"{path}, line 1: expected the columns {' '.join(_COLUMNS)}, found {header[:80]!r}")
    cold, warm = [], []
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        try:
            if len(fields) != len(_COLUMNS) or int(fields[0]) != number:
                raise ValueError
            residuals = float(fields[1]), float(fields[2])
        except ValueError:
            raise DataError(f"{path}, line {number + 1}: expected step {number} and its residuals") from None
        if not all(residual >= 0 for residual in residuals):
            raise DataError(f"{path}, line {number + 1}: a residual is negative or nan")
        cold.append(residuals[0])
        warm.append(residuals[1])
    if not cold:
        raise DataError(f"{path}, line 2: expected a step, found none")
    return ResidualCurves(cold, warm)
