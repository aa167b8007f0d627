"""Radius retention: how much of the radius of one run another run keeps, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.report.figures.style import SETTINGS, add_legend, marker_looks, new_axes, notice_repeats
from deqcert.report.runs import ReportedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAXIMUM_POINTS = 1000  # more hide each other


def plot_retention(reference: ReportedRun, others: Sequence[ReportedRun]) -> Figure:
    """Draw the radius of each image over its radius in a reference run.

    Points on the diagonal keep all of it. An image without a certificate has the radius 0; images that neither run
    certifies are left out. A class other than the reference's counts as no certificate. The legend says how much of the
    sum of the reference's radii is kept on the images that it certifies. Of more than 1000 images a random sample of
    1000 is drawn, always the same one, and the title says so; the legend is about all images.

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
    expected = reference.by_index
    indices = sorted(expected)
    drawn = np.ones(len(indices), dtype=np.bool_)
    if len(indices) > _MAXIMUM_POINTS:
        drawn[np.random.default_rng(0).permutation(len(indices))[_MAXIMUM_POINTS:]] = False
        axes.set_title(f"a random sample of {_MAXIMUM_POINTS} of {len(indices)} images", fontsize=SETTINGS["font.size"])
    looks = [(*look, run.sound) for run, look in zip(others, marker_looks(), strict=False)]
    notice_repeats(looks)
    for run, (colour, marker, _) in zip(others, looks, strict=True):
        if run.images != reference.images:
            raise DataError(f"{run.name} and {reference.name} are not of the same images with the same labels")
        found = run.by_index
        pairs = np.array(
            [
                (one.radius, other.radius if other.prediction == one.prediction else 0.0)
                for one, other in ((expected[index], found[index]) for index in indices)
            ]
        )
        certified = pairs[pairs[:, 0] > 0]
        # Of the sum: a mean of quotients would be that of the smallest radii.
        kept = f": {100 * certified[:, 1].sum() / certified[:, 0].sum():.0f} % kept" if len(certified) else ""
        shown = pairs[drawn & (pairs > 0).any(axis=1)]
        axes.plot(
            shown[:, 0],
            shown[:, 1],
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
