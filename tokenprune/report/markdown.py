"""The leaderboard as Markdown, for terminals, README files and the notes of a tracker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenprune.report.environments import environment_sentence
from tokenprune.report.notes import Note, Section, busy_mark, busy_notes, shown
from tokenprune.report.reading import SweepData
from tokenprune.report.rows import Row, Table
from tokenprune.report.sections import sections_of
from tokenprune.report.tables import Leaderboard, leaderboard
from tokenprune.report.text import NOTHING, contrast, counted, ends, number, percent, points, quartiles


def _marked(text: str, row: Row) -> str:
    """A measured figure, with the mark of a device that was busy or not known."""
    return text if text == NOTHING else text + busy_mark(row)


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("#", lambda row: NOTHING if row.rank is None else str(row.rank)),
    ("pruner", lambda row: row.label),
    ("accuracy %", lambda row: percent(row.accuracy.mean if row.accuracy else None)),
    ("interval", lambda row: ends(row.accuracy)),
    ("retention %", lambda row: percent(row.retention.mean if row.retention else None)),
    ("vs none", lambda row: points(row.against_none)),
    ("vs random", lambda row: contrast(row.against_random)),
    ("vs downsample", lambda row: contrast(row.against_downsample)),
    ("hard %", lambda row: percent(row.hard.mean if row.hard else None)),
    ("same answer %", lambda row: percent(row.agreement)),
    ("KL", lambda row: number(row.kl, 2)),
    ("output error", lambda row: number(row.output_error, 3)),
    ("dual error", lambda row: number(row.dual_error, 3)),
    ("final tokens", lambda row: number((row.tokens or {}).get("final"), 0)),
    ("layer average", lambda row: number((row.tokens or {}).get("layer_average"), 0)),
    ("prefill ms", lambda row: _marked(number(row.prefill_ms, 1), row)),
    ("quartiles", lambda row: quartiles(row.prefill_ms_quartiles, 1)),
    ("x none", lambda row: _marked(number(row.over_unpruned, 2), row)),
    ("x floor", lambda row: _marked(number(row.over_floor, 2), row)),
    ("pruner %", lambda row: percent(row.overhead_share)),
    ("GFLOPs", lambda row: number(row.prefill_gflops, 2)),
)

LEGEND = (
    "Figures in brackets are 95 % intervals over the questions, with pictures as the unit: Wilson's for an "
    "accuracy, a smoothed paired bootstrap for differences, which are percentage points on the same questions. "
    "They hold for the seeds that ran: what other seeds would give is not in them. `*`: differs from that "
    "baseline with p < 0.05 after Holm's correction for all such comparisons of the table (paired permutation "
    "test; McNemar's exact test for right or wrong). A sample or a cell that failed counts as wrong; of the "
    "unpruned model, `random` and `downsample`, where others are measured against them, it is left out. "
    "Retention: accuracy divided by the unpruned accuracy. Hard: accuracy on the questions that the unpruned "
    "model answers and `downsample`, at this budget, does not. Same answer (loyalty): equal to the unpruned "
    "answer. KL (nats): first answer token against the unpruned model. Errors: relative norms, mean over layers, "
    "of the attention output and of the implicit weight. Prefill: median of one sample with vision encoder and "
    "pruner, and its quartiles; rows were measured at different times, so compare the ratios. x none: prefill "
    "divided by that of the unpruned model in the same turns; below 1 is a speed-up. x floor: divided by that of "
    "the unpruned model on a prompt of the kept length (as many visual tokens as the layer average). Pruner: "
    f"share of the prefill in the pruner's own views and decisions. {NOTHING}: not measured or not defined."
)


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
    rows = [[render(row) for _, render in _COLUMNS] for row in table.rows]
    used = [place for place in range(len(_COLUMNS)) if place < 3 or any(row[place] != NOTHING for row in rows)]
    return [_COLUMNS[place][0] for place in used], [[row[place] for place in used] for row in rows]


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
    """What is to be said below one table: cells without a result, baselines, a busy device, and the hard subset."""
    notes = [
        Note(f"{row.label}: {row.outcome}: {row.reason}".rstrip(": ")) for row in table.rows if row.outcome != "done"
    ]
    notes += [Note(text) for text in (*table.environments, *table.baselines)]
    notes += busy_notes(table.rows)
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
    rule = ["---" if name in names else "--:" for name in header]
    text = "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) if rows else ""
    below = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join(part for part in (f"**{title}**", text, below) if part)
