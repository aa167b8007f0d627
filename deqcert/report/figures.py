"""The figures over all images of one or more runs; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.metrics import average_certified_radius, certified_accuracy
from deqcert.report.runs import ReportedRun
from deqcert.report.style import COLORS, MARKERS, SOUND_STYLES, UNSOUND_STYLE, add_legend, new_axes
from deqcert.runs import CertifiedImage, Summary
from deqcert.statistics import Votes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 3, 5, 7)]


def plot_curves(runs: Mapping[str, Sequence[CertifiedImage]]) -> Figure:
    """Draw certified accuracy over the radius: the figure of every paper on randomized smoothing.

    A run with a certificate that has no proof is dashed and called ``(unsound)``; no other run is dashed. Beyond 21
    sound or 7 unsound runs some look alike.

    Args:
        runs: Certificates, or rows of a table, by the name for the legend.

    Raises:
        DataError: A run has no image.
    """
    largest = max((each.radius for examples in runs.values() for each in examples if each.correct), default=0.0)
    radii = np.linspace(0.0, 1.03 * largest or 1.0, 1000)
    figure, axes = new_axes("radius r (ℓ2)", "certified accuracy")
    for (name, examples), color, style in zip(runs.items(), cycle(COLORS), cycle(SOUND_STYLES), strict=False):
        sound = all(example.sound for example in examples)
        radius, correct = [example.radius for example in examples], [example.correct for example in examples]
        entry = f"{_marked(name, sound)}, ACR {average_certified_radius(radius, correct):.3f}"
        accuracy = certified_accuracy(radius, correct, radii)
        axes.plot(radii, accuracy, color=color, linestyle=style if sound else UNSOUND_STYLE, label=entry)
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 1.0))
    add_legend(figure, axes, "upper right")
    return figure


def probability_of_label(votes: Votes) -> float:
    """Estimate the probability of the true class under noise.

    Without an audit this is the fraction of noisy samples of that class. SRS predictions of the selected class count
    only as far as the audit confirmed them: N_A / n · (1 − m / K). An estimate, not a bound; slightly biased if votes
    decided where sampling stopped.
    """
    fraction = votes.estimation[votes.label] / votes.n
    if votes.audited and votes.label == votes.selected:
        fraction *= 1 - votes.mismatches / votes.audited
    return fraction


def plot_probabilities(runs: Mapping[str, Sequence[Votes]]) -> Figure:
    """Draw, over p, the fraction of images whose true class has at least the probability p under noise.

    It depends on neither n nor alpha; Sun et al., "Average certified radius is a poor metric for randomized smoothing"
    (arXiv 2410.06895), recommend it instead of ACR.

    Args:
        runs: Votes by the name for the legend. Audit rules make no difference here.
    """
    figure, axes = new_axes("p", "fraction of images with $\\hat{p}_{y} \\geq p$")
    at = np.linspace(0.0, 1.0, 1001)
    for (name, votes), color, style in zip(runs.items(), cycle(COLORS), cycle(SOUND_STYLES), strict=False):
        probabilities = np.array([probability_of_label(vote) for vote in votes])
        axes.plot(at, (probabilities[:, None] >= at).mean(axis=0), color=color, linestyle=style, label=name)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    add_legend(figure, axes, "lower left")
    return figure


def plot_retention(reference: ReportedRun, others: Sequence[ReportedRun]) -> Figure:
    """Draw the radius of each image over its radius in a reference run, e.g. serialized over standard smoothing.

    Points on the diagonal keep all of it. An image without a certificate has the radius 0; images that neither run
    certifies are left out. A class other than the reference's counts as no certificate. The legend says how much of the
    sum of the reference's radii is kept on the images that it certifies.

    Raises:
        DataError: The images or their labels differ.
    """
    figure, axes = new_axes(f"radius of {_marked(reference.name, reference.sound)}", "radius of the other run")
    largest = max(example.radius for run in (reference, *others) for example in run.examples) or 1.0
    axes.plot([0, largest], [0, largest], color="0.6", linewidth=0.8, zorder=1)
    for run, color, marker in zip(others, cycle(COLORS), cycle(MARKERS), strict=False):
        if run.images != reference.images:
            raise DataError(f"{run.name} and {reference.name} are not of the same images with the same labels")
        pairs = np.array(
            [
                (one.radius, other.radius if other.prediction == one.prediction else 0.0)
                for one, other in zip(reference.examples, run.examples, strict=True)
            ]
        )
        drawn, certified = pairs[(pairs > 0).any(axis=1)], pairs[pairs[:, 0] > 0]
        # Of the sum: a mean of quotients would be that of the smallest radii.
        kept = f": {100 * certified[:, 1].sum() / certified[:, 0].sum():.0f} % kept" if len(certified) else ""
        axes.plot(
            *drawn.T,
            marker,
            color=color,
            markersize=2.8,
            markeredgewidth=0.6,
            alpha=0.8,
            fillstyle="full" if run.sound else "none",
            label=f"{_marked(run.name, run.sound)}{kept}",
        )
    axes.set(xlim=(-0.03 * largest, 1.05 * largest), ylim=(-0.03 * largest, 1.05 * largest))
    add_legend(figure, axes, "upper left")
    return figure


def plot_tradeoff(summaries: Mapping[str, Summary]) -> Figure:
    """Draw each run as a point: evaluations of the cell per noisy sample, audit included, against ACR.

    Points further left and higher are better. Runs without a proof are hollow and called ``(unsound)``.

    Args:
        summaries: Runs by name; those whose cost is not known are left out. At least one has it.
    """
    known = {name: each for name, each in summaries.items() if each.nfe_total is not None}
    costs = [each.nfe_total or 0.0 for each in known.values()]
    figure, axes = new_axes("cell evaluations per noisy sample (NFE)", "ACR")
    looks = zip(cycle(COLORS), cycle(MARKERS), strict=False)
    for (name, summary), cost, (color, marker) in zip(known.items(), costs, looks, strict=False):
        fill = "full" if summary.sound else "none"
        place = [cost], [summary.average_certified_radius]
        axes.plot(*place, marker, color=color, markersize=5, fillstyle=fill, label=_marked(name, summary.sound))
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, labels=map(str, _TICKS))
    axes.minorticks_off()
    largest = max(each.average_certified_radius for each in known.values())
    axes.set(xlim=(min(costs) / 1.3, max(costs) * 1.3), ylim=(0.0, 1.15 * largest or 1.0))
    add_legend(figure, axes, "lower left")
    return figure


def _marked(name: str, sound: bool) -> str:
    return name if sound else f"{name} (unsound)"
