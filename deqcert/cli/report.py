"""``deqcert report``: runs and tables of the field side by side."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from deqcert.report import Report, ReportedRun, common_images, read_runs, report_radii
from deqcert.statistics import AuditRule


def run_report(args: Sequence[str]) -> int:
    """Print a report and write it where asked.

    Args:
        args: Arguments after the verb.

    Returns:
        0.
    """
    parsed = _parser().parse_args(list(args))
    with _warnings_printed():
        runs = _runs(parsed)
        if parsed.common:
            runs = common_images(runs)
        report = Report(
            runs,
            parsed.radii or report_radii(runs),
            rho=parsed.rho,
            per_class=parsed.per_class,
            paired=parsed.compare,
        )
        written = [] if parsed.out is None else report.write(parsed.out)
    print(report.text())
    if written:
        print(f"\n{len(written)} files in {parsed.out}: {', '.join(path.name for path in written)}")
    return 0


@contextmanager
def _warnings_printed() -> Iterator[None]:
    """Print each warning once, at the end."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"warning: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqcert report",
        allow_abbrev=False,
        description="Compare runs: certified accuracy, ACR, abstentions, lower bounds, cost. Needs neither model nor "
        "data: certificates are derived from votes again.",
    )
    parser.add_argument(
        "runs",
        metavar="[NAME=]RUN_OR_TSV",
        nargs="+",
        help="directory of a run, its ledger_dir, or a table with the columns idx label predict radius correct time",
    )
    parser.add_argument("--radii", type=float, nargs="+", metavar="R", help="l2 radii; default: chosen from the runs")
    parser.add_argument("--common", action="store_true", help="only images that all runs have")
    parser.add_argument("--per_class", action="store_true", help="break each run down by true class")
    parser.add_argument("--compare", action="store_true", help="each further run against the first, image by image")
    parser.add_argument(
        "--alpha",
        type=float,
        help="certify runs again at this error probability; for a table: the one it was certified at",
    )
    parser.add_argument(
        "--audit",
        nargs="+",
        default=[],
        choices=get_args(AuditRule),
        help="certify audited runs again by these rules, each in a row of its own; published is UNSOUND",
    )
    parser.add_argument(
        "--rho", type=float, default=0.001, help="failure probability of the lower bounds (%(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", help="write Markdown, LaTeX, CSV, TSV and figures there")
    return parser


def _runs(parsed: argparse.Namespace) -> list[ReportedRun]:
    named = [_named(text) for text in parsed.runs]
    # Runs often lie in directories of one name.
    unnamed = [path.resolve() for name, path in named if not name]
    runs = []
    for name, path in named:
        runs += read_runs(
            path, name or _shortest_name(path.resolve(), unnamed), alpha=parsed.alpha, audits=parsed.audit
        )
    return runs


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
