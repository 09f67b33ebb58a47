"""A report as Markdown, for terminals, README files and the notes of a tracker."""

from __future__ import annotations

from pathlib import Path

from tokenprune.report.data.environments import environment_sentence
from tokenprune.report.data.tables import Leaderboard, leaderboard
from tokenprune.report.render.columns import Section, legend
from tokenprune.report.render.escaping import markdown_grid, markdown_sentence, markdown_text
from tokenprune.report.render.sections import leaderboard_section, sections_of
from tokenprune.sweep.store.sweep_data import SweepData


def markdown_table(source: str | Path | SweepData | Leaderboard) -> str:
    """All leaderboards of a sweep as Markdown.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    board = source if isinstance(source, Leaderboard) else leaderboard(source)
    return "\n\n".join([*map(markdown_section, map(leaderboard_section, board.tables)), legend()]) + "\n"


def markdown_report(source: str | Path | SweepData | Leaderboard) -> str:
    """The leaderboards, and what they say together: budgets needed, Pareto fronts, task families, rank stability.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    board = source if isinstance(source, Leaderboard) else leaderboard(source)
    parts = [markdown_table(board).rstrip(), environment_sentence(board.environments)]
    return "\n\n".join(filter(None, [*parts, *map(markdown_section, sections_of(board))])) + "\n"


def markdown_section(section: Section) -> str:
    """One table as Markdown, with its title and notes."""
    words = [column.words for column in section.columns]
    rows = [
        [markdown_text(cell) if word else cell for cell, word in zip(row, words, strict=True)] for row in section.rows
    ]
    headings = list(map(markdown_text, section.header))
    numbers = [name for name, word in zip(headings, words, strict=True) if not word]
    grid = markdown_grid(headings, rows, numbers) if rows else ""
    notes = "\n".join(f"- {markdown_sentence(note)}" for note in section.shown_notes())
    return "\n\n".join(part for part in (f"**{markdown_text(section.title)}**", grid, notes) if part)
