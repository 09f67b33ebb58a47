"""The tables of a sweep on a terminal: the columns that fit, and the notes about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.cli.output import GAP, Output, table

if TYPE_CHECKING:
    from tokenprune.report.data.notes import Note, Section
    from tokenprune.report.data.tables import Leaderboard

#: Columns of the other tables, among those of the leaderboard: what a narrow terminal loses first has a large number.
_IMPORTANCE = {"difference": 2, "p": 3, "questions": 4}


def leaderboard_json(directory: Path) -> dict[str, Any]:
    """The leaderboard as a part of a JSON document."""
    from tokenprune.report.data.tables import leaderboard

    return {"leaderboard": leaderboard(directory).to_json()}


def show_leaderboard(output: Output, source: Path | Leaderboard, *, families: bool = False) -> None:
    """Print one table per model, task and budget, as wide as the terminal allows, and what they show together."""
    from tokenprune.report.data.tables import leaderboard
    from tokenprune.report.render.markdown import cells_of, notes_of, title_of
    from tokenprune.report.render.sections import sections_of

    board = leaderboard(source) if isinstance(source, Path) else source
    for entry in board.tables:
        header, rows = cells_of(entry)
        places = fitting(header, rows, output.data.width)
        columns = [header[place] for place in places]
        output.show(title_of(entry))
        output.show(
            table(
                columns,
                [[row[place] for place in places] for row in rows],
                numbers=[column for column in columns if column != "pruner"],
                names=["pruner"],
            )
        )
        _show_notes(output, notes_of(entry), columns, [[row[place] for place in places] for row in rows])
    for section in sections_of(board, families=families):
        show_section(output, section)


def show_section(output: Output, section: Section) -> None:
    """Print one table below the leaderboard, with its notes."""
    places = fitting(section.header, section.rows, output.data.width, first=section.names)
    columns = [section.header[place] for place in places]
    rows = [[row[place] for place in places] for row in section.rows]
    numbers = [column for column in columns if column not in section.names]
    output.show(section.title)
    output.show(table(columns, rows, numbers=numbers, names=section.names))
    _show_notes(output, section.notes, columns, rows)


def _show_notes(output: Output, notes: Sequence[Note], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the notes that are about the columns that fit."""
    from tokenprune.report.data.notes import shown

    for line in shown(notes, columns, rows):
        output.show(line)
    output.show("")


def fitting(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, first: Sequence[str] = ()
) -> list[int]:
    """Places of the columns that fit into a width, the most important ones first to be taken, in the table's order.

    Args:
        header: Names of the columns.
        rows: One text per column and row.
        width: Characters of a line.
        first: Columns that are more important than all others.
    """
    from tokenprune.report.render.columns import COLUMNS

    ranking = {column.heading: column.importance for column in COLUMNS} | _IMPORTANCE | dict.fromkeys(first, -1)
    order = sorted(range(len(header)), key=lambda place: ranking.get(header[place], len(COLUMNS) + len(ranking)))
    chosen: list[int] = []
    used = 0
    for place in order:
        needed = max(len(text) for text in (header[place], *(row[place] for row in rows))) + GAP
        if chosen and used + needed > width:
            continue
        chosen.append(place)
        used += needed
    return sorted(chosen)
