"""Tables as plain text for a terminal, Markdown for a page, and LaTeX for a paper, without a final line end."""

from __future__ import annotations

from deqcert.report.table import UNSOUND, Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def format_text(table: Table) -> str:
    """Return a plain-text table, ASCII apart from the names."""
    lines = _lines(table)
    name_width, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    header, *body = [
        " ".join([name.ljust(name_width), *map(str.rjust, cells, widths)]).rstrip() for name, *cells in lines
    ]
    captions = [" " * (name_width + 1) + table.group] if table.group else []
    rule = "-" * max(map(len, [*captions, header, *body]))
    return "\n".join([*captions, header, rule, *body, *table.notes])


def format_markdown(table: Table) -> str:
    """Return a Markdown table."""
    prefix = "% at " if "%" in table.group else ""
    header, *body = _lines(table._replace(grouped=tuple(prefix + heading for heading in table.grouped)))
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[name.replace("|", r"\|"), *cells] for name, *cells in body]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*text, *(f"\n{note}" for note in table.notes)])


def format_latex(table: Table, caption: str = "") -> str:
    r"""Return a ``tabular`` for the package booktabs, the best cell of each column in bold, to be ``\input``.

    A caption stands above it in a comment, to be copied. Unsound rows are marked in their names.
    """
    lines = [[table.corner, *table.headings]]
    lines += [[row.name if row.sound else f"{row.name} ({UNSOUND})", *row.cells] for row in table.rows]
    header, *body = ([_latex(cell) for cell in line] for line in lines)
    for line, row in zip(body, table.rows, strict=True):
        for column, best in enumerate(row.best, start=1):
            if best:
                line[column] = rf"\textbf{{{line[column]}}}"
    width, grouped = len(header), len(table.grouped)
    text = ["% \\usepackage{booktabs}", *([rf"% \caption{{{_latex(caption)}}}"] if caption else [])]
    text += [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
    if table.group:
        text += [
            rf" & \multicolumn{{{grouped}}}{{c}}{{{_latex(table.group)}}} \\",
            rf"\cmidrule(lr){{2-{grouped + 1}}}",
        ]
    text += [" & ".join(header) + r" \\", r"\midrule", *(" & ".join(line) + r" \\" for line in body), r"\bottomrule"]
    text += [rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {_latex(note)}}} \\" for note in table.notes]
    return "\n".join([*text, r"\end{tabular}"])


def _latex(text: str) -> str:
    return text.translate(_LATEX).replace("l2 radius", r"$\ell_2$ radius")


def _lines(table: Table) -> list[list[str]]:
    """Return the headings and the rows; if a row is unsound, with a last column of marks."""
    lines = [[table.corner, *table.headings], *([row.name, *row.cells] for row in table.rows)]
    if not all(row.sound for row in table.rows):
        for line, sound in zip(lines, [True, *(row.sound for row in table.rows)], strict=True):
            line.append("" if sound else UNSOUND)
    return lines
