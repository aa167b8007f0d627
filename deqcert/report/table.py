"""Runs side by side, one per row: plain text for a terminal, Markdown for a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from deqcert.errors import DataError
from deqcert.report.summary import Summary

WIDTH = 110
"""Characters in a line of plain text."""

SHORTEST_NAME = 12
"""Names are cut to fit, but radii are left out rather than cutting names below this."""

UNSOUND = "UNSOUND"
UNSOUND_NOTE = f"{UNSOUND}: the radii of this run have no proof; compare them with published tables only."


def format_table(summaries: Mapping[str, Summary]) -> str:
    """Return a plain-text table, at most 110 characters wide, ASCII apart from the names.

    A run that was not evaluated at a radius has a ``-`` there. Where there are too many radii, those that the
    fewest runs have, of these the largest, are left out and named below the table.

    Args:
        summaries: Runs by name, in the order of the rows.

    Returns:
        Lines without a final line end.

    Raises:
        DataError: There is no run.
    """
    ranked = _ranked_radii(summaries)
    longest_name = max(map(len, ["run", *summaries]))
    shown = len(ranked)
    while shown > 1 and _name_room(summaries, ranked[:shown]) < min(longest_name, SHORTEST_NAME):
        shown -= 1
    name_width = min(longest_name, _name_room(summaries, ranked[:shown]))

    radii = sorted(ranked[:shown])
    rows = [_header([f"{radius:g}" for radius in radii])]
    rows += [_cells(summary, radii) for summary in summaries.values()]
    names = ["run", *(_shortened(name, name_width) for name in summaries)]
    widths = _column_widths(rows)
    header, *body = [
        " ".join([name.ljust(name_width), *map(str.rjust, row, widths)]).rstrip()
        for name, row in zip(names, rows, strict=True)
    ]
    caption = " " * (name_width + 1) + "certified accuracy in % at l2 radius"
    lines = [caption, header, "-" * max(map(len, [caption, header, *body])), *body]
    if shown < len(ranked):
        left_out = ", ".join(f"{radius:g}" for radius in sorted(ranked[shown:]))
        lines.append(_shortened(f"Left out for want of room: radius {left_out}", WIDTH))
    return "\n".join([*lines, *_notes(summaries)])


def format_markdown(summaries: Mapping[str, Summary]) -> str:
    """Return the same table in Markdown, with all radii.

    Args:
        summaries: Runs by name, in the order of the rows.

    Returns:
        Lines without a final line end.

    Raises:
        DataError: There is no run.
    """
    radii = sorted(_ranked_radii(summaries))
    header = _header([f"% at {radius:g}" for radius in radii])
    rows = [["run", *header], ["---", *["---:"] * len(header)]]
    for name, summary in summaries.items():
        rows.append([name.replace("|", r"\|"), *_cells(summary, radii)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(f"\n{note}" for note in _notes(summaries))])


def _ranked_radii(summaries: Mapping[str, Summary]) -> list[float]:
    """Return every radius of any run, those of most runs first, of these the smallest."""
    if not summaries:
        raise DataError("there is no run to report on")
    runs = Counter(radius for summary in summaries.values() for radius in set(summary.radii))
    return sorted(runs, key=lambda radius: (-runs[radius], radius))


def _header(radii: Sequence[str]) -> list[str]:
    return [*radii, "ACR", "abstain%", "NFE/sample", "s/image", ""]


def _cells(summary: Summary, radii: Sequence[float]) -> list[str]:
    accuracy = dict(zip(summary.radii, summary.certified_accuracy, strict=True))
    return [
        *(f"{100 * accuracy[radius]:.1f}" if radius in accuracy else "-" for radius in radii),
        f"{summary.average_certified_radius:.3f}",
        f"{100 * summary.abstention_rate:.1f}",
        "-" if summary.nfe_fast is None else f"{summary.nfe_fast:.1f}+{summary.nfe_audit:.1f}",
        "-" if summary.seconds_per_image is None else _three_digits(summary.seconds_per_image),
        "" if summary.sound else UNSOUND,
    ]


def _notes(summaries: Mapping[str, Summary]) -> list[str]:
    return [] if all(summary.sound for summary in summaries.values()) else [UNSOUND_NOTE]


def _column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _name_room(summaries: Mapping[str, Summary], radii: Sequence[float]) -> int:
    """Characters left for the name beside columns for ``radii``, a space before each column."""
    rows = [_header([f"{radius:g}" for radius in radii])]
    rows += [_cells(summary, radii) for summary in summaries.values()]
    return WIDTH - sum(width + 1 for width in _column_widths(rows))


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
