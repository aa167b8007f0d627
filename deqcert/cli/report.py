"""``deqcert report``: runs and tables of the field side by side."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from deqcert.report import Report, ReportedRun, common_images, read_runs, report_radii
from deqcert.statistics import AuditRule, Sides


def run_report(args: Sequence[str]) -> int:
    """Print a report, write it where asked, and return 0; ``args`` are the arguments after the verb."""
    parsed = _parser().parse_args(list(args))
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)  # each once
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}")
        named = [_named(text) for text in parsed.runs]
        unnamed = [path.resolve() for name, path in named if not name]  # runs often lie in directories of one name
        runs: list[ReportedRun] = []
        for name, path in named:
            shown = name or _shortest_name(path.resolve(), unnamed)
            runs += read_runs(path, shown, alpha=parsed.alpha, audits=parsed.audit, sides=parsed.sides)
        if parsed.common:
            runs = common_images(runs)
        radii = parsed.radii or report_radii(runs)
        report = Report(runs, radii, rho=parsed.rho, per_class=parsed.per_class, paired=parsed.compare)
        written = [] if parsed.out is None else report.write(parsed.out)
    print(report.text())
    if written:
        print(f"\n{len(written)} files in {parsed.out}: {', '.join(path.name for path in written)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqcert report",
        allow_abbrev=False,
        description="Compare runs: certified accuracy, ACR, abstentions, lower bounds, cost. Needs neither model nor "
        "data: certificates are derived from votes again.",
    )
    option = parser.add_argument
    what = "directory of a run, its ledger_dir, or a table with the columns idx label predict radius correct time"
    option("runs", metavar="[NAME=]RUN_OR_TSV", nargs="+", help=what)
    option("--radii", type=float, nargs="+", metavar="R", help="l2 radii; default: chosen from the runs")
    option("--common", action="store_true", help="only images that all runs have")
    option("--per_class", action="store_true", help="break each run down by true class")
    option("--compare", action="store_true", help="each further run against the first, image by image")
    again = "certify runs again at this error probability; for a table: the one it was certified at"
    option("--alpha", type=float, help=again)
    rules = "certify audited runs again by these rules, each in a row of its own; published is UNSOUND"
    option("--audit", nargs="+", default=[], choices=get_args(AuditRule), help=rules)
    sides = "certify runs again with a bound on p_A only, or on p_B of the runner-up as well"
    option("--sides", choices=get_args(Sides), help=sides)
    option("--rho", type=float, default=0.001, help="failure probability of the lower bounds (%(default)s)")
    option("--out", metavar="DIR", help="write Markdown, LaTeX, CSV, TSV and figures there")
    return parser


def _named(text: str) -> tuple[str, Path]:
    """Split ``NAME=PATH`` at the first ``=`` after which there is such a path; without a name it is empty."""
    if "=" not in text or Path(text).exists():
        return "", Path(text)
    splits = [(text[:place], text[place + 1 :]) for place, character in enumerate(text) if character == "="]
    name, path = next((split for split in splits if split[1] and Path(split[1]).exists()), splits[-1])
    return name, Path(path)


def _shortest_name(path: Path, others: Sequence[Path]) -> str:
    """Return as many last parts of a path as no other path ends in."""
    for length in range(1, len(path.parts)):
        name = path.parts[-length:]
        if sum(other.parts[-length:] == name for other in others) == 1:
            break
    return "/".join(name).removesuffix(".tsv")
