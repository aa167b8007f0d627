"""Runs side by side: tables as text, Markdown and LaTeX, figures, comparisons.

In come runs (:mod:`deqcert.runs`) or tables another program wrote. Nothing here imports torch, and matplotlib is
imported only to draw. Certificates without a proof are marked as such in everything that leaves this room.
"""

from deqcert.report.compare import compare, comparison_table
from deqcert.report.document import Report
from deqcert.report.figures import plot_curves, plot_probabilities, plot_retention, plot_tradeoff
from deqcert.report.formats import format_latex, format_markdown, format_text
from deqcert.report.runs import ReportedRun, common_images, read_runs, report_radii
from deqcert.report.settings import CONVERGENCE_ADVICE, DETERMINISTIC, run_settings, step_limit_caution
from deqcert.report.style import save_figure
from deqcert.report.table import Row, Table, class_table, lower_bound_table, summary_table

__all__ = [
    "CONVERGENCE_ADVICE",
    "DETERMINISTIC",
    "Report",
    "ReportedRun",
    "Row",
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
    "plot_probabilities",
    "plot_retention",
    "plot_tradeoff",
    "read_runs",
    "report_radii",
    "run_settings",
    "save_figure",
    "step_limit_caution",
    "summary_table",
]
