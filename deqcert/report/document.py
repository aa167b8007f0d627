"""A whole report: its tables, its figures, and the files they are written to."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deqcert.errors import DataError, require
from deqcert.files import write_atomically
from deqcert.report.compare import compare, comparison_table
from deqcert.report.figures import plot_curves, plot_probabilities, plot_retention, plot_tradeoff
from deqcert.report.formats import format_latex, format_markdown, format_text
from deqcert.report.runs import ReportedRun, common_images
from deqcert.report.style import save_figure
from deqcert.report.table import Table, class_table, lower_bound_table, lower_bounds, summary_table
from deqcert.runs import Summary, write_tsv
from deqcert.statistics import Votes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Section(NamedTuple):
    """A table under its title, with settings and warnings of its runs below; the slug names its files."""

    slug: str
    title: str
    table: Table
    settings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


class Report:
    """Runs side by side. Warns of runs that give the same image other labels.

    Args:
        runs: The runs, at least one, with different names.
        radii: Where to give certified accuracy.
        rho: Probability with which a lower bound on a certified accuracy may fail, in (0, 1).
        per_class: Break each run down by class.
        paired: Compare each further run with the first, image by image.

    Raises:
        SettingError: A setting is out of range, or two runs have one name.
        DataError: There is no run, or runs that are to be compared have no image in common or differ in its label.
    """

    def __init__(
        self,
        runs: Sequence[ReportedRun],
        radii: Sequence[float],
        *,
        rho: float = 0.001,
        per_class: bool = False,
        paired: bool = False,
    ) -> None:
        if not runs:
            raise DataError("there is no run to report on")
        require(0 < rho < 1, "rho", rho, "must be in (0, 1)")
        files = [_slug(run.name) for run in runs]
        for position, run in enumerate(runs):
            mine = files[position] not in files[:position]
            require(mine, "run", run.name, "must have a name of its own, as in NAME=PATH, which its files can have too")
        _warn_of_labels(runs)
        self.runs = list(runs)
        self.radii = tuple(radii)
        self.summaries: dict[str, Summary] = {run.name: run.summary(radii) for run in runs}
        self.alphas = {run.name: run.alpha for run in runs}
        self._rho = rho
        self.sections = self._sections(per_class, paired)

    def text(self) -> str:
        """Return all tables as plain text."""
        parts = [(each.title, "", format_text(each.table), *each.settings, *each.cautions) for each in self.sections]
        return "\n\n".join("\n".join(part) for part in parts)

    def write(self, directory: str | Path) -> list[Path]:
        """Write ``report.md``, ``report.csv``, a ``.tex`` per table, a ``.tsv`` per run, figures as PNG and PDF.

        The folder is created if missing; files of these names are replaced. Returns the files.
        """
        directory = Path(directory)
        written = []
        figures = self.figures()
        for slug, figure in figures.items():
            for form in ("png", "pdf"):
                written.append(directory / f"{slug}.{form}")
                save_figure(figure, written[-1])
        for section in self.sections:
            written.append(directory / f"{section.slug}.tex")
            caption = ". ".join([section.title, *section.settings])
            write_atomically(written[-1], f"{format_latex(section.table, caption)}\n".encode())
        for run in self.runs:
            written.append(directory / f"{_slug(run.name)}.tsv")
            write_tsv(written[-1], run.examples, run.seconds)
        written.append(directory / "report.csv")
        write_atomically(written[-1], self._csv().encode())
        written.append(directory / "report.md")
        write_atomically(written[-1], self._markdown(list(figures)).encode())
        return written

    def figures(self) -> dict[str, Figure]:
        """Draw the figures that these runs have the numbers for, by the names of their files."""
        figures = {"curves": plot_curves({run.name: run.examples for run in self.runs})}
        first, *others = self.runs
        # Evaluations per noisy sample and per image do not go on one axis.
        noisy = {run.name: self.summaries[run.name] for run in self.runs if run.sigma is not None}
        if any(summary.nfe_total is not None for summary in noisy.values()):
            figures["tradeoff"] = plot_tradeoff(noisy)
        if others and all(run.images == first.images for run in others):
            figures["retention"] = plot_retention(first, others)
        measured: dict[str, tuple[Votes, ...]] = {}
        for run in self.runs:
            votes = tuple(each for each in run.votes or () if isinstance(each, Votes))
            if votes and votes not in measured.values():  # several rules share their votes
                measured[run.name] = votes
        if measured:
            figures["probabilities"] = plot_probabilities(measured)
        return figures

    def _sections(self, per_class: bool, paired: bool) -> list[Section]:
        shared = _shared_settings(self.runs)
        cautions = tuple(f"warning: {run.name}: {run.caution}" for run in self.runs if run.caution)
        table = summary_table(self.summaries)
        sections = [Section("accuracy", self._title(shared), table, self._settings(shared), cautions)]
        if any(alpha is not None for alpha in self.alphas.values()):
            title = "Lower bounds, given that each certificate may be false with probability alpha"
            table = lower_bound_table(self.summaries, self.alphas, self._rho)
            sections.append(Section("lower_bounds", title, table))
        if per_class:
            for run in self.runs:
                table = class_table(run.examples, self.radii, run.classes)
                sections.append(Section(f"classes_{_slug(run.name)}", f"{run.name} by true class", table))
        if paired:
            sections += [self._comparison(self.runs[0], other) for other in self.runs[1:]]
        return sections

    def _title(self, shared: Sequence[str]) -> str:
        counts = sorted({len(run.examples) for run in self.runs})
        images = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        different = [", not the same in all runs"] if len({run.images for run in self.runs}) > 1 else []
        return ", ".join([f"{images} images{''.join(different)}", *shared])

    def _settings(self, shared: Sequence[str]) -> tuple[str, ...]:
        """Say of each run what is not shared by all."""
        lines = []
        for run in self.runs:
            own = [each for each in run.settings if each not in shared]
            if run.votes is None and any(each.votes is not None for each in self.runs):
                own.append("a table, which does not state its settings")
            lines += [f"{run.name}: {', '.join(own)}"] if own else []
        return tuple(lines)

    def _comparison(self, first: ReportedRun, other: ReportedRun) -> Section:
        one, another = common_images([first, other])
        comparison = compare(one.examples, another.examples, self.radii)
        return Section(
            f"compare_{_slug(first.name)}_{_slug(other.name)}",
            f"{other.name} against {first.name}, image by image: certified with the correct class",
            comparison_table(comparison, first.name, other.name, first.sound and other.sound),
        )

    def _csv(self) -> str:
        """Return one line for each run, fractions in [0, 1], empty where something is not known."""
        rows = []
        for name, summary in self.summaries.items():
            numbers = {"run": name, "alpha": self.alphas[name], **summary._asdict()}
            del numbers["radii"], numbers["certified_accuracy"]
            bounds = lower_bounds(summary, self.alphas[name], self._rho)
            for radius, accuracy, bound in zip(self.radii, summary.certified_accuracy, bounds, strict=True):
                numbers[f"certified_accuracy_at_{radius:g}"] = accuracy
                numbers[f"lower_bound_at_{radius:g}"] = bound
            rows.append(numbers)
        output = io.StringIO()
        writer = csv.DictWriter(output, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return output.getvalue()

    def _markdown(self, figures: Sequence[str]) -> str:
        parts = ["# Certified robustness"]
        for section in self.sections:
            parts += [f"## {section.title}", format_markdown(section.table), *section.settings, *section.cautions]
        parts += [f"![{slug}]({slug}.png)" for slug in figures]
        return "\n\n".join(parts) + "\n"


def _shared_settings(runs: Sequence[ReportedRun]) -> list[str]:
    """Return the settings that all runs have, of which any are known."""
    known = [run.settings for run in runs if run.settings]
    return [each for each in known[0] if all(each in settings for settings in known)] if known else []


def _warn_of_labels(runs: Sequence[ReportedRun]) -> None:
    """Warn of runs whose images have the same indices, but other labels: they are of another data set."""
    known: dict[int, tuple[int, str]] = {}
    for run in runs:
        for index, label in sorted(run.images):
            theirs, name = known.setdefault(index, (label, run.name))
            if theirs != label:
                text = f"image {index} has label {theirs} in {name}, but {label} in {run.name}: not the same images"
                warnings.warn(text, stacklevel=3)
                break


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or "run"
