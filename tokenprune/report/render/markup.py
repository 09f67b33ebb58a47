"""Tables of the page as HTML."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any

from tokenprune.report.data.notes import Note, Section, shown


def grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    notes: Sequence[Note] = (),
    *,
    kind: str = "section",
    code: bool = False,
) -> str:
    """A table whose columns can be sorted by a click, with sentences below.

    Args:
        header: Names of the columns.
        rows: One text per column and row.
        names: Columns that hold names; the others hold numbers.
        notes: Sentences below; those about what is not shown are left out.
        kind: Class of the table; in a `board` the first row is the unpruned model.
        code: Whether backticks in cells are markup, as they are in sentences.
    """
    written = inline if code else escape
    styles = [" class=name" if name in names else "" for name in header]
    head = "".join(f"<th{style}>{escape(name)}</th>" for style, name in zip(styles, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{written(cell)}</td>" for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in rows
    )
    below = "".join(map(sentence, shown(notes, header, rows)))
    table = f"<table class={kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=wide>{table}</div>{below}"


def inline(text: str) -> str:
    """A text in which backticks set off code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def sentence(text: str) -> str:
    """A remark in small print."""
    return f"<p class=note>{inline(text)}</p>"


def board(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[Note] = ()) -> str:
    """A table that begins with the unpruned model."""
    return f"<h3>{escape(title)}</h3>{grid(header, rows, ('pruner',), notes, kind='board')}"


def section(found: Section) -> str:
    """One table with its heading."""
    return f"<h3>{escape(found.title)}</h3>{grid(found.header, found.rows, found.names, found.notes)}"


def folded(title: str, content: str) -> str:
    """Something long that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def data(name: str, value: Any) -> str:
    """A value for the page's script to read, under its name."""
    # `<` would end the element, or begin a comment, wherever it stands in a text
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{name}">{text}</script>'


def packed(name: str, text: str) -> str:
    """A long script, compressed to a third of its size; the page's script unpacks it."""
    content = b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return f'<script type="application/gzip" id="{name}">{content}</script>'
