"""What stands in the tables of a report, before it is text, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from deqcert.errors import DataError
from deqcert.metrics import high_probability_certified_accuracy
from deqcert.runs import CertifiedImage, Summary, summarize

UNSOUND = "UNSOUND"
UNSOUND_NOTE = f"{UNSOUND}: the radii of this run have no proof; compare them with published tables only."

_AT_RADIUS = "certified accuracy in % at l2 radius"


class Row(NamedTuple):
    """A row.

    Attributes:
        name: What the row is of.
        cells: Text of each column.
        best: Which cells are the best of their columns.
        sound: Whether everything in the row has a proof; a row that has not is marked wherever it is shown.
    """

    name: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]
    sound: bool


class Table(NamedTuple):
    """A table.

    Attributes:
        corner: Heading of the names.
        group: Common heading of the first columns; empty if there is none.
        grouped: Headings of these.
        further: Headings of the columns after them.
        rows: The rows.
        notes: Sentences to stand below.
    """

    corner: str
    group: str
    grouped: tuple[str, ...]
    further: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings of all columns."""
        return self.grouped + self.further


class _Column(NamedTuple):
    """Values of one column, one for each row, and how they are shown; None is a dash."""

    heading: str
    values: Sequence[float | None]
    shown: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None


def summary_table(summaries: Mapping[str, Summary]) -> Table:
    """Compare runs, one per row. A run that was not evaluated at a radius has a dash there.

    Args:
        summaries: Runs by name, in the order of the rows.

    Raises:
        DataError: There is no run.
    """
    radii = _all_radii(summaries)
    every = list(summaries.values())
    accuracies = [dict(zip(each.radii, each.certified_accuracy, strict=True)) for each in every]
    grouped = [_percent(f"{r:g}", [accuracy.get(r) for accuracy in accuracies], best=max) for r in radii]
    further = [
        _Column("ACR", [each.average_certified_radius for each in every], "{:.3f}".format, max),
        _percent("abstain%", [each.abstention_rate for each in every], best=min),
        _Column("NFE/sample", [each.nfe_total for each in every], "{:.1f}".format, min),
        _Column("s/image", [each.seconds_per_image for each in every], _three_digits, min),
    ]
    table = _table("run", _AT_RADIUS, grouped, further, list(summaries), [each.sound for each in every])
    position = table.further.index("NFE/sample") + len(radii)
    rows = [
        row if each.nfe_fast is None else _with_cell(row, position, f"{each.nfe_fast:.1f}+{each.nfe_audit:.1f}")
        for row, each in zip(table.rows, every, strict=True)
    ]
    return table._replace(rows=tuple(rows))


def lower_bound_table(summaries: Mapping[str, Summary], alphas: Mapping[str, float | None], rho: float) -> Table:
    """Bound the certified accuracies from below, given that a few certificates may be false.

    Args:
        summaries: Runs by name.
        alphas: Error probability of their certificates; None where it is not known. Such a run has dashes, and so has
            one that is not sound.
        rho: Probability with which a bound may fail, in (0, 1).

    Raises:
        DataError: There is no run.
        SettingError: ``rho`` is out of range.
    """
    radii = _all_radii(summaries)
    every = list(summaries.values())

    bounds = [
        dict(zip(each.radii, lower_bounds(each, alphas[name], rho), strict=True)) for name, each in summaries.items()
    ]
    grouped = [_percent(f"{r:g}", [each.get(r) for each in bounds], best=max) for r in radii]
    group = f"truly robust % at least, with probability {1 - rho:g}, at l2 radius"
    return _table("run", group, grouped, [], list(summaries), [each.sound for each in every])


def lower_bounds(summary: Summary, alpha: float | None, rho: float) -> list[float | None]:
    """Bound each certified accuracy from below: at least that many images are truly robust, but for probability rho.

    Args:
        summary: A run.
        alpha: Error probability of its certificates; None where it is not known.
        rho: Probability with which a bound may fail, in (0, 1).

    Returns:
        Fractions in the order of the radii; None where alpha is not known or the run is not sound.

    Raises:
        SettingError: ``alpha`` or ``rho`` is out of range.
    """
    if alpha is None or not summary.sound:
        return [None] * len(summary.radii)
    bounds: list[float | None] = high_probability_certified_accuracy(
        summary.certified_accuracy, summary.examples, alpha, rho
    ).tolist()
    return bounds


def class_table(examples: Sequence[CertifiedImage], radii: Sequence[float], classes: Sequence[str] = ()) -> Table:
    """Break a run down by the true class of the images.

    Args:
        examples: Certificates, or rows of a table.
        radii: Where to give certified accuracy.
        classes: Names of the classes by label; a label beyond them stands for itself.

    Raises:
        DataError: There is no image.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    labels = sorted({example.label for example in examples})
    parts = [[example for example in examples if example.label == label] for label in labels]
    every = [summarize(part, None, radii) for part in parts or [[]]]
    grouped = [
        _percent(f"{r:g}", [each.certified_accuracy[i] for each in every], best=max) for i, r in enumerate(radii)
    ]
    further = [
        _Column("ACR", [each.average_certified_radius for each in every], "{:.3f}".format, None),
        _percent("abstain%", [each.abstention_rate for each in every], best=None),
        _Column("images", [each.examples for each in every], "{:.0f}".format, None),
    ]
    names = [classes[label] if label < len(classes) else str(label) for label in labels]
    return _table("class", _AT_RADIUS, grouped, further, names, [each.sound for each in every])


def _percent(heading: str, values: Sequence[float | None], best: Callable[[Sequence[float]], float] | None) -> _Column:
    return _Column(heading, values, lambda value: f"{100 * value:.1f}", best)


def _table(
    corner: str,
    group: str,
    grouped: Sequence[_Column],
    further: Sequence[_Column],
    names: Sequence[str],
    sound: Sequence[bool],
) -> Table:
    columns = [*grouped, *further]
    shown = [["-" if value is None else column.shown(value) for value in column.values] for column in columns]
    best = [_best(column, texts, sound) for column, texts in zip(columns, shown, strict=True)]
    rows = tuple(
        Row(name, tuple(texts[i] for texts in shown), tuple(marks[i] for marks in best), sound[i])
        for i, name in enumerate(names)
    )
    return Table(
        corner,
        group,
        tuple(column.heading for column in grouped),
        tuple(column.heading for column in further),
        rows,
        () if all(sound) else (UNSOUND_NOTE,),
    )


def _best(column: _Column, texts: Sequence[str], sound: Sequence[bool]) -> list[bool]:
    """Mark what looks best; what has no proof does not compete, and nobody wins alone."""
    competing = [value for value, proven in zip(column.values, sound, strict=True) if value is not None and proven]
    if column.best is None or len(competing) < 2:
        return [False] * len(texts)
    winner = column.shown(column.best(competing))
    return [proven and text == winner for text, proven in zip(texts, sound, strict=True)]


def _with_cell(row: Row, position: int, text: str) -> Row:
    return row._replace(cells=(*row.cells[:position], text, *row.cells[position + 1 :]))


def _all_radii(summaries: Mapping[str, Summary]) -> list[float]:
    """Return every radius of any run in ascending order."""
    if not summaries:
        raise DataError("there is no run to report on")
    return sorted({radius for summary in summaries.values() for radius in summary.radii})


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"
