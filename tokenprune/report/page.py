"""One self-contained HTML page per sweep: tables, interactive trade-offs, accuracy per family, kept tokens."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from tokenprune.report.markdown import LEGEND, NOTHING, cells_of, markdown_table, title_of
from tokenprune.report.overlays import png_bytes, stored_overlay
from tokenprune.report.plots import FIGURES, figure_html, interactive, lines_of, png, subjects
from tokenprune.report.reading import SweepData, read_sweep
from tokenprune.report.tables import Table, leaderboard
from tokenprune.sweep.ledger import write_bytes, write_json, write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1250px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tbody tr:first-child { color: #777; }
figure { display: inline-block; margin: 0 8px 12px 0; } img { max-width: 280px; } .note { color: #666; }
"""


def html_page(source: str | Path | SweepData) -> str:
    """The page of a sweep.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    board = leaderboard(data)
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
        *(_html_table(title_of(table), *cells_of(table)) for table in board.tables),
        "<h2>Trade-offs</h2>",
        *(f"<h3>{escape(name)}</h3>{html}" for (name, _), html in zip(figures, drawn, strict=True)),
        "<h2>Accuracy per family, %</h2>",
        *(_families(table) for table in board.tables),
        *_overlay_section(data),
    ]
    title = escape(f"tokenprune: {board.name}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def write_report(directory: str | Path) -> Path:
    """Write `report/` into a sweep directory: the page, the tables (Markdown and JSON), the figures.

    Returns:
        The path of the page.
    """
    data = read_sweep(directory)
    board = leaderboard(data)
    folder = data.ledger.directory / "report"
    folder.mkdir(exist_ok=True)
    write_text(folder / "leaderboard.md", markdown_table(board))
    write_json(folder / "leaderboard.json", board.to_json())
    for number, tables in enumerate(subjects(board).values()):
        for name, axis in FIGURES.items():
            if lines_of(tables, axis):
                suffix = f"-{number}" if number else ""
                write_bytes(folder / f"{name}{suffix}.png", png(tables, axis, data.colours()))
    write_text(folder / "index.html", html_page(data))
    return folder / "index.html"


def _html_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h3>{escape(title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _families(table: Table) -> str:
    families = list(dict.fromkeys(name for row in table.rows for name in (row.families or {})))
    rows = []
    for row in table.rows:
        found = row.families or {}
        figures = [f"{100 * found[name]:.0f}" if name in found else NOTHING for name in families]
        rows.append([NOTHING if row.rank is None else str(row.rank), row.label, *figures])
    return _html_table(title_of(table), ["#", "pruner", *families], rows)


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
