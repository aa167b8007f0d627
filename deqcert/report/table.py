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
    """Texts of one column, one for each row, and which of them are the best."""

    heading: str
    texts: list[str]
    best: list[bool]


def summary_table(summaries: Mapping[str, Summary]) -> Table:
    """Compare runs, one per row. A run that was not evaluated at a radius has a dash there.

    Args:
        summaries: Runs by name, in the order of the rows.

    Raises:
        DataError: There is no run.
    """
    every = list(summaries.values())
    sound = [each.sound for each in every]
    nfe = _column("NFE/sample", [each.nfe_total for each in every], "{:.1f}".format, sound, min)
    parts = ["-" if each.nfe_fast is None else f"{each.nfe_fast:.1f}+{each.nfe_audit:.1f}" for each in every]
    further = [
        _column("ACR", [each.average_certified_radius for each in every], "{:.3f}".format, sound, max),
        _column("abstain%", [each.abstention_rate for each in every], _percent, sound, min),
        nfe._replace(texts=parts),
        _column("s/image", [each.seconds_per_image for each in every], _three_digits, sound, min),
    ]
    accuracies = [dict(zip(each.radii, each.certified_accuracy, strict=True)) for each in every]
    return _table("run", _AT_RADIUS, _at_radii(accuracies, sound), further, list(summaries), sound)


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
    bounds = [
        dict(zip(each.radii, lower_bounds(each, alphas[name], rho), strict=True)) for name, each in summaries.items()
    ]
    sound = [each.sound for each in summaries.values()]
    group = f"truly robust % at least, with probability {1 - rho:g}, at l2 radius"
    return _table("run", group, _at_radii(bounds, sound), [], list(summaries), sound)


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
    sound = [each.sound for each in every]
    accuracies = [dict(zip(each.radii, each.certified_accuracy, strict=True)) for each in every]
    further = [
        _column("ACR", [each.average_certified_radius for each in every], "{:.3f}".format, sound),
        _column("abstain%", [each.abstention_rate for each in every], _percent, sound),
        _column("images", [each.examples for each in every], "{:.0f}".format, sound),
    ]
    names = [classes[label] if label < len(classes) else str(label) for label in labels]
    return _table("class", _AT_RADIUS, _at_radii(accuracies, sound), further, names, sound)


def _at_radii(fractions: Sequence[Mapping[float, float | None]], sound: Sequence[bool]) -> list[_Column]:
    """Return a column for every radius that any row has a fraction at."""
    if not fractions:
        raise DataError("there is no run to report on")
    radii = sorted({radius for row in fractions for radius in row})
    return [_column(f"{r:g}", [row.get(r) for row in fractions], _percent, sound, max) for r in radii]


def _column(
    heading: str,
    values: Sequence[float | None],
    shown: Callable[[float], str],
    sound: Sequence[bool],
    best: Callable[[Sequence[float]], float] | None = None,
) -> _Column:
    """Write values, None as a dash, and mark the best; what has no proof does not compete, and nobody wins alone."""
    texts = ["-" if value is None else shown(value) for value in values]
    competing = [value for value, proven in zip(values, sound, strict=True) if value is not None and proven]
    if best is None or len(competing) < 2:
        return _Column(heading, texts, [False] * len(texts))
    winner = shown(best(competing))
    return _Column(heading, texts, [proven and text == winner for text, proven in zip(texts, sound, strict=True)])


def _table(
    corner: str,
    group: str,
    grouped: Sequence[_Column],
    further: Sequence[_Column],
    names: Sequence[str],
    sound: Sequence[bool],
) -> Table:
    columns = [*grouped, *further]
    rows = [
        Row(name, tuple(column.texts[i] for column in columns), tuple(column.best[i] for column in columns), sound[i])
        for i, name in enumerate(names)
    ]
    return Table(
        corner,
        group,
        tuple(column.heading for column in grouped),
        tuple(column.heading for column in further),
        tuple(rows),
        () if all(sound) else (UNSOUND_NOTE,),
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"
