"""Tables as plain text for a terminal, Markdown for a page, and LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Sequence

from deqcert.report.table import UNSOUND, Row, Table

WIDTH = 110
"""Characters in a line of plain text."""

SHORTEST_NAME = 12
"""Names are cut to fit, but columns are left out rather than cutting names below this."""

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def format_text(table: Table) -> str:
    """Return a plain-text table, at most 110 characters wide, ASCII apart from the names.

    Where there are too many columns, those that the table can do without are left out and named below it.

    Returns:
        Lines without a final line end.
    """
    longest_name = max(map(len, [table.corner, *(row.name for row in table.rows)]))
    left_out: list[int] = []
    for position in table.dispensable:
        if _name_room(_without(table, left_out)) >= min(longest_name, SHORTEST_NAME):
            break
        left_out.append(position)
    shown = _without(table, left_out)
    name_width = min(longest_name, _name_room(shown))

    lines_of_cells = [_cells(row) for row in shown.rows]
    heading = [*shown.headings, ""]
    names = [table.corner, *_shortened_names([row.name for row in shown.rows], name_width)]
    widths = _column_widths([heading, *lines_of_cells])
    header, *body = [
        " ".join([name.ljust(name_width), *map(str.rjust, cells, widths)]).rstrip()
        for name, cells in zip(names, [heading, *lines_of_cells], strict=True)
    ]
    captions = [" " * (name_width + 1) + table.group] if table.group else []
    rule = "-" * max(map(len, [*captions, header, *body]))
    notes = list(table.notes)
    if left_out:
        headings = ", ".join(table.grouped[position] for position in sorted(left_out))
        notes.insert(0, _shortened(f"Left out for want of room: {headings}", WIDTH))
    return "\n".join([*captions, header, rule, *body, *notes])


def format_markdown(table: Table) -> str:
    """Return a Markdown table with all columns.

    Returns:
        Lines without a final line end.
    """
    marked = not all(row.sound for row in table.rows)
    prefix = "% at " if "%" in table.group else ""
    headings = [*(prefix + heading for heading in table.grouped), *table.further, *([""] if marked else [])]
    lines = [[table.corner, *headings], ["---", *["---:"] * len(headings)]]
    for row in table.rows:
        cells = _cells(row) if marked else row.cells
        lines.append([row.name.replace("|", r"\|"), *cells])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*text, *(f"\n{note}" for note in table.notes)])


def format_latex(table: Table) -> str:
    r"""Return a LaTeX ``tabular`` for the package booktabs, the best cell of each column in bold.

    Returns:
        Lines without a final line end, to be put into a ``table`` environment with ``\input``.
    """
    marked = not all(row.sound for row in table.rows)
    headings = [*table.headings, *([""] if marked else [])]
    grouped = len(table.grouped)
    lines = ["% \\usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(headings)}}}", r"\toprule"]
    if table.group:
        lines += [
            rf" & \multicolumn{{{grouped}}}{{c}}{{{_latex(table.group)}}}" + " &" * (len(headings) - grouped) + r" \\",
            rf"\cmidrule(lr){{2-{grouped + 1}}}",
        ]
    lines += [_latex_line([table.corner, *headings]), r"\midrule"]
    for row in table.rows:
        cells = [
            rf"\textbf{{{_latex(cell)}}}" if best else _latex(cell)
            for cell, best in zip(row.cells, row.best, strict=True)
        ]
        lines.append(" & ".join([_latex(row.name), *cells, *([_cells(row)[-1]] if marked else [])]) + r" \\")
    lines.append(r"\bottomrule")
    lines += [rf"\multicolumn{{{len(headings) + 1}}}{{l}}{{\footnotesize {_latex(note)}}} \\" for note in table.notes]
    return "\n".join([*lines, r"\end{tabular}"])


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(map(_latex, texts)) + r" \\"


def _latex(text: str) -> str:
    return text.translate(_LATEX).replace("l2 radius", r"$\ell_2$ radius")


def _cells(row: Row) -> list[str]:
    """Return the cells of a row and its mark."""
    return [*row.cells, "" if row.sound else UNSOUND]


def _without(table: Table, positions: Sequence[int]) -> Table:
    """Leave out columns."""
    kept = [position for position in range(len(table.headings)) if position not in positions]
    rows = tuple(row._replace(cells=tuple(row.cells[position] for position in kept)) for row in table.rows)
    return table._replace(
        grouped=tuple(heading for position, heading in enumerate(table.grouped) if position in kept), rows=rows
    )


def _column_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _name_room(table: Table) -> int:
    """Characters left for the name beside the columns, a space before each of them."""
    lines = [[*table.headings, ""], *(_cells(row) for row in table.rows)]
    return WIDTH - sum(width + 1 for width in _column_widths(lines))


def _shortened_names(names: Sequence[str], width: int) -> list[str]:
    """Cut names at their ends, in their middles where that makes different ones equal, or number them as well."""
    for tail in (0, (width - 3) // 2):
        cut = [_shortened(name, width, tail) for name in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return [f"{number} {_shortened(name, width - len(f'{number} '))}" for number, name in enumerate(names, start=1)]


def _shortened(text: str, width: int, tail: int = 0) -> str:
    """Cut a text to ``width`` characters, of which it keeps the last ``tail``."""
    return text if len(text) <= width else f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"
