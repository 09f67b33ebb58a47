"""One self-contained HTML page per sweep: tables, interactive trade-offs, accuracy per family, kept tokens."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from tokenprune.report.markdown import LEGEND, cells_of, markdown_report, notes_of, title_of
from tokenprune.report.overlays import png_bytes, stored_overlay
from tokenprune.report.plots import FIGURES, figure_html, interactive, lines_of, png, subjects
from tokenprune.report.reading import SweepData, read_sweep
from tokenprune.report.rows import FamilyScore, Table
from tokenprune.report.sections import Section, hard_sections, pair_section, stability_sections, summary_sections
from tokenprune.report.tables import SCHEMA, Leaderboard, PairTable, leaderboard, pair_tables
from tokenprune.report.text import NOTHING, interval
from tokenprune.sweep.ledger import write_bytes, write_json, write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1700px; margin: 2em auto; padding: 0 1em; color: #222; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th.name, td.name { text-align: left; }
table.board tbody tr:first-child { color: #777; }
summary { cursor: pointer; margin: 0.5em 0; }
figure { display: inline-block; margin: 0 8px 12px 0; } img { max-width: 280px; } .note { color: #666; }
"""


def html_page(source: str | Path | SweepData) -> str:
    """The page of a sweep.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    return _page(data, leaderboard(data), pair_tables(data))


def _page(data: SweepData, board: Leaderboard, pairs: Sequence[PairTable]) -> str:
    colours = data.colours()
    figures = [
        (f"{model}, {task}", interactive(tables, axis, colours))
        for (model, task), tables in subjects(board).items()
        for axis in FIGURES.values()
        if lines_of(tables, axis)
    ]
    drawn = figure_html([figure for _, figure in figures])
    parts = [
        f"<h1>{escape(board.name)}</h1>",
        f"<p class=note>{escape(LEGEND)}</p>",
        *(_html_table(title_of(table), *cells_of(table), notes=notes_of(table)) for table in board.tables),
        "<h2>All budgets together</h2>",
        *(_html_section(section) for summary in board.summaries for section in summary_sections(summary)),
        *_more(board),
        "<h2>Trade-offs</h2>",
        *(f"<h3>{escape(name)}</h3>{html}" for (name, _), html in zip(figures, drawn, strict=True)),
        "<h2>Accuracy per family, %</h2>",
        *(_families(table) for table in board.tables),
        "<h2>Every pair</h2>",
        *(_folded(pair_section(table)) for table in pairs if table.pairs),
        *_overlay_section(data),
    ]
    title = escape(f"tokenprune: {board.name}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def write_report(directory: str | Path, board: Leaderboard | None = None) -> Path:
    """Write `report/` into a sweep directory: the page, the tables (Markdown and JSON), all pairs, the figures.

    Args:
        directory: The sweep directory.
        board: Its leaderboard, where it was made before.

    Returns:
        The path of the page.
    """
    data = read_sweep(directory)
    board = board or leaderboard(data)
    pairs = pair_tables(data)
    folder = data.ledger.directory / "report"
    folder.mkdir(exist_ok=True)
    write_text(folder / "leaderboard.md", markdown_report(board))
    write_json(folder / "leaderboard.json", board.to_json())
    write_json(folder / "pairs.json", {"schema": SCHEMA, "tables": [asdict(table) for table in pairs]})
    for number, tables in enumerate(subjects(board).values()):
        for name, axis in FIGURES.items():
            if lines_of(tables, axis):
                suffix = f"-{number}" if number else ""
                write_bytes(folder / f"{name}{suffix}.png", png(tables, axis, data.colours()))
    write_text(folder / "index.html", _page(data, board, pairs))
    return folder / "index.html"


def _html_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
) -> str:
    """A table that begins with the unpruned model."""
    return f"<h3>{escape(title)}</h3>{_grid(header, rows, ('pruner',), notes, kind='board')}"


def _html_section(section: Section) -> str:
    grid = _grid(section.header, section.rows, section.names, section.notes)
    return f"<h3>{escape(section.title)}</h3>{grid}"


def _folded(section: Section) -> str:
    """A long table that opens on a click."""
    grid = _grid(section.header, section.rows, section.names, section.notes)
    return f"<details><summary>{escape(section.title)}</summary>{grid}</details>"


def _grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    notes: Sequence[str],
    *,
    kind: str = "section",
) -> str:
    styles = [" class=name" if name in names else "" for name in header]
    head = "".join(f"<th{style}>{escape(name)}</th>" for style, name in zip(styles, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in rows
    )
    below = "".join(f"<p class=note>{escape(note)}</p>" for note in notes)
    table = f"<table class={kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=wide>{table}</div>{below}"


def _more(board: Leaderboard) -> Iterator[str]:
    for tables in subjects(board).values():
        yield from map(_html_section, [*hard_sections(tables), *stability_sections(tables)])


def _families(table: Table) -> str:
    """One row per pruner, one column per family."""
    families = list(dict.fromkeys(name for row in table.rows for name in (row.families or {})))
    rows = []
    for row in table.rows:
        found = row.families or {}
        figures = [_family(found[name]) if name in found else NOTHING for name in families]
        rows.append([NOTHING if row.rank is None else str(row.rank), row.label, *figures])
    note = "`*`: differs from `random`, p < 0.05 after Holm's correction for all families, pruners and baselines"
    return _html_table(title_of(table), ["#", "pruner", *families], rows, notes=[note])


def _family(found: FamilyScore) -> str:
    against = found.against_random
    return interval(found.accuracy) + ("*" if against is not None and against.significant else "")


def _overlay_section(data: SweepData) -> Iterator[str]:
    """Kept tokens of the first sample at the smallest budget of each model and task."""
    done = [entry for entry in data.cells if entry.state == "done"]
    for subject in dict.fromkeys((entry.cell.model, entry.cell.task) for entry in done):
        entries = [entry for entry in done if (entry.cell.model, entry.cell.task) == subject]
        smallest = [entry for entry in entries if entry.cell.budget_label == entries[-1].cell.budget_label]
        pictures = []
        for entry in smallest:
            stored = data.ledger.overlays(entry.cell.id)
            for sample in stored[:1]:
                text = f"{entry.cell.label}\n{sample['question']} {sample['answer']}\nsaid: {sample['prediction']}"
                image = png_bytes(stored_overlay(data.ledger.directory, sample, text))
                encoded = base64.b64encode(image).decode()
                alternative = escape(f"tokens kept by {entry.cell.label}")
                pictures.append(f'<figure><img alt="{alternative}" src="data:image/png;base64,{encoded}"></figure>')
        if pictures:
            heading = f"{subject[0]}, {subject[1]}: kept tokens at {smallest[0].cell.budget_label}"
            yield f"<h2>{escape(heading)}</h2>{''.join(pictures)}"
