"""What a run costs and what it brings: NFE against ACR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deqcert.errors import DataError
from deqcert.report.figures.style import add_legend, marker_looks, new_axes, notice_repeats
from deqcert.runs import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 3, 5, 7)]


def plot_tradeoff(summaries: Mapping[str, Summary]) -> Figure:
    """Draw each run as a point: evaluations of the cell per noisy sample, audit included, against ACR.

    Points further left and higher are better. Runs without a proof are hollow and named ``(unsound)``.

    Args:
        summaries: Runs by name; those whose cost is not known are left out.

    Raises:
        DataError: No run tells its cost.
    """
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    known = {name: (each.nfe_total, each) for name, each in summaries.items() if each.nfe_total is not None}
    if not known:
        raise DataError("no run tells its evaluations of the cell")
    figure, axes = new_axes("cell evaluations per noisy sample (NFE)", "ACR")
    looks = []
    for (name, (cost, summary)), (colour, marker) in zip(known.items(), marker_looks(), strict=False):
        looks.append((colour, marker, summary.sound))
        axes.plot(
            [cost],
            [summary.average_certified_radius],
            marker,
            color=colour,
            markersize=5,
            linestyle="none",
            fillstyle="full" if summary.sound else "none",
            label=name if summary.sound else f"{name} (unsound)",
        )
    notice_repeats(looks)
    costs, drawn = zip(*known.values(), strict=True)
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0.0, 1.15 * max(summary.average_certified_radius for summary in drawn) or 1.0)
    add_legend(figure, axes, "lower left")
    return figure
