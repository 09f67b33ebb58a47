"""One self-contained HTML page per sweep, to be mailed: it loads nothing, and needs nothing but a browser.

Tables, Pareto plots, a heat map of pruners and families of questions, kept tokens of a chosen sample, lost questions
and cells without a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from tokenprune.report.data.cases import PAGE_CASES, Cases, cases_of, problems_of, spread
from tokenprune.report.data.environments import environment_sections, environment_sentence
from tokenprune.report.data.notes import Note
from tokenprune.report.data.rows import FamilyScore, Table
from tokenprune.report.data.tables import SCHEMA, Leaderboard, PairTable, leaderboard, pair_tables
from tokenprune.report.figures.colours import sweep_colours
from tokenprune.report.figures.plots import AVERAGE, FIGURES, PREFILL, heat_map, interactive, lines_of, png, subjects
from tokenprune.report.figures.viewer import kept_tokens
from tokenprune.report.render import markup
from tokenprune.report.render.columns import COLUMNS, LEGEND
from tokenprune.report.render.cost_sections import cost_sections
from tokenprune.report.render.markdown import cells_of, markdown_report, notes_of, title_of
from tokenprune.report.render.sections import hard_sections, pair_section, stability_sections, summary_sections
from tokenprune.report.text import NOTHING, counted, interval
from tokenprune.sweep.store.atomic_io import make_folder, write_bytes, write_json, write_text
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep

FOLDER = "report"
"""Name of the folder in the sweep directory that holds all that is made of the results."""

PAGE = "report.html"
"""Name of the page in it."""

_HARDEST = 20
"""Questions that are listed as lost by most cells."""

_FIRST = frozenset(column.heading for column in COLUMNS if column.in_page)
"""Columns of the leaderboard that are shown at once; all open on a click."""

_CHAPTERS = (
    ("tables", "Tables"),
    ("trade-offs", "Trade-offs"),
    ("families", "Families of questions"),
    ("kept-tokens", "Kept tokens"),
    ("errors", "Errors"),
    ("budgets", "All budgets together"),
    ("pairs", "Every pair"),
)


def html_page(source: str | Path | SweepData) -> str:
    """The page of a sweep.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    return _page(data, leaderboard(data), pair_tables(data))


def write_report(directory: str | Path, board: Leaderboard | None = None) -> Path:
    """Write `report/` into a sweep directory: the page, the tables (Markdown and JSON), all pairs, the figures.

    Args:
        directory: The sweep directory.
        board: Its leaderboard, where it was made before.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The directory holds no sweep.
        StorageError: The disk does not take it.
    """
    data = read_sweep(directory)
    board = board or leaderboard(data)
    pairs = pair_tables(data)
    folder = data.store.directory / FOLDER
    make_folder(folder)
    write_text(folder / "leaderboard.md", markdown_report(board))
    write_json(folder / "leaderboard.json", board.to_json())
    write_json(folder / "pairs.json", {"schema": SCHEMA, "tables": [asdict(table) for table in pairs]})
    for number, tables in enumerate(subjects(board).values()):
        for name, axis in FIGURES.items():
            if lines_of(tables, axis):
                suffix = f"-{number}" if number else ""
                write_bytes(folder / f"{name}{suffix}.png", png(tables, axis, sweep_colours(data)))
    write_text(folder / PAGE, _page(data, board, pairs))
    return folder / PAGE


def _page(data: SweepData, board: Leaderboard, pairs: Sequence[PairTable]) -> str:
    figures: list[Any] = []
    cases = [found for found in cases_of(data) if found.cells]
    kept = kept_tokens(data)
    chapters = {
        "tables": _tables(board),
        "trade-offs": _trade_offs(board, sweep_colours(data), figures),
        "families": _families(board, figures),
        "kept-tokens": _viewer(kept["lost"]),
        "errors": _errors(data, cases),
        "budgets": _budgets(board),
        "pairs": _pairs(pairs),
    }
    content = "".join(
        f'<h2 id="{key}">{escape(title)}</h2>{"".join(chapters[key]) or "<p class=note>Nothing to show.</p>"}'
        for key, title in _CHAPTERS
    )
    values = {
        "kept": kept,
        "colours": sweep_colours(data),
        "cases": list(_case_data(cases)),
        "figures": figures,
    }
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(f'tokenprune: {board.name}')}</title><style>{_file('page.css')}</style>"
    )
    scripts = "".join(markup.data(name, value) for name, value in values.items()) + _plotly(needed=bool(figures))
    body = f"{_header(data, board)}{content}{scripts}<script>{_file('page.js')}</script>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _header(data: SweepData, board: Leaderboard) -> str:
    states = [entry.state for entry in data.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    models = ", ".join(dict.fromkeys(entry.cell.model for entry in data.cells))
    facts = f"{len(states)} cells ({counts}) · {models} · begun {data.header.created[:16].replace('T', ' ')} UTC"
    ran = environment_sentence(board.environments)
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in _CHAPTERS)
    script = "<noscript><p>Figures, kept tokens and lost questions are drawn by a script in this page.</p></noscript>"
    notes = "".join(f"<p class=note>{escape(text)}</p>" for text in (facts, ran) if text)
    return f"<header><h1>{escape(board.name)}</h1>{notes}</header><nav>{links}</nav>{script}"


def _tables(board: Leaderboard) -> Iterator[str]:
    for table in board.tables:
        header, rows = cells_of(table)
        places = [place for place, name in enumerate(header) if name in _FIRST]
        first = [[row[place] for place in places] for row in rows]
        yield markup.board(title_of(table), [header[place] for place in places], first, notes_of(table))
        yield markup.folded("every column", markup.grid(header, rows, ("pruner",), kind="board"))
        for found in cost_sections([table]):
            yield markup.folded(found.title, markup.grid(found.header, found.rows, found.names, found.notes))
    yield markup.sentence(f"{LEGEND} A click on a heading sorts.")
    yield from map(markup.section, environment_sections(board.environments))


def _trade_offs(board: Leaderboard, colours: Mapping[str, str], figures: list[Any]) -> Iterator[str]:
    """The two Pareto plots of each model and task, the other figures folded."""
    fronts = {
        (summary.model, summary.task, front.cost): front for summary in board.summaries for front in summary.fronts
    }
    for (model, task), tables in subjects(board).items():
        yield f"<h3>{escape(f'{model}, {task}')}</h3>"
        for axis in (AVERAGE, PREFILL):
            if lines_of(tables, axis):
                front = fronts.get((model, task, axis.key))
                yield _figure(interactive(tables, axis, colours, front.points if front else ()), figures)
                for note in front.notes if front else ():
                    yield markup.sentence(note.text)
            else:
                yield markup.sentence(f"No figure over {axis.title}: it was not measured.")
        for axis in FIGURES.values():
            if axis not in (AVERAGE, PREFILL) and lines_of(tables, axis):
                yield markup.folded(f"accuracy and {axis.title}", _figure(interactive(tables, axis, colours), figures))


def _families(board: Leaderboard, figures: list[Any]) -> Iterator[str]:
    for (model, task), tables in subjects(board).items():
        figure = heat_map(tables)
        if figure is not None:
            yield f"<h3>{escape(f'{model}, {task}')}</h3>{_figure(figure, figures)}"
        yield markup.folded("with intervals", "".join(map(_family_table, tables)))


def _family_table(table: Table) -> str:
    """One row per pruner, one column per family."""
    families = list(dict.fromkeys(name for row in table.rows for name in (row.families or {})))
    rows = []
    for row in table.rows:
        found = row.families or {}
        figures = [_family(found[name]) if name in found else NOTHING for name in families]
        rows.append([NOTHING if row.rank is None else str(row.rank), row.label, *figures])
    text = "*: differs from `random`, p < 0.05 after Holm's correction for all families, pruners and baselines"
    note = Note(text, mark="*")
    return markup.board(title_of(table), ["#", "pruner", *families], rows, [note])


def _family(found: FamilyScore) -> str:
    against = found.against_random
    return interval(found.accuracy) + ("*" if against is not None and against.significant else "")


def _viewer(lost: Sequence[str]) -> Iterator[str]:
    yield (
        "<p class=note>What stayed after the last cut is bright. A colour of the frame is the reason that the pruner "
        "gives. The number of samples is the key <code>overlays</code> of the sweep file.</p>"
    )
    if lost:
        number = counted(len(lost), "picture")
        yield markup.sentence(f"{number} could not be read, so the samples about them are left out: {', '.join(lost)}")
    yield _choices("viewer", {"subject": "", "sample": "sample", "budget": "budget"})
    yield '<p id="viewer-legend" class="legend note"></p><div id="viewer" class="panels"></div>'


def _errors(data: SweepData, cases: Sequence[Cases]) -> Iterator[str]:
    problems = problems_of(data)
    yield "<h3>Cells without a result, and samples that raised</h3>"
    if problems:
        header = ("cell", "model", "outcome", "reason", "hint")
        rows = [(found.cell, found.model, found.outcome, found.reason, found.hint) for found in problems]
        yield markup.grid(header, rows, header, code=True)
    else:
        yield "<p class=note>None: every cell ran, and every sample was answered.</p>"
    if not cases:
        yield "<p class=note>The unpruned model has no result, so no question is known to be lost.</p>"
        return
    yield "<h3>Questions that a pruner gets wrong and the unpruned model right</h3>"
    yield _choices("cases", {"subject": "", "budget": "budget", "pruner": "pruner"})
    yield '<p id="cases-count" class=note></p>'
    heads = "".join(f"<th class=name>{name}</th>" for name in ("#", "family", "question", "answer", "pruner says"))
    yield f'<div class=wide><table id="cases"><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>'
    for found in cases:
        title = f"{found.model}, {found.task}: the {_HARDEST} questions that most cells lose"
        names = ("family", "question", "answer")
        yield markup.folded(title, markup.grid((*names, "lost by"), list(_hardest(found)), names))


def _hardest(cases: Cases) -> Iterator[tuple[str, ...]]:
    for place, count in cases.hardest()[:_HARDEST]:
        question = cases.questions[place]
        yield question.family, question.text, question.answer, f"{count} of {len(cases.cells)}"


def _budgets(board: Leaderboard) -> Iterator[str]:
    for summary in board.summaries:
        yield from map(markup.section, summary_sections(summary))
    for tables in subjects(board).values():
        yield from map(markup.section, [*hard_sections(tables), *stability_sections(tables)])


def _pairs(pairs: Sequence[PairTable]) -> Iterator[str]:
    for table in pairs:
        if table.pairs:
            found = pair_section(table)
            yield markup.folded(found.title, markup.grid(found.header, found.rows, found.names, found.notes))


def _case_data(cases: Sequence[Cases]) -> Iterator[dict[str, Any]]:
    """The lost questions for the page's script; each cell lists so many that the page stays small."""
    cells = sum(len(found.cells) for found in cases)
    limit = max(10, PAGE_CASES // max(1, cells))
    for found in cases:
        shown = [spread(cell.lost, limit) for cell in found.cells]
        used = {place for part in shown for place, _ in part}
        questions = {
            place: (question.text, question.answer, question.family)
            for place, question in found.questions.items()
            if place in used
        }
        yield {
            "model": found.model,
            "task": found.task,
            "right": found.right,
            "questions": questions,
            "cells": [
                {"label": cell.label, "budget": cell.budget, "lost": len(cell.lost), "shown": part}
                for cell, part in zip(found.cells, shown, strict=True)
            ],
        }


def _choices(prefix: str, names: Mapping[str, str]) -> str:
    boxes = "".join(
        f'<label>{escape(text)} <select id="{prefix}-{name}"></select></label>' for name, text in names.items()
    )
    return f"<div class=choices>{boxes}</div>"


def _figure(figure: Any, figures: list[Any]) -> str:
    """The place of a figure, which the page's script fills from the list."""
    figures.append(json.loads(figure.to_json()))
    return f'<div class=figure data-figure="{len(figures) - 1}"></div>'


def _plotly(*, needed: bool) -> str:
    from plotly.offline import get_plotlyjs

    return markup.packed("plotly", get_plotlyjs()) if needed else ""


def _file(name: str) -> str:
    return resources.files("tokenprune.report.render").joinpath(name).read_text(encoding="utf-8")
