"""Residual over solver steps, from the cold and from the warm start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deqcert.errors import DataError
from deqcert.report.figures.style import COLOURS, add_legend, new_axes, notice_repeats
from deqcert.runs.tsv import read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def plot_residuals(curves: Mapping[str, ResidualCurves]) -> Figure:
    """Draw residuals over steps, a colour for each name; cold starts are solid, warm ones dash-dotted.

    A residual that is not finite leaves a gap.

    Args:
        curves: By name; at least one. A single name is not shown.

    Raises:
        DataError: There is no curve.
    """
    from matplotlib.ticker import MaxNLocator

    if not curves:
        raise DataError("there are no residuals to draw")
    figure, axes = new_axes("solver steps", "relative residual")
    single = len(curves) == 1
    looks = [look for _, look in zip(curves, cycle(COLOURS), strict=False)]
    notice_repeats(looks)
    for (name, curve), colour in zip(curves.items(), looks, strict=True):
        for kind, residuals, style, marker in (
            ("cold start", curve.cold, "solid", "o"),
            ("warm start", curve.warm, "dashdot", "s"),
        ):
            own = COLOURS[kind == "warm start"] if single else colour
            finite = [residual if math.isfinite(residual) else math.nan for residual in residuals]
            label = kind if single else f"{name}, {kind}"
            steps = range(1, len(finite) + 1)
            axes.plot(steps, finite, color=own, linestyle=style, marker=marker, markersize=2, label=label)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, axes, "upper right")
    return figure
