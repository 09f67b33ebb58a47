"""Output of commands: results on stdout, remarks on stderr; colour alone says nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tokenprune.plugins import Host
from tokenprune.report.render.escaping import printable

#: Version of every JSON document that a command prints; it changes when a key is renamed or taken away.
JSON_SCHEMA = 1

_LONG_NAME = 24
"""Names up to this length are not broken over lines."""


@dataclass(frozen=True, slots=True)
class Output:
    """Prints a command's results and remarks.

    Colours follow the terminal; `NO_COLOR` switches them off.
    """

    data: Console = field(default_factory=lambda: Console(highlight=False, markup=False, emoji=False))
    talk: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, markup=False, emoji=False))

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal for a live display, and no CI log."""
        return self.talk.is_terminal and self.talk.is_interactive and "CI" not in os.environ

    def json(self, payload: Mapping[str, Any]) -> None:
        """Print one JSON document with its schema number first."""
        self.text(json.dumps({"schema": JSON_SCHEMA, **payload}, indent=2, allow_nan=False))

    def text(self, text: str) -> None:
        """Print a result exactly as it is, without wrapping (Markdown, JSON, paths)."""
        self.data.out(text, highlight=False)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or another result for people."""
        self.data.print(printable(renderable) if isinstance(renderable, str) else renderable)

    def say(self, text: str = "") -> None:
        """Print a remark."""
        self.talk.print(Text(printable(text)), soft_wrap=True)

    def warning(self, message: str, hint: str = "") -> None:
        """Print what is wrong but does not stop the command."""
        self._remark("warning", "bold yellow", message, hint)

    def error(self, message: str, hint: str = "") -> None:
        """Print what stopped the command, and what to do next."""
        self._remark("error", "bold red", message, hint)

    def _remark(self, label: str, style: str, message: str, hint: str) -> None:
        self.talk.print(Text.assemble((f"{label}:", style), " ", printable(message)), soft_wrap=True)
        if hint:
            self.talk.print(Text.assemble("\n", ("hint:", "bold cyan"), " ", printable(hint)), soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Invocation:
    """What every command gets: the plugins, the output, and the words that the user typed."""

    host: Host
    output: Output
    arguments: tuple[str, ...] = ()


def invocation_of(context: typer.Context) -> Invocation:
    """The invocation that `main` put into the context."""
    invocation = context.find_object(Invocation)
    if invocation is None:
        raise RuntimeError("commands run under `tokenprune.cli.app.main`, which hands them their invocation")
    return invocation


def error_line(error: Mapping[str, Any]) -> str:
    """Type and first line of the message of an error, as a cell's `error.json` holds it."""
    lines = str(error.get("message", "")).splitlines()
    return f"{error.get('type', 'error')}: {lines[0] if lines else ''}"


#: Spaces between two columns of `table`.
GAP = 2


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = (), names: Sequence[str] = ()
) -> Table:
    """A plain table that fits 80 columns: headings, no lines between rows.

    Args:
        columns: Headings.
        rows: One text per column and row.
        numbers: Headings of columns that hold numbers, set flush right and never broken over lines.
        names: Headings of other columns that are never broken over lines; the first column where its texts are short.
    """
    if not names and all(len(row[0]) <= _LONG_NAME for row in rows):
        names = columns[:1]
    # with its divider of one space this box needs a padding of one less than the gap
    built = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        built.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=column in numbers or column in names,
            overflow="fold",
        )
    for row in rows:
        built.add_row(*(Text(printable(cell)) for cell in row))
    return built
