"""Certified accuracy over the radius: the figure of every paper on randomized smoothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.metrics import average_certified_radius, certified_accuracy
from deqcert.report.figures.style import UNSOUND_STYLE, add_legend, line_looks, new_axes, notice_repeats
from deqcert.runs import CertifiedImage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(runs: Mapping[str, Sequence[CertifiedImage]]) -> Figure:
    """Draw the curves of several runs into one figure.

    A run with a certificate that has no proof is dashed and labelled ``(unsound)``; no other run is dashed. Warns where
    there are so many runs, more than 21 sound or 7 unsound ones, that some look alike.

    Args:
        runs: Certificates, or rows of a table, by the name for the legend.

    Returns:
        The figure.

    Raises:
        DataError: There is no run, or a run has no image.
    """
    if not runs:
        raise DataError("there is no run to report on")
    largest = max(
        (example.radius for examples in runs.values() for example in examples if example.correct), default=0.0
    )
    radii = np.linspace(0.0, 1.03 * largest or 1.0, 1000)
    figure, axes = new_axes("radius r (ℓ2)", "certified accuracy")
    looks = []
    for (name, examples), (colour, style) in zip(runs.items(), line_looks(), strict=False):
        sound = all(example.sound for example in examples)
        looks.append((colour, style if sound else UNSOUND_STYLE))
        radius, correct = [example.radius for example in examples], [example.correct for example in examples]
        acr = average_certified_radius(radius, correct)
        axes.plot(
            radii,
            certified_accuracy(radius, correct, radii),
            color=colour,
            linestyle=looks[-1][1],
            label=f"{name}{'' if sound else ' (unsound)'}, ACR {acr:.3f}",
        )
    notice_repeats(looks)
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 1.0))
    add_legend(figure, axes, "upper right")
    return figure
