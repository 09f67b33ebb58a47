"""One self-contained HTML page per sweep, to be mailed: it loads nothing, and needs nothing but a browser.

Tables, Pareto plots, a heat map of pruners and families of questions, kept tokens of a chosen sample, lost questions
and cells without a result. `page.html.j2` holds the markup, and Jinja2 escapes every text in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.report.data.cases import PAGE_CASES, Cases, Problem, cases_of, evenly_spaced, problems_of
from tokenprune.report.data.environments import environment_sentence
from tokenprune.report.data.rows import BudgetTable
from tokenprune.report.data.tables import SCHEMA, Leaderboard, PairTable, leaderboard, pair_tables
from tokenprune.report.render.columns import Column, Section, column, legend
from tokenprune.report.render.kept_tokens import kept_tokens
from tokenprune.report.render.markdown import markdown_report
from tokenprune.report.render.plots import AVERAGE, AXES, PREFILL, Axis, Plot, draw, subjects, sweep_colours
from tokenprune.report.render.sections import (
    HOLM,
    cost_sections,
    environment_sections,
    hard_sections,
    leaderboard_section,
    pair_section,
    stability_sections,
    summary_sections,
)
from tokenprune.report.text import NOTHING, counted, percent, percent_bounds
from tokenprune.sweep.store.atomic_io import make_folder, write_bytes, write_json, write_text
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

FOLDER = "report"
"""Name of the folder in the sweep directory that holds all that is made of the results."""

PAGE = "report.html"
"""Name of the page in it."""

_HARDEST = 20
"""Questions that are listed as lost by most cells."""

_CHAPTERS = {
    "tables": "Tables",
    "trade-offs": "Trade-offs",
    "families": "Families of questions",
    "kept-tokens": "Kept tokens",
    "errors": "Errors",
    "budgets": "All budgets together",
    "pairs": "Every pair",
}

Plots = Mapping[tuple[str, str], Mapping[str, Plot]]
"""The plots of each model and task, by key of the axis."""


def html_page(source: str | Path | SweepData) -> str:
    """The page of a sweep.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    board = leaderboard(data)
    return _page(data, board, pair_tables(data), _plots(data, board))


def write_report(directory: str | Path) -> Path:
    """Write `report/` into a sweep directory: the page, the tables (Markdown and JSON), all pairs, the plots.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The directory holds no sweep.
        StorageError: The disk does not take it.
    """
    data = read_sweep(directory)
    board = leaderboard(data)
    pairs, plots = pair_tables(data), _plots(data, board)
    folder = data.store.directory / FOLDER
    make_folder(folder)
    write_text(folder / "leaderboard.md", markdown_report(board))
    write_json(folder / "leaderboard.json", board.to_json())
    write_json(folder / "pairs.json", {"schema": SCHEMA, "tables": [asdict(table) for table in pairs]})
    for number, drawn in enumerate(plots.values()):
        for axis in AXES:
            if axis.key in drawn:
                write_bytes(folder / f"{axis.name}{f'-{number}' if number else ''}.png", drawn[axis.key].png())
    write_text(folder / PAGE, _page(data, board, pairs, plots))
    return folder / PAGE


def _plots(data: SweepData, board: Leaderboard) -> Plots:
    colours = sweep_colours(data)
    fronts = {(it.model, it.task, front.cost): front.points for it in board.summaries for front in it.fronts}
    drawn = {
        subject: {axis.key: draw(tables, axis, colours, fronts.get((*subject, axis.key), ())) for axis in AXES}
        for subject, tables in subjects(board).items()
    }
    return {subject: {key: plot for key, plot in found.items() if plot is not None} for subject, found in drawn.items()}


def _page(data: SweepData, board: Leaderboard, pairs: Sequence[PairTable], plots: Plots) -> str:
    from markupsafe import Markup

    cases = [found for found in cases_of(data) if found.cells]
    return _template().render(
        board=board,
        facts=list(_facts(data, board)),
        chapters=_CHAPTERS,
        leaderboards=[_leaderboard(table) for table in board.tables],
        legend=legend(),
        environments=list(environment_sections(board.environments)),
        plots=list(_trade_offs(board, plots)),
        heat_maps=list(_heat_maps(board)),
        holm=HOLM,
        kept=kept_tokens(data),
        problems=_problem_section(problems_of(data)),
        hardest=[_hardest_section(found) for found in cases],
        budgets=list(_budget_sections(board)),
        pairs=[pair_section(table) for table in pairs if table.pairs],
        cases=list(_case_data(cases)),
        colours=sweep_colours(data),
        nothing=NOTHING,
        css=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "code": _code,
        "counted": counted,
        "percent": percent,
        "bounds": percent_bounds,
        "heading": lambda key: column(key).heading,
    }
    return environment.from_string(_file("page.html.j2"))


def _code(text: str) -> Markup:
    """A text in which backticks set off code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _facts(data: SweepData, board: Leaderboard) -> Iterator[str]:
    states = [entry.state for entry in data.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    models = ", ".join(dict.fromkeys(entry.cell.model for entry in data.cells))
    yield f"{len(states)} cells ({counts}) · {models} · begun {data.header.created[:16].replace('T', ' ')} UTC"
    if board.environments:
        yield environment_sentence(board.environments)


def _leaderboard(table: BudgetTable) -> tuple[Section, Section, list[Section]]:
    """The columns that matter, with the notes; every column, without them; the costs."""
    whole = leaderboard_section(table)
    first = whole.only(place for place, found in enumerate(whole.columns) if "page" in found.where)
    return first, whole.without_notes(), cost_sections([table])


def _trade_offs(board: Leaderboard, plots: Plots) -> Iterator[tuple[str, list[Any], list[Any], list[str]]]:
    """Model and task; its two Pareto plots with notes; the other plots with titles; titles of axes without a plot."""
    from markupsafe import Markup

    notes = {(it.model, it.task, front.cost): front.notes for it in board.summaries for front in it.fronts}
    for subject, drawn in plots.items():
        svg = {axis: Markup(drawn[axis.key].svg()) for axis in AXES if axis.key in drawn}
        first = [(svg[axis], _texts(notes, subject, axis)) for axis in (AVERAGE, PREFILL) if axis in svg]
        more = [(drawn[axis.key].title, svg[axis]) for axis in svg if axis not in (AVERAGE, PREFILL)]
        yield ", ".join(subject), first, more, [axis.title for axis in (AVERAGE, PREFILL) if axis not in svg]


def _texts(notes: Mapping[tuple[str, str, str], Any], subject: tuple[str, str], axis: Axis) -> list[str]:
    return [note.text for note in notes.get((*subject, axis.key), ())]


def _heat_maps(board: Leaderboard) -> Iterator[tuple[str, list[str], BudgetTable, bool]]:
    """Title, families, and table of each budget; that of the last budget of a model and task is opened."""
    for tables in subjects(board).values():
        for table in tables:
            families = list(dict.fromkeys(name for row in table.rows for name in row.families or {}))
            if families:
                yield leaderboard_section(table).title, families, table, table is tables[-1]


def _problem_section(problems: Sequence[Problem]) -> Section:
    columns = tuple(Column(name, name, words=True) for name in ("cell", "model", "outcome", "reason", "hint"))
    rows = tuple((it.cell, it.model, it.outcome, it.reason, it.hint) for it in problems)
    return Section("Cells without a result, and samples that raised", columns, rows)


def _hardest_section(cases: Cases) -> Section:
    rows = []
    for place, count in cases.hardest()[:_HARDEST]:
        question = cases.questions[place]
        rows.append((question.family, question.text, question.answer, f"{count} of {len(cases.cells)}"))
    columns = (
        *(Column(name, name, words=True) for name in ("family", "question", "answer")),
        Column("lost", "lost by"),
    )
    title = f"{cases.model}, {cases.task}: the {_HARDEST} questions that most cells lose"
    return Section(title, columns, tuple(rows))


def _budget_sections(board: Leaderboard) -> Iterator[Section]:
    for summary in board.summaries:
        yield from summary_sections(summary)
    for tables in subjects(board).values():
        yield from hard_sections(tables)
        yield from stability_sections(tables)


def _case_data(cases: Sequence[Cases]) -> Iterator[dict[str, Any]]:
    """The lost questions for the page's script; each cell lists so many that the page stays small."""
    cells = sum(len(found.cells) for found in cases)
    limit = max(10, PAGE_CASES // max(1, cells))
    for found in cases:
        shown = [evenly_spaced(cell.lost, limit) for cell in found.cells]
        used = {place for part in shown for place, _ in part}
        questions = found.questions.items()
        yield {
            "model": found.model,
            "task": found.task,
            "right": found.right,
            "questions": {place: (it.text, it.answer, it.family) for place, it in questions if place in used},
            "cells": [
                {"label": cell.label, "budget": cell.budget, "lost": len(cell.lost), "shown": part}
                for cell, part in zip(found.cells, shown, strict=True)
            ],
        }


def _file(name: str) -> str:
    return resources.files("tokenprune.report.render").joinpath(name).read_text(encoding="utf-8")
