"""Certified accuracy over the radius: the figure of every paper on randomized smoothing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deqcert.errors import DataError, require
from deqcert.files import write_atomically
from deqcert.report.summary import CertifiedExample, average_certified_radius, certified_accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color universal design", 2008, without the yellow that no projector shows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SOUND_STYLES = ("solid", "dashdot", "dotted")  # 3 and 7 have no common factor: 21 runs differ
UNSOUND_STYLE = "dashed"


def certified_accuracy_curve(
    examples: Sequence[CertifiedExample], radii: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the certified accuracy at each radius.

    Args:
        examples: Certificates, or rows of a table.
        radii: ``(R,)`` radii.

    Returns:
        ``(R,)`` fractions of all images, in [0, 1].

    Raises:
        DataError: There is no image.
    """
    radius = [example.radius for example in examples]
    return certified_accuracy(radius, [example.correct for example in examples], radii)


def plot_curves(runs: Mapping[str, Sequence[CertifiedExample]]) -> Figure:
    """Draw the curves of several runs into one figure.

    A run with a certificate that has no proof is dashed and labelled ``(unsound)``; no other run is dashed.
    The figure has a canvas of its own and leaves the state of pyplot alone.

    Args:
        runs: Certificates, or rows of a table, by the name for the legend.

    Returns:
        The figure, 6 by 4 inches.

    Raises:
        DataError: There is no run, or a run has no image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not runs:
        raise DataError("there is no run to report on")
    largest = max(
        (example.radius for examples in runs.values() for example in examples if example.correct), default=0.0
    )
    radii = np.linspace(0.0, 1.03 * largest or 1.0, 1000)

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    looks = zip(cycle(COLOURS), cycle(SOUND_STYLES))
    for (name, examples), (colour, style) in zip(runs.items(), looks, strict=False):
        sound = all(example.sound for example in examples)
        acr = average_certified_radius([e.radius for e in examples], [e.correct for e in examples])
        axes.plot(
            radii,
            certified_accuracy_curve(examples, radii),
            color=colour,
            linestyle=style if sound else UNSOUND_STYLE,
            label=f"{name}{'' if sound else ' (unsound)'}, ACR {acr:.3f}",
        )
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 1.0), xlabel="radius r (ℓ2)", ylabel="certified accuracy")
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False, fontsize="small")
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix of the name chooses the form (``.png``, ``.pdf``, ``.svg``, …).

    The file is replaced in one step.

    Args:
        figure: What :func:`plot_curves` returned.
        path: File to write.

    Raises:
        SettingError: The suffix is of no known form.
    """
    form = Path(path).suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    require(form in known, "path", str(path), f"must end in one of {', '.join(sorted(known))}")
    image = io.BytesIO()
    figure.savefig(image, format=form, dpi=150)
    write_atomically(path, image.getvalue())
