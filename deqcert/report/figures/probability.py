"""The distribution of p_A over images, and the certified accuracies that it would give at other budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.report.figures.curve import certified_accuracy_curve
from deqcert.report.figures.style import UNSOUND_STYLE, add_legend, line_looks, new_axes, notice_repeats
from deqcert.report.probability import probability_of_label, projected_certificates, survival
from deqcert.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_probabilities(runs: Sequence[Run]) -> Figure:
    """Draw, over p, the fraction of images whose true class has at least the probability p under noise.

    Args:
        runs: Runs; those whose votes are not known are left out. Rules of audit make no difference here.

    Raises:
        DataError: No run has votes.
    """
    figure, axes = new_axes("p", "fraction of images with $\\hat{p}_{y} \\geq p$")
    at = np.linspace(0.0, 1.0, 1001)
    known = [run for run in runs if run.votes is not None]
    if not known:
        raise DataError("no run has votes to estimate probabilities from")
    looks = [look for _, look in zip(known, line_looks(), strict=False)]
    notice_repeats(looks)
    for run, (colour, style) in zip(known, looks, strict=True):
        probabilities = [probability_of_label(vote) for vote in run.votes or ()]
        axes.plot(at, survival(probabilities, at), color=colour, linestyle=style, label=run.name)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    add_legend(figure, axes, "lower left")
    return figure


def plot_projections(run: Run, budgets: Sequence[tuple[int, float]]) -> Figure:
    """Draw the certified accuracy of a run and its projections to other budgets, which are dashed: no certificates.

    Args:
        run: A run with votes.
        budgets: Pairs of n and alpha.

    Raises:
        DataError: The run has no votes.
        SettingError: A budget is out of range.
    """
    if run.votes is None or run.sigma is None:
        raise DataError(f"{run.name}: has no votes to project from")
    projections = {
        f"projected: n = {_grouped(n)}, α = {alpha:g}": projected_certificates(run.votes, n, alpha)
        for n, alpha in budgets
    }
    largest = max(each.radius for each in (*run.examples, *(p for many in projections.values() for p in many)))
    radii = np.linspace(0.0, 1.03 * largest or 1.0, 1000)
    figure, axes = new_axes("radius r (ℓ2)", "certified accuracy")
    looks = line_looks()
    colour, style = next(looks)
    certified = certified_accuracy_curve(run.examples, radii)
    axes.plot(
        radii,
        certified,
        color=colour,
        linestyle=style if run.sound else UNSOUND_STYLE,
        label=f"{run.labelled_name}, as certified",
    )
    colours = [colour for _, (colour, _) in zip(projections, looks, strict=False)]
    notice_repeats(colours)
    for (name, certificates), colour in zip(projections.items(), colours, strict=True):
        axes.plot(radii, certified_accuracy_curve(certificates, radii), color=colour, linestyle="dashed", label=name)
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 1.0))
    add_legend(figure, axes, "upper right")
    return figure


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\N{THIN SPACE}")
