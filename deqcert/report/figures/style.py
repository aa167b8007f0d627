"""The look that all figures share: as wide as a column of a two-column paper, safe for colour-blind readers."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deqcert.errors import require
from deqcert.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito, "Color universal design", 2008, without the yellow that no projector shows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SOUND_STYLES = ("solid", "dashdot", "dotted")  # 3 and 7 have no common factor: 21 runs differ
UNSOUND_STYLE = "dashed"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")

_INCHES = (3.4, 2.55)
_DOTS_PER_INCH = 300
_MAXIMUM_INSIDE = 3  # entries of a legend inside of the axes
_WIDEST_INSIDE, _WIDEST = 0.8, 0.98  # legends, of the width of the figure
_FONT_SIZE = 8.0
SETTINGS: Any = {  # matplotlib's own annotation of these differs from version to version
    "font.size": _FONT_SIZE,
    "axes.labelsize": _FONT_SIZE,
    "legend.fontsize": _FONT_SIZE - 1.5,
    "xtick.labelsize": _FONT_SIZE - 1,
    "ytick.labelsize": _FONT_SIZE - 1,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # venues refuse the Type 3 fonts of the default
}


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure, 3.4 by 2.55 inches, with a canvas of its own; the state of pyplot is left alone."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(visible=True, alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure: Figure, axes: Axes, location: Literal["upper left", "upper right", "lower left"]) -> None:
    """Add a legend without a frame that nothing of is cut off.

    It stands inside, or above the axes where it is so long or wide that it would hide what is drawn: there in as many
    columns as fit, at most two, the labels on several lines where one column is too wide.
    """
    handles, labels = axes.get_legend_handles_labels()
    settings: dict[str, Any] = {"frameon": False, "fontsize": SETTINGS["legend.fontsize"], "handlelength": 2.6}
    if len(handles) <= _MAXIMUM_INSIDE:
        legend = axes.legend(loc=location, **settings)
        if _width(legend, figure) <= _WIDEST_INSIDE:
            return
        legend.remove()
    columns, characters = 2, max(map(len, labels))
    while True:
        shown = [textwrap.fill(label, characters) for label in labels]
        legend = figure.legend(handles, shown, loc="outside upper left", ncols=columns, columnspacing=1.0, **settings)
        excess = _width(legend, figure) / _WIDEST
        if excess <= 1:
            break
        legend.remove()
        columns, characters = (1, characters) if columns == 2 else (1, min(characters - 1, int(characters / excess)))
    width, height = _INCHES
    figure.set_size_inches(width, height + legend.get_window_extent().height / figure.dpi)


def _width(legend: Legend, figure: Figure) -> float:
    """Return the width of a legend in units of the figure's."""
    return float(legend.get_window_extent().width / figure.bbox.width)


def line_looks() -> Iterator[tuple[str, str]]:
    """Yield a colour and a line style for one sound run after the other."""
    return zip(cycle(COLOURS), cycle(SOUND_STYLES), strict=False)


def marker_looks() -> Iterator[tuple[str, str]]:
    """Yield a colour and a marker for one run after the other."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix of the name chooses the form (``.png``, ``.pdf``, ``.svg``, …).

    The file is replaced in one step.

    Args:
        figure: What a function of this room returned.
        path: File to write.

    Raises:
        SettingError: The suffix is not of a known form.
    """
    from matplotlib import rc_context

    form = Path(path).suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    require(form in known, "path", str(path), f"must end in one of {', '.join(sorted(known))}")
    image = io.BytesIO()
    with rc_context(SETTINGS):
        figure.savefig(image, format=form)
    write_atomically(path, image.getvalue())
