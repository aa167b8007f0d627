"""The figures over all images of one or more runs; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.metrics import average_certified_radius, certified_accuracy
from deqcert.report.runs import ReportedRun
from deqcert.report.style import add_legend, look, new_axes
from deqcert.runs import CertifiedImage, Summary
from deqcert.statistics import Votes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_POINTS = 1000  # of a curve


def plot_curves(runs: Mapping[str, Sequence[CertifiedImage]]) -> Figure:
    """Draw certified accuracy over the radius: the figure of every paper on randomized smoothing.

    A run with a certificate that has no proof has even dashes and hollow markers and is called ``(unsound)``. Runs are
    told apart by color, dash and marker (:func:`~deqcert.report.style.look`).

    Args:
        runs: Certificates, or rows of a table, by the name for the legend.

    Raises:
        DataError: A run has no image.
    """
    largest = max((each.radius for examples in runs.values() for each in examples if each.correct), default=0.0)
    radii = np.linspace(0.0, 1.03 * largest or 1.0, _POINTS)
    figure, axes = new_axes("radius r (ℓ2)", "certified accuracy")
    for position, (name, examples) in enumerate(runs.items()):
        sound = all(example.sound for example in examples)
        radius, correct = [example.radius for example in examples], [example.correct for example in examples]
        entry = f"{_marked(name, sound)}, ACR {average_certified_radius(radius, correct):.3f}"
        accuracy = certified_accuracy(radius, correct, radii)
        axes.plot(radii, accuracy, **look(position, sound), markevery=_places(position, len(runs)), label=entry)
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 1.0))
    add_legend(figure, axes, "upper right")
    return figure


def _places(position: int, curves: int) -> tuple[int, int]:
    """Return which points of a curve get a marker: about seven, at other places for each curve."""
    every = _POINTS // 7
    return int(every * (position + 0.5) / curves), every


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
    at = np.linspace(0.0, 1.0, _POINTS + 1)
    for position, (name, votes) in enumerate(runs.items()):
        probabilities = np.array([probability_of_label(vote) for vote in votes])
        fraction = (probabilities[:, None] >= at).mean(axis=0)
        axes.plot(at, fraction, **look(position), markevery=_places(position, len(runs)), label=name)
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
    for position, run in enumerate(others):
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
        style = look(position, run.sound) | {"linestyle": "none", "markersize": 2.8, "alpha": 0.8}
        axes.plot(*drawn.T, **style, label=f"{_marked(run.name, run.sound)}{kept}")
    axes.set(xlim=(-0.03 * largest, 1.05 * largest), ylim=(-0.03 * largest, 1.05 * largest))
    add_legend(figure, axes, "upper left")
    return figure


def plot_tradeoff(summaries: Mapping[str, Summary]) -> Figure:
    """Draw each run as a point with its name: evaluations of the cell per noisy sample, audit included, against ACR.

    Points further left and higher are better; a line is the frontier of the sound runs, the largest ACR at each cost.
    Runs without a proof are hollow and called ``(unsound)``.

    Args:
        summaries: Runs by name; those whose cost is not known are left out. At least one has it.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    known = {_marked(name, each.sound): each for name, each in summaries.items() if each.nfe_total is not None}
    points = {name: (each.nfe_total or 0.0, each.average_certified_radius) for name, each in known.items()}
    low, high = min(cost for cost, _ in points.values()) / 1.5, max(cost for cost, _ in points.values()) * 1.5
    figure, axes = new_axes("cell evaluations per noisy sample (NFE)", "ACR")
    axes.set_xscale("log")
    # A decade has few round numbers, and several decades too many.
    few = MaxNLocator(8, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else few)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(low, high), ylim=(0.0, 1.25 * max(acr for _, acr in points.values()) or 1.0))
    for position, (name, summary) in enumerate(known.items()):
        style = look(position, summary.sound) | {"linestyle": "none", "markersize": 5}
        axes.plot(*([each] for each in points[name]), **style, label=name)
    sound = sorted(
        (points[name] for name, each in known.items() if each.sound), key=lambda point: (point[0], -point[1])
    )
    frontier = [point for i, point in enumerate(sound) if all(point[1] > other for _, other in sound[:i])]
    if frontier:
        axes.step(
            *zip(*frontier, (high, frontier[-1][1]), strict=True), where="post", color="0.6", linewidth=0.8, zorder=1
        )
    _name_points(axes, points)
    return figure


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write a name at each point, where it covers fewest other points and names and stays inside if it can."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()  # settles where everything is
    inside, size = axes.get_window_extent(), 16  # dots that a point takes
    at = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_bounds(x - size / 2, y - size / 2, size, size) for x, y in at]

    def tried(name: str, right: int, up: int) -> tuple[int, Annotation]:
        text = axes.annotate(
            textwrap.fill(name, 26),
            points[name],
            (right, up),
            textcoords="offset points",
            horizontalalignment="left" if right > 0 else "right",
            verticalalignment="bottom" if up > 0 else "top",
            fontsize=6.5,
        )
        box = text.get_window_extent()
        fits = inside.x0 <= box.x0 <= box.x1 <= inside.x1 and inside.y0 <= box.y0 <= box.y1 <= inside.y1
        return box.count_overlaps(taken) + (0 if fits else 2), text

    for name in points:
        choices = [tried(name, right, up) for up in (4, -4, 12, -12, 20, -20) for right in (4, -4)]
        _, best = min(choices, key=lambda choice: choice[0])
        taken.append(best.get_window_extent())
        for _, text in choices:
            if text is not best:
                text.remove()


def _marked(name: str, sound: bool) -> str:
    return name if sound else f"{name} (unsound)"
