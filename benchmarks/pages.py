"""Tables that programs write into pages, between two comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from deqcert.errors import DataError


def put(path: Path, marker: str, text: str) -> None:
    """Replace what stands between the comments ``begin marker`` and ``end marker``.

    Raises:
        DataError: The page does not have them.
    """
    begin, end = f"<!-- begin {marker} -->", f"<!-- end {marker} -->"
    page = path.read_text()
    if begin not in page or end not in page:
        raise DataError(f"{path}: must have the lines {begin} and {end}")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    path.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, its first column of names and the others of numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
