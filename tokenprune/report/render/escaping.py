"""Texts of other people in Markdown and CSV: shown as they are, never read as markup or as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence

_MARKUP = re.compile(r"[\\`*|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|](?=\()")
"""What a backslash takes its meaning from: an underscore inside a word has none, and brackets are a link before `(`."""

_ENTITY = re.compile(r"&(?=#|[A-Za-z][A-Za-z0-9]*;)")
_CODE = re.compile(r"(`[^`]+`)")
_BARE_PIPE = re.compile(r"(?<!\\)\|")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""How texts begin that a spreadsheet computes."""

_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""Characters that are commands to a terminal."""


def printable(text: str) -> str:
    """A text without characters that are commands to a terminal: its line ends and tabs stay."""
    return text.translate(_CONTROL)


def one_line(text: str) -> str:
    """A text without line ends, which would end a cell or a sentence, and without commands to a terminal."""
    return printable(" ".join(text.splitlines()))


def markdown_text(text: str) -> str:
    """Markdown that shows a text as it is, on one line."""
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", one_line(text))
    return _ENTITY.sub("&amp;", escaped).replace("<", "&lt;")


def markdown_sentence(text: str) -> str:
    """Markdown of a sentence whose backticks set off code; all else is shown as it is."""
    parts = _CODE.split(one_line(text))
    return "".join(part if _CODE.fullmatch(part) else markdown_text(part) for part in parts)


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """A table of cells that are Markdown already; a pipe or a line end in one does not end it.

    Args:
        header: Headings.
        rows: One cell per heading and row.
        numbers: Headings of the columns that are flush right.
    """
    rule = ["--:" if name in numbers else "---" for name in header]
    lines = [[_BARE_PIPE.sub(r"\\|", one_line(cell)) for cell in line] for line in (header, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines of comma-separated values; a text that a spreadsheet would compute begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_no_formula(value) for value in row] for row in rows)
    return stream.getvalue()


def _no_formula(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = "\n".join(value.splitlines())  # some readers take a bare carriage return for the end of a row
    if len(text) < 2 or not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
