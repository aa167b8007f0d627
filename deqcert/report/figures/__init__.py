"""Figures: matplotlib is imported only when one is drawn."""

from deqcert.report.figures.examples import ShownExample, plot_examples
from deqcert.report.figures.plots import plot_curves, plot_probabilities, plot_residuals, plot_retention, plot_tradeoff
from deqcert.report.figures.residuals import ResidualCurves, read_residuals
from deqcert.report.figures.style import save_figure

__all__ = [
    "ResidualCurves",
    "ShownExample",
    "plot_curves",
    "plot_examples",
    "plot_probabilities",
    "plot_residuals",
    "plot_retention",
    "plot_tradeoff",
    "read_residuals",
    "save_figure",
]
