"""What a certification run shows and writes: tables, figures and files.

In come certificates and votes, or a table another program wrote; out go a summary, tables as text, Markdown and LaTeX,
figures, comparisons of runs, the field's ``idx label predict radius correct time`` file and ``certificates.json``.
Nothing here imports torch, and matplotlib is imported only to draw. Certificates without a proof are marked
as such in everything that leaves this room.
"""

from __future__ import annotations

from deqcert.report.compare import Comparison, PairedCounts, compare, comparison_table
from deqcert.report.document import Report
from deqcert.report.examples import CertifiedExample
from deqcert.report.figures import (
    ResidualCurves,
    ShownExample,
    certified_accuracy_curve,
    plot_curves,
    plot_examples,
    plot_probabilities,
    plot_projections,
    plot_residuals,
    plot_retention,
    plot_tradeoff,
    read_residuals,
    save_figure,
)
from deqcert.report.formats import format_latex, format_markdown, format_text
from deqcert.report.json_report import write_json
from deqcert.report.probability import probability_of_label, projected_certificates
from deqcert.report.runs import Run, common_images, read_runs, report_radii
from deqcert.report.summary import Summary, automatic_radii, summarize, summarize_rows
from deqcert.report.table import Row, Table, class_table, lower_bound_table, summary_table
from deqcert.report.tsv import TsvRow, read_tsv, write_tsv
from deqcert.report.verify import Verification, verify_run

__all__ = [
    "CertifiedExample",
    "Comparison",
    "PairedCounts",
    "Report",
    "ResidualCurves",
    "Row",
    "Run",
    "ShownExample",
    "Summary",
    "Table",
    "TsvRow",
    "Verification",
    "automatic_radii",
    "certified_accuracy_curve",
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
    "plot_projections",
    "plot_residuals",
    "plot_retention",
    "plot_tradeoff",
    "probability_of_label",
    "projected_certificates",
    "read_residuals",
    "read_runs",
    "read_tsv",
    "report_radii",
    "save_figure",
    "summarize",
    "summarize_rows",
    "summary_table",
    "verify_run",
    "write_json",
    "write_tsv",
]
