"""What stands in the tables of a report, before it is text, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from deqcert.runs import CertifiedImage, Summary, summarize
from deqcert.statistics import false_certificates_upper

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


_Cells = list[tuple[str, bool]]
"""A column: the text of each row, and whether it is the best."""


def summary_table(summaries: Mapping[str, Summary]) -> Table:
    """Compare runs, one per row in their order. A run that was not evaluated at a radius has a dash there."""
    every = list(summaries.values())
    nfe = _column(every, [each.nfe_total for each in every], "{:.1f}".format, min)
    parts = ["-" if each.nfe_fast is None else f"{each.nfe_fast:.1f}+{each.nfe_audit:.1f}" for each in every]
    further = {
        "ACR": _column(every, [each.average_certified_radius for each in every], "{:.3f}".format, max),
        "abstain%": _column(every, [each.abstention_rate for each in every], _percent, min),
        "NFE/sample": [(part, best) for part, (_, best) in zip(parts, nfe, strict=True)],
        "s/image": _column(every, [each.seconds_per_image for each in every], _three_digits, min),
    }
    return _table("run", _AT_RADIUS, list(summaries), every, [each.certified_accuracy for each in every], further)


def lower_bound_table(summaries: Mapping[str, Summary], alphas: Mapping[str, float | None], rho: float) -> Table:
    """Bound the certified accuracies from below, one run per row; see :func:`lower_bounds`."""
    bounds = [lower_bounds(each, alphas[name], rho) for name, each in summaries.items()]
    group = f"truly robust % at least, with probability {1 - rho:g}, at l2 radius"
    return _table("run", group, list(summaries), list(summaries.values()), bounds, {})


def lower_bounds(summary: Summary, alpha: float | None, rho: float) -> list[float | None]:
    """Bound each certified accuracy from below: at least that many images are truly robust, but for probability rho.

    Args:
        summary: A run.
        alpha: Error probability of its certificates; 0 where they are certain, None where it is not known.
        rho: Probability with which a bound may fail, in (0, 1).

    Returns:
        Fractions in the order of the radii; None where alpha is not known or the run is not sound.

    Raises:
        SettingError: ``alpha`` or ``rho`` is out of range.
    """
    if alpha is None or not summary.sound:
        return [None] * len(summary.radii)
    false = false_certificates_upper(summary.examples, alpha, rho) if alpha > 0 else 0.0
    return [max(0.0, accuracy - false) for accuracy in summary.certified_accuracy]


def class_table(examples: Sequence[CertifiedImage], radii: Sequence[float], classes: Sequence[str] = ()) -> Table:
    """Break a run down by the true class of the images.

    Args:
        examples: Certificates, or rows of a table.
        radii: Where to give certified accuracy.
        classes: Names of the classes by label; a label beyond them stands for itself.

    Raises:
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    labels = sorted({example.label for example in examples})
    names = [classes[label] if label < len(classes) else str(label) for label in labels]
    every = [summarize([each for each in examples if each.label == label], None, radii) for label in labels]
    further = {
        "ACR": _column(every, [each.average_certified_radius for each in every], "{:.3f}".format),
        "abstain%": _column(every, [each.abstention_rate for each in every], _percent),
        "images": _column(every, [each.examples for each in every], str),
    }
    return _table("class", _AT_RADIUS, names, every, [each.certified_accuracy for each in every], further)


def _table(
    corner: str,
    group: str,
    names: Sequence[str],
    summaries: Sequence[Summary],
    fractions: Sequence[Sequence[float | None]],
    further: Mapping[str, _Cells],
) -> Table:
    """Put a column for every radius that any row has a fraction at before the further columns."""
    found = [dict(zip(each.radii, row, strict=True)) for each, row in zip(summaries, fractions, strict=True)]
    radii = sorted({radius for row in found for radius in row})
    grouped = [_column(summaries, [row.get(radius) for row in found], _percent, max) for radius in radii]
    rows = []
    for name, summary, *cells in zip(names, summaries, *grouped, *further.values(), strict=True):
        rows.append(Row(name, tuple(text for text, _ in cells), tuple(best for _, best in cells), summary.sound))
    notes = () if all(each.sound for each in summaries) else (UNSOUND_NOTE,)
    return Table(corner, group, tuple(f"{radius:g}" for radius in radii), tuple(further), tuple(rows), notes)


def _column(
    summaries: Sequence[Summary],
    values: Sequence[float | None],
    shown: Callable[[float], str],
    best: Callable[[Sequence[float]], float] | None = None,
) -> _Cells:
    """Write values, None as a dash, and mark the best.

    What has no proof does not compete, and nobody wins alone or where all are zero.
    """
    texts = ["-" if value is None else shown(value) for value in values]
    sound = [each.sound for each in summaries]
    competing = [value for value, proven in zip(values, sound, strict=True) if value is not None and proven]
    zero = all(shown(value) == shown(0.0) for value in competing)
    winner = shown(best(competing)) if best and len(competing) > 1 and not zero else None
    return [(text, proven and text == winner) for text, proven in zip(texts, sound, strict=True)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"
