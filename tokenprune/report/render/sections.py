"""The tables below the leaderboard, as text that a terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenprune.report.data.environments import environment_sections
from tokenprune.report.data.notes import Note, Section
from tokenprune.report.data.rows import Row, Table
from tokenprune.report.data.summary import Front, Summary
from tokenprune.report.data.tables import Leaderboard, PairTable
from tokenprune.report.render.cost_sections import cost_sections
from tokenprune.report.stats.pareto import Point
from tokenprune.report.stats.statistics import FEWEST
from tokenprune.report.text import (
    NOTHING,
    contrast,
    counted,
    ends,
    number,
    p_value,
    percent,
    points,
    share,
    subject_at,
)

_COSTS = {
    "over_unpruned": ("prefill time", "x none", "HV time", 2),
    "layer_average": ("layer-averaged tokens", "layer average", "HV tokens", 0),
}
"""Of each cost: what it is, the headings of its column and of its hypervolume, and its digits."""


def sections_of(board: Leaderboard, *, families: bool = True) -> list[Section]:
    """Everything below the leaderboard but the pairs, with or without the task families."""
    made = list(environment_sections(board.environments))
    for summary in board.summaries:
        tables = [table for table in board.tables if (table.model, table.task) == (summary.model, summary.task)]
        made += [*summary_sections(summary), *cost_sections(tables)]
        made += [*hard_sections(tables), *stability_sections(tables)]
        made += family_sections(tables) if families else ()
    return made


def summary_sections(summary: Summary) -> Iterator[Section]:
    """The budget that each retention needs, and the Pareto fronts, of one model and task."""
    subject = f"{summary.model}, {summary.task}"
    targets = _targets(summary)
    volumes = [(_COSTS[front.cost][2], front) for front in summary.fronts]
    labels = dict.fromkeys([*summary.needed, *(label for _, front in volumes for label in front.hypervolumes)])
    rows = []
    for label in labels:
        found = summary.needed.get(label, ())
        areas = [number(front.hypervolumes.get(label), 3) + front.marks.get(label, "") for _, front in volumes]
        rows.append((label, *(map(share, found) if found else [NOTHING] * len(targets)), *areas))
    kept = "after the last cut" if summary.account == "kept" else "averaged over the layers"
    retention = Note(
        f"for 99 %: share of the visual tokens {kept} that retains 99 % of the unpruned accuracy, "
        "between the measured budgets on a straight line",
        tuple(targets),
    )
    area = Note(
        "HV: share of the box from no cost to the unpruned cost, accuracy 0 to 1, that is dominated; a point that "
        "costs more than the unpruned model adds nothing",
        tuple(name for name, _ in volumes),
    )
    nothing = Note("no retention: the unpruned model has no result, or answers nothing right")
    notes = [retention if targets else nothing, *([area] if volumes else [])]
    notes += [note for _, front in volumes for note in front.notes if note.mark]
    notes += [Note(f"no front over {_COSTS[cost][0]}: {why}") for cost, why in summary.unmeasured.items()]
    header = ("pruner", *targets, *(name for name, _ in volumes))
    what = "tokens needed per retention" if targets else "hypervolumes"
    if rows:
        yield Section(f"{subject}: {what}", header, tuple(rows), notes=tuple(notes))
    for front in summary.fronts:
        yield _front_section(subject, front)


def _targets(summary: Summary) -> list[str]:
    first = next(iter(summary.needed.values()), ())
    return [f"for {100.0 * found.target:g} %" for found in first]


def _front_section(subject: str, front: Front) -> Section:
    what, heading, _, digits = _COSTS[front.cost]

    def row(point: Point) -> tuple[str, ...]:
        shown = (point.text or number(point.cost, digits)) + point.mark
        return point.label, point.budget, shown, percent(point.accuracy)

    marks = "".join(dict.fromkeys("".join(front.marks.values())))
    notes = [Note(f"hypervolume of all pruners together: {front.hypervolume:.3f}{marks}"), *front.notes]
    return Section(
        f"{subject}: Pareto front of accuracy and {what}",
        ("pruner", "budget", heading, "accuracy %"),
        tuple(map(row, front.points)),
        notes=tuple(notes),
    )


def _title(table: Table, what: str) -> str:
    return f"{table.model}, {table.task}: {what} at {subject_at(table.budget)}"


def hard_sections(tables: Sequence[Table]) -> Iterator[Section]:
    """Accuracy on the hard subset, one column per budget; nothing where it is empty at all of them."""
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    found = [{row.label: row.hard for row in table.rows} for table in tables]
    rows = tuple(
        (label, *(NOTHING if (value := hard.get(label)) is None else percent(value.mean) for hard in found))
        for label in labels
        if any(hard.get(label) is not None for hard in found)
    )
    if not rows:
        return
    notes = [
        Note("hard: what the unpruned model answers and `downsample` at that budget does not (how many questions)"),
        Note("`downsample` itself is wrong there by definition"),
        *(Note(f"{table.budget}: {table.hard.reason}") for table in tables if table.hard.reason),
    ]
    header = ("pruner", *(f"{table.budget} ({table.hard.questions})" for table in tables))
    title = f"{tables[0].model}, {tables[0].task}: accuracy % on the hard subset"
    yield Section(title, header, rows, notes=tuple(notes))


def stability_sections(tables: Sequence[Table]) -> Iterator[Section]:
    """How much accuracy and rank move with the seed, where several seeds ran."""
    seeded = [(table, table.stability) for table in tables if table.stability is not None]
    if not seeded:
        return
    rows, notes = [], []
    for table, found in seeded:
        for entry in found.seeded:
            low, high = entry.accuracy
            ranks = f"{entry.ranks[0]} to {entry.ranks[1]}"
            rows.append((entry.label, table.budget, f"{100.0 * low:.1f} to {100.0 * high:.1f}", ranks))
        agreement = number(found.kendall_w, 2) + (f" ({found.reason})" if found.reason else "")
        notes.append(Note(f"{table.budget}: Kendall's W {agreement}"))
        notes += [Note(f"{table.budget}: {reason}") for reason in found.left_out]
    seeds = max(found.seeds for _, found in seeded)
    title = f"{tables[0].model}, {tables[0].task}: over {seeds} seeds"
    yield Section(title, ("pruner", "budget", "accuracy %", "rank"), tuple(rows), notes=tuple(notes))


def family_sections(tables: Sequence[Table]) -> Iterator[Section]:
    """Accuracy of every pruner in every task family with its interval, and the differences to the baselines."""
    for table in tables:
        rows = tuple(line for row in table.rows for line in _family_rows(row))
        if rows:
            yield Section(
                _title(table, "families"),
                ("pruner", "family", "questions", "accuracy %", "interval", "vs random", "vs downsample"),
                rows,
                names=("pruner", "family"),
                notes=(
                    Note("*: p < 0.05 after Holm's correction for all families, pruners and baselines", mark="*"),
                    Note(f"interval {NOTHING}: fewer than {FEWEST} pictures", ("interval",)),
                ),
            )


def _family_rows(row: Row) -> Iterator[tuple[str, ...]]:
    for family, found in (row.families or {}).items():
        yield (
            row.label,
            family,
            str(found.questions),
            percent(found.accuracy.mean),
            ends(found.accuracy),
            contrast(found.against_random),
            contrast(found.against_downsample),
        )


def pair_section(table: PairTable) -> Section:
    """Every pair of pruners at one budget, the most different ones first."""
    pairs = sorted(table.pairs, key=lambda pair: (pair.p_adjusted, -abs(pair.difference.mean)))
    return Section(
        f"{table.model}, {table.task}: pairs at {table.budget}",
        ("pruner", "minus", "difference", "p", "p alone"),
        tuple(
            (pair.first, pair.second, points(pair.difference), p_value(pair.p_adjusted), p_value(pair.p))
            for pair in pairs
        ),
        names=("pruner", "minus"),
        notes=(Note(f"p: of equally good, after Holm's correction for {counted(len(pairs), 'pair')}", ("p",)),),
    )
