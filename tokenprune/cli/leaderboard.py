"""The tables of a sweep on a terminal: the columns that fit, and the notes about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.cli.output import GAP, Output, table

if TYPE_CHECKING:
    from tokenprune.report.data.tables import Leaderboard
    from tokenprune.report.render.columns import Section


def leaderboard_json(directory: Path) -> dict[str, Any]:
    """The leaderboard as a part of a JSON document."""
    from tokenprune.report.data.tables import leaderboard

    return {"leaderboard": leaderboard(directory).to_json()}


def show_leaderboard(output: Output, source: Path | Leaderboard, *, families: bool = False) -> None:
    """Print one table per model, task and budget, as wide as the terminal allows, and what they show together."""
    from tokenprune.report.data.tables import leaderboard
    from tokenprune.report.render.sections import leaderboard_section, sections_of

    board = leaderboard(source) if isinstance(source, Path) else source
    for section in [*map(leaderboard_section, board.tables), *sections_of(board, families=families)]:
        show_section(output, section)


def show_section(output: Output, section: Section) -> None:
    """Print the columns of a table that fit, and the notes about them."""
    shown = fitting(section, output.data.width)
    numbers, words = ([it.heading for it in shown.columns if it.words is kind] for kind in (False, True))
    output.show(shown.title)
    output.show(table(shown.header, shown.rows, numbers=numbers, names=words))
    for note in (*shown.shown_notes(), ""):
        output.show(note)


def fitting(section: Section, width: int) -> Section:
    """The table with the columns that fit into a width, the most important ones first to be taken.

    Args:
        section: The table.
        width: Characters of a line.
    """
    chosen: list[int] = []
    used = 0
    for place in sorted(range(len(section.columns)), key=lambda place: section.columns[place].importance):
        needed = max(map(len, (section.header[place], *(row[place] for row in section.rows)))) + GAP
        if not chosen or used + needed <= width:
            chosen.append(place)
            used += needed
    return section.only(sorted(chosen))
