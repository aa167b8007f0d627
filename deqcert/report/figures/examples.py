"""A page of images as the base classifier sees them, with what was certified of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deqcert.errors import DataError
from deqcert.report.figures.style import SETTINGS
from deqcert.runs import CertifiedImage
from deqcert.statistics import ABSTAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_INCHES = 1.3, 0.98
_RIGHT, _WRONG, _NEITHER = "#0072B2", "#D55E00", "0.35"


class ShownExample(NamedTuple):
    """One image of the page.

    Attributes:
        image: Clean image, values in [0, 1], shape (C, H, W) with C of 1 or 3.
        noisy: A noisy sample of it, same shape; what leaves [0, 1] is cut off for showing.
        certificate: What was certified.
    """

    image: NDArray[np.float32]
    noisy: NDArray[np.float32]
    certificate: CertifiedImage


def plot_examples(examples: Sequence[ShownExample], classes: Sequence[str] = ()) -> Figure:
    """Draw each image beside a noisy sample, under its true class, prediction and radius.

    Args:
        examples: The images, at least one, four in a row.
        classes: Names of the classes; without them their numbers are shown.

    Raises:
        DataError: There is no image.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not examples:
        raise DataError("there is no image to show")
    rows = math.ceil(len(examples) / _COLUMNS)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(_COLUMNS * _INCHES[0], rows * _INCHES[1]), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, example in zip(grid.flat, examples, strict=False):
            pair = np.concatenate([_pixels(example.image), _pixels(example.noisy)], axis=1)
            axes.imshow(pair, interpolation="nearest", cmap="gray", vmin=0.0, vmax=1.0)
            title, colour = _title(example.certificate, classes)
            axes.set_title(title, fontsize=7, color=colour, pad=2, linespacing=1.0)
    return figure


def _pixels(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (H, W, C), or (H, W) of a grey image, in [0, 1]."""
    pixels: NDArray[np.float32] = np.clip(image[0] if len(image) == 1 else image.transpose(1, 2, 0), 0.0, 1.0)
    return pixels


def _title(certificate: CertifiedImage, classes: Sequence[str]) -> tuple[str, str]:
    def name(label: int) -> str:
        return classes[label] if 0 <= label < len(classes) else str(label)

    true = name(certificate.label)
    mark = "" if certificate.sound else " UNSOUND"
    if certificate.prediction == ABSTAIN:
        return f"{true}\nabstains{mark}", _NEITHER
    radius = f"r = {certificate.radius:.2f}{mark}"
    if certificate.correct:
        return f"{true}\n{radius}", _RIGHT
    return f"{true}, taken for\n{name(certificate.prediction)}, {radius}", _WRONG
