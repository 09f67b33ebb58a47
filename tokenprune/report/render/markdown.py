"""The leaderboard as Markdown, for terminals, README files and the notes of a tracker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenprune.report.data.environments import environment_sentence
from tokenprune.report.data.notes import Note, Section, shown, timing_notes
from tokenprune.report.data.rows import Table
from tokenprune.report.data.tables import Leaderboard, leaderboard
from tokenprune.report.render.columns import COLUMNS, LEGEND
from tokenprune.report.render.escaping import markdown_grid, markdown_sentence, markdown_text
from tokenprune.report.render.sections import sections_of
from tokenprune.report.text import NOTHING, counted
from tokenprune.sweep.store.sweep_data import SweepData


def markdown_table(source: str | Path | SweepData | Leaderboard) -> str:
    """All tables of a sweep as Markdown.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    board = source if isinstance(source, Leaderboard) else leaderboard(source)
    parts = [_table(table) for table in board.tables]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def markdown_report(source: str | Path | SweepData | Leaderboard) -> str:
    """The tables, and what they say together: budgets needed, Pareto fronts, task families, rank stability.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    board = source if isinstance(source, Leaderboard) else leaderboard(source)
    parts = [markdown_table(board).rstrip(), environment_sentence(board.environments)]
    return "\n\n".join(filter(None, [*parts, *map(markdown_section, sections_of(board))])) + "\n"


def markdown_section(section: Section) -> str:
    """One section as Markdown."""
    return _grid(
        section.title, section.header, section.rows, section.names, shown(section.notes, section.header, section.rows)
    )


def cells_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table as text; columns that no row fills are left out."""
    rows = [[column.render(row) for column in COLUMNS] for row in table.rows]
    used = [place for place in range(len(COLUMNS)) if place < 3 or any(row[place] != NOTHING for row in rows)]
    return [COLUMNS[place].heading for place in used], [[row[place] for place in used] for row in rows]


def title_of(table: Table) -> str:
    """Heading of one table."""
    questions = max((row.questions for row in table.rows), default=0)
    kept = "kept" if table.account == "kept" else "kept on average over the layers"
    budget = (
        f"{table.budget} of the visual tokens"
        if table.budget.endswith("%")
        else f"{table.budget} visual {'token' if table.budget == '1' else 'tokens'}"
    )
    return f"{table.model}, {table.task}: {budget} {kept}, {counted(questions, 'question')}"


def notes_of(table: Table) -> list[Note]:
    """What is to be said below one table: cells without a result, baselines, doubtful costs, and the hard subset."""
    notes = [
        Note(f"{row.label}: {row.outcome}: {row.reason}".rstrip(": ")) for row in table.rows if row.outcome != "done"
    ]
    notes += [Note(text) for text in (*table.environments, *table.baselines)]
    notes += timing_notes(table.rows)
    hard = table.hard
    if hard.questions:
        return [*notes, Note(f"hard: {counted(hard.questions, 'question')}", ("hard %",))]
    return [*notes, Note(f"hard: {NOTHING} ({hard.reason})")]


def _table(table: Table) -> str:
    header, rows = cells_of(table)
    return _grid(title_of(table), header, rows, names=("pruner",), notes=shown(notes_of(table), header, rows))


def _grid(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str], notes: Sequence[str]
) -> str:
    numbers = [name not in names for name in header]
    cells = [[cell if plain else markdown_text(cell) for cell, plain in zip(row, numbers, strict=True)] for row in rows]
    headings = list(map(markdown_text, header))
    flush = [name for name, number in zip(headings, numbers, strict=True) if number]
    text = markdown_grid(headings, cells, flush) if rows else ""
    below = "\n".join(f"- {markdown_sentence(note)}" for note in notes)
    return "\n\n".join(part for part in (f"**{markdown_text(title)}**", text, below) if part)
