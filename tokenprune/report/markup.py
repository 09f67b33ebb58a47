"""Tables of the page as HTML."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any

from tokenprune.report.sections import Section


def grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    notes: Sequence[str] = (),
    *,
    kind: str = "section",
) -> str:
    """A table whose columns can be sorted by a click, with sentences below.

    Args:
        header: Names of the columns.
        rows: One text per column and row.
        names: Columns that hold names; the others hold numbers.
        notes: Sentences below.
        kind: Class of the table; in a `board` the first row is the unpruned model.
    """
    styles = [" class=name" if name in names else "" for name in header]
    head = "".join(f"<th{style}>{escape(name)}</th>" for style, name in zip(styles, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in rows
    )
    below = "".join(f"<p class=note>{escape(note)}</p>" for note in notes)
    table = f"<table class={kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=wide>{table}</div>{below}"


def board(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
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
