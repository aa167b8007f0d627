"""Figures: matplotlib is imported only when one is drawn."""

from deqcert.report.figures.curve import plot_curves
from deqcert.report.figures.examples import ShownExample, plot_examples
from deqcert.report.figures.probability import plot_probabilities
from deqcert.report.figures.residuals import ResidualCurves, plot_residuals, read_residuals
from deqcert.report.figures.retention import plot_retention
from deqcert.report.figures.style import save_figure
from deqcert.report.figures.tradeoff import plot_tradeoff

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
