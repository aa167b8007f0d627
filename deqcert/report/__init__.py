"""What a certification run shows and writes: tables, curves and files.

In come certificates and votes, or a table another program wrote; out go a summary, a plain-text or Markdown
table, a figure, the field's ``idx label predict radius correct time`` file and ``certificates.json``.
Nothing here imports torch, and matplotlib is imported only to draw. Certificates without a proof are marked
as such in everything that leaves this room.
"""

from __future__ import annotations

from deqcert.report.curve import certified_accuracy_curve, plot_curves, save_figure
from deqcert.report.json_report import write_json
from deqcert.report.summary import Summary, automatic_radii, summarize, summarize_rows
from deqcert.report.table import format_markdown, format_table
from deqcert.report.tsv import TsvRow, read_tsv, write_tsv
from deqcert.report.verify import Verification, verify_run

__all__ = [
    "Summary",
    "TsvRow",
    "Verification",
    "automatic_radii",
    "certified_accuracy_curve",
    "format_markdown",
    "format_table",
    "plot_curves",
    "read_tsv",
    "save_figure",
    "summarize",
    "summarize_rows",
    "verify_run",
    "write_json",
    "write_tsv",
]
