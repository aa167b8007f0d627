"""The look that all figures share: as wide as a column of a two-column paper, safe for color-blind readers."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deqcert.errors import require
from deqcert.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color universal design", 2008, without the yellow that no projector shows.
# Neighbors differ in lightness.
COLORS = ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#009E73")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_SOUND_DASHES: Any = ("solid", "dashdot", "dotted", (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
_UNSOUND_DASHES: Any = ((0, (5, 2)), (0, (2, 1.2)), (0, (9, 2)), (0, (5, 5)), (0, (9, 6)))

_INCHES = (3.4, 2.55)
_WIDTHS = 22, 36, 44  # characters of a legend: in one of two columns above the axes, inside, in one column above
_SETTINGS: Any = {  # matplotlib's own annotation of these differs from version to version
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # venues refuse the Type 3 fonts of the default
}


def look(position: int, sound: bool = True) -> dict[str, Any]:
    """Return color, dash and marker of the run at a position: 70 differ, 10 of them in gray print too.

    Unsound runs have even dashes, and hollow markers.
    """
    dashes = _SOUND_DASHES if sound else _UNSOUND_DASHES
    return {
        "color": COLORS[position % len(COLORS)],
        "linestyle": dashes[position % len(dashes)],
        "marker": MARKERS[position % len(MARKERS)],
        "markersize": 3.5,
        "markeredgewidth": 0.7,
        "fillstyle": "full" if sound else "none",
    }


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure, 3.4 by 2.55 inches, with a canvas of its own; the state of pyplot is left alone."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=_INCHES, dpi=300, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(visible=True, alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure: Figure, axes: Axes, location: Literal["upper left", "upper right", "lower left"]) -> None:
    """Add a legend without a frame: inside the axes if it is small, else above them, its lines wrapped."""
    handles, names = axes.get_legend_handles_labels()
    settings: Any = {"frameon": False, "fontsize": _SETTINGS["legend.fontsize"], "handlelength": 2.6}
    half, inside, whole = _WIDTHS
    longest = max(map(len, names), default=0)
    if len(names) <= 3 and longest <= inside:
        axes.legend(loc=location, **settings)
        return
    shown = [textwrap.fill(name, whole) for name in names]
    columns = 2 if longest <= half else 1
    legend = figure.legend(handles, shown, loc="outside upper left", ncols=columns, columnspacing=1.0, **settings)
    width, height = _INCHES
    figure.set_size_inches(width, height + legend.get_window_extent().height / figure.dpi)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix of the name chooses the form (``.png``, ``.pdf``, ``.svg``, …).

    The file is replaced in one step.

    Raises:
        SettingError: The suffix is not of a known form.
    """
    from matplotlib import rc_context

    form = Path(path).suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    require(form in known, "path", str(path), f"must end in one of {', '.join(sorted(known))}")
    image = io.BytesIO()
    with rc_context(_SETTINGS):
        figure.savefig(image, format=form)
    write_atomically(path, image.getvalue())
