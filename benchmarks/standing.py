"""The milestones of the training that never stops: ACR over epochs.

    python benchmarks/standing.py checkpoints/cifar10_mdeq_small_standing docs/images/training/standing.png
    python benchmarks/standing.py FOLDER FIGURE --milestone RUN --epochs 20

With --milestone, a row for the certification run RUN of the branch at that epoch is added to milestones.tsv first.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

from deqcert.report import read_runs, save_figure
from deqcert.report.style import new_axes

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = ("epochs", "images", "n", "ACR", *(f"accuracy at {radius:g}" for radius in RADII))
START = 13
"""Epochs behind the weights that the run began with."""


def rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a table; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        table = csv.DictReader(stream, delimiter="\t")
        return [{name: float(value) for name, value in row.items() if value} for row in table]


def add_milestone(folder: Path, directory: Path, epochs: float) -> None:
    """Add what a certification run says of the branch at ``epochs``, in the place of an earlier row for it."""
    (run,) = read_runs(directory, directory.name)
    summary = run.summary(RADII)
    assert run.votes is not None
    numbers = (epochs, len(run.examples), run.votes[0].n, summary.average_certified_radius, *summary.certified_accuracy)
    path = folder / "milestones.tsv"
    every = [[row[name] for name in COLUMNS] for row in rows(path) if row["epochs"] != epochs] + [list(numbers)]
    lines = [COLUMNS, *([f"{value:g}" for value in row] for row in sorted(every))]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def drawn(folder: Path) -> Figure:
    """Return the figure: ACR of the decayed branches over the epochs behind them."""
    figure, axes = new_axes("epochs", "ACR of the decayed branch")
    milestones = rows(folder / "milestones.tsv")
    axes.plot([START + row["epochs"] for row in milestones], [row["ACR"] for row in milestones], "o-", markersize=3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="has milestones.tsv")
    parser.add_argument("figure", type=Path, help="figure to write")
    parser.add_argument("--milestone", type=Path, metavar="RUN", help="directory of a certification run")
    parser.add_argument("--epochs", type=float, help="epochs of the standing run at that milestone")
    options = parser.parse_args()
    if options.milestone is not None:
        if options.epochs is None:
            parser.error("--milestone needs --epochs")
        add_milestone(options.folder, options.milestone, options.epochs)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    save_figure(drawn(options.folder), options.figure)


if __name__ == "__main__":
    main()
