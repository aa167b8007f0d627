"""The figures over all images of one or more runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.metrics import average_certified_radius, certified_accuracy
from deqcert.report.figures.residuals import ResidualCurves
from deqcert.report.figures.style import (
    COLOURS,
    UNSOUND_STYLE,
    add_legend,
    line_looks,
    marker_looks,
    new_axes,
)
from deqcert.report.runs import ReportedRun
from deqcert.runs import CertifiedImage, Summary
from deqcert.statistics import Votes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 3, 5, 7)]


def plot_curves(runs: Mapping[str, Sequence[CertifiedImage]]) -> Figure:
    """Draw certified accuracy over the radius: the figure of every paper on randomized smoothing.

    A run with a certificate that has no proof is dashed and labelled ``(unsound)``; no other run is dashed. Beyond 21
    sound or 7 unsound runs some look alike.

    Args:
        runs: Certificates, or rows of a table, by the name for the legend.

    Raises:
        DataError: There is no run, or a run has no image.
    """
    if not runs:
        raise DataError("there is no run to report on")
    largest = max((each.radius for examples in runs.values() for each in examples if each.correct), default=0.0)
    radii = np.linspace(0.0, 1.03 * largest or 1.0, 1000)
    figure, axes = new_axes("radius r (ℓ2)", "certified accuracy")
    for (name, examples), (colour, style) in zip(runs.items(), line_looks(), strict=False):
        sound = all(example.sound for example in examples)
        radius, correct = [example.radius for example in examples], [example.correct for example in examples]
        label = f"{name}{'' if sound else ' (unsound)'}, ACR {average_certified_radius(radius, correct):.3f}"
        accuracy = certified_accuracy(radius, correct, radii)
        axes.plot(radii, accuracy, color=colour, linestyle=style if sound else UNSOUND_STYLE, label=label)
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 1.0))
    add_legend(figure, axes, "upper right")
    return figure


def probability_of_label(votes: Votes) -> float:
    """Estimate the probability of the true class under noise.

    Without an audit this is the fraction of noisy samples of that class. Cheap predictions of the selected class count
    only as far as the audit confirmed them: N_A / n · (1 − m / K). An estimate, not a bound; slightly biased if votes
    decided where sampling stopped.
    """
    fraction = votes.estimation[votes.label] / votes.n
    if votes.audited and votes.label == votes.selected:
        fraction *= 1 - votes.mismatches / votes.audited
    return fraction


def plot_probabilities(runs: Sequence[ReportedRun]) -> Figure:
    """Draw, over p, the fraction of images whose true class has at least the probability p under noise.

    It depends on neither n nor alpha; Sun et al., "Average certified radius is a poor metric for randomized smoothing"
    (arXiv 2410.06895), recommend it instead of ACR.

    Args:
        runs: Runs; those whose votes are not known are left out. Audit rules make no difference here.

    Raises:
        DataError: No run has votes.
    """
    figure, axes = new_axes("p", "fraction of images with $\\hat{p}_{y} \\geq p$")
    at = np.linspace(0.0, 1.0, 1001)
    known = [run for run in runs if run.votes is not None]
    if not known:
        raise DataError("no run has votes to estimate probabilities from")
    for run, (colour, style) in zip(known, line_looks(), strict=False):
        probabilities = np.array([probability_of_label(vote) for vote in run.votes or ()])
        axes.plot(at, (probabilities[:, None] >= at).mean(axis=0), color=colour, linestyle=style, label=run.name)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    add_legend(figure, axes, "lower left")
    return figure


def plot_retention(reference: ReportedRun, others: Sequence[ReportedRun]) -> Figure:
    """Draw the radius of each image over its radius in a reference run.

    Points on the diagonal keep all of it. An image without a certificate has the radius 0; images that neither run
    certifies are left out. A class other than the reference's counts as no certificate. The legend says how much of the
    sum of the reference's radii is kept on the images that it certifies.

    Args:
        reference: The run to compare with, e.g. standard smoothing.
        others: Runs on the same images, e.g. serialized smoothing; at least one.

    Raises:
        DataError: There is no other run, or the images or their labels differ.
    """
    if not others:
        raise DataError("radius retention needs a second run")
    figure, axes = new_axes(f"radius of {reference.labelled_name}", "radius of the other run")
    largest = max(example.radius for run in (reference, *others) for example in run.examples) or 1.0
    axes.plot([0, largest], [0, largest], color="0.6", linewidth=0.8, zorder=1)
    for run, (colour, marker) in zip(others, marker_looks(), strict=False):
        if run.images != reference.images:
            raise DataError(f"{run.name} and {reference.name} are not of the same images with the same labels")
        pairs = np.array(
            [
                (one.radius, other.radius if other.prediction == one.prediction else 0.0)
                for one, other in zip(reference.examples, run.examples, strict=True)
            ]
        )
        certified = pairs[pairs[:, 0] > 0]
        # Of the sum: a mean of quotients would be that of the smallest radii.
        kept = f": {100 * certified[:, 1].sum() / certified[:, 0].sum():.0f} % kept" if len(certified) else ""
        axes.plot(
            *pairs[(pairs > 0).any(axis=1)].T,
            marker,
            color=colour,
            markersize=2.8,
            alpha=0.8,
            markeredgewidth=0.6,
            fillstyle="full" if run.sound else "none",
            label=f"{run.labelled_name}{kept}",
        )
    axes.set(xlim=(-0.03 * largest, 1.05 * largest), ylim=(-0.03 * largest, 1.05 * largest))
    add_legend(figure, axes, "upper left")
    return figure


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
    for (name, (cost, summary)), (colour, marker) in zip(known.items(), marker_looks(), strict=False):
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
    costs, drawn = zip(*known.values(), strict=True)
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0.0, 1.15 * max(summary.average_certified_radius for summary in drawn) or 1.0)
    add_legend(figure, axes, "lower left")
    return figure


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
    for (name, curve), colour in zip(curves.items(), cycle(COLOURS), strict=False):
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
