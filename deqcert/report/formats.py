"""Tables as plain text for a terminal, Markdown for a page, and LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Sequence

from deqcert.report.table import UNSOUND, Row, Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def format_text(table: Table) -> str:
    """Return a plain-text table, ASCII apart from the names.

    Returns:
        Lines without a final line end.
    """
    lines = [[table.corner, *table.headings, ""], *([row.name, *_cells(row)] for row in table.rows)]
    name_width, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    header, *body = [
        " ".join([name.ljust(name_width), *map(str.rjust, cells, widths)]).rstrip() for name, *cells in lines
    ]
    captions = [" " * (name_width + 1) + table.group] if table.group else []
    rule = "-" * max(map(len, [*captions, header, *body]))
    return "\n".join([*captions, header, rule, *body, *table.notes])


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
