"""The leaderboard as Markdown, for terminals, README files and the notes of a tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenprune.report.reading import SweepData
from tokenprune.report.statistics import Interval
from tokenprune.report.tables import Leaderboard, Row, Table, leaderboard

NOTHING = "-"

_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("#", lambda row: NOTHING if row.rank is None else str(row.rank)),
    ("pruner", lambda row: row.label),
    ("accuracy %", lambda row: _percent(row.accuracy.mean if row.accuracy else None)),
    ("vs none", lambda row: _points(row.against_none)),
    ("vs random", lambda row: _points(row.against_random) + ("*" if (row.q_random or 1.0) < 0.05 else "")),
    ("same answer %", lambda row: _percent(row.agreement)),
    ("KL", lambda row: _number(row.kl, 2)),
    ("output error", lambda row: _number(row.output_error, 3)),
    ("dual error", lambda row: _number(row.dual_error, 3)),
    ("final tokens", lambda row: _number((row.tokens or {}).get("final"), 0)),
    ("layer average", lambda row: _number((row.tokens or {}).get("layer_average"), 0)),
    ("prefill ms", lambda row: _number(row.prefill_ms, 1)),
    ("pruner ms", lambda row: _number(row.overhead_ms, 1)),
    ("GFLOPs", lambda row: _number(row.prefill_gflops, 2)),
)

LEGEND = (
    "Differences are percentage points on the same questions with 95 % paired bootstrap intervals; `*`: differs from "
    "`random` with an adjusted p < 0.05. `same answer`: equal to the unpruned answer. KL (nats): first answer token "
    "against the unpruned model. Errors: relative norms, mean over layers, of the attention output and of the implicit "
    f"weight. Prefill: median of one sample with vision encoder and pruner. {NOTHING}: not measured or not defined."
)


def markdown_table(source: str | Path | SweepData | Leaderboard) -> str:
    """All tables of a sweep as Markdown.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    board = source if isinstance(source, Leaderboard) else leaderboard(source)
    parts = [_table(table) for table in board.tables]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def cells_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table as text; columns that no row fills are left out."""
    rows = [[render(row) for _, render in _COLUMNS] for row in table.rows]
    used = [place for place in range(len(_COLUMNS)) if place < 3 or any(row[place] != NOTHING for row in rows)]
    return [_COLUMNS[place][0] for place in used], [[row[place] for place in used] for row in rows]


def title_of(table: Table) -> str:
    """Heading of one table."""
    questions = max((row.questions for row in table.rows), default=0)
    kept = "kept" if table.account == "kept" else "kept on average over the layers"
    budget = f"{table.budget} of the visual tokens" if table.budget.endswith("%") else f"{table.budget} visual tokens"
    return f"{table.model}, {table.task}: {budget} {kept}, {questions} questions"


def _table(table: Table) -> str:
    header, rows = cells_of(table)
    numbers = ["---" if name == "pruner" else "--:" for name in header]
    lines = [header, numbers, *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    without = [row for row in table.rows if row.outcome != "done"]
    notes = [f"- `{row.label}` {row.outcome}{': ' + row.reason if row.reason else ''}" for row in without]
    return "\n".join([f"**{title_of(table)}**", "", text, *([""] if notes else []), *notes])


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100.0 * value:.1f}"


def _points(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    return f"{100.0 * interval.mean:+.1f} [{100.0 * interval.low:+.1f}, {100.0 * interval.high:+.1f}]"


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
