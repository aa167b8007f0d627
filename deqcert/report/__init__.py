"""Runs side by side: tables as text, Markdown and LaTeX, figures, comparisons.

In come runs (:mod:`deqcert.runs`) or tables another program wrote. Nothing here imports torch, and matplotlib is
imported only to draw. Certificates without a proof are marked as such in everything that leaves this room.
"""

from deqcert.report.compare import Comparison, PairedCounts, compare, comparison_table
from deqcert.report.document import Report
from deqcert.report.figures import (
    ResidualCurves,
    ShownExample,
    plot_curves,
    plot_examples,
    plot_probabilities,
    plot_residuals,
    plot_retention,
    plot_tradeoff,
    read_residuals,
    save_figure,
)
from deqcert.report.formats import format_latex, format_markdown, format_text
from deqcert.report.runs import ReportedRun, common_images, read_runs, report_radii
from deqcert.report.table import Row, Table, class_table, lower_bound_table, summary_table

__all__ = [
    "Comparison",
    "PairedCounts",
    "Report",
    "ReportedRun",
    "ResidualCurves",
    "Row",
    "ShownExample",
    "Table",
    "class_table",
    "common_images",
    "compare",
    "comparison_table",
    "format_latex",
    "format_markdown",
    "format_text",
    "lower_bound_table",
    "plot_curves",
    "plot_examples",
    "plot_probabilities",
    "plot_residuals",
    "plot_retention",
    "plot_tradeoff",
    "read_residuals",
    "read_runs",
    "report_radii",
    "save_figure",
    "summary_table",
]
