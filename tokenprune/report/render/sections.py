"""The tables of a report as text, which a terminal, Markdown and the HTML page show alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tokenprune.report.data.costs import CostSummary, timing_notes
from tokenprune.report.data.environments import UNKNOWN, Shared
from tokenprune.report.data.rows import BudgetTable, PrunerRow
from tokenprune.report.data.summary import Front, Summary
from tokenprune.report.data.tables import Leaderboard, PairTable
from tokenprune.report.render.columns import Column, Section, column, column_notes, columns_of
from tokenprune.report.stats.intervals import FEWEST
from tokenprune.report.text import (
    NOTHING,
    Note,
    budget_text,
    counted,
    number,
    p_value,
    percent,
    percentage_points,
    token_share,
)

_COSTS = {
    "over_unpruned": ("prefill time", Column("hypervolume_time", "HV time"), 2),
    "layer_average": ("layer-averaged tokens", Column("hypervolume_tokens", "HV tokens"), 0),
}
"""Of each cost of a front: what it is, the column of its hypervolume, and its digits."""

_BUDGET = Column("budget", "budget", lambda item: item.budget)

HOLM = "p < 0.05 after Holm's correction for all families, pruners and baselines"


def sections_of(board: Leaderboard, *, families: bool = True) -> list[Section]:
    """Everything below the leaderboard but the pairs, with or without the task families."""
    made = list(environment_sections(board.environments))
    for summary in board.summaries:
        tables = [table for table in board.tables if (table.model, table.task) == (summary.model, summary.task)]
        made += [*summary_sections(summary), *cost_sections(tables)]
        made += [*hard_sections(tables), *stability_sections(tables)]
        made += family_sections(tables) if families else ()
    return made


def leaderboard_section(table: BudgetTable) -> Section:
    """The leaderboard at one budget; of the columns after the accuracy those that no row fills are left out."""
    questions = max((row.questions for row in table.rows), default=0)
    kept = "kept" if table.account == "kept" else "kept on average over the layers"
    budget = budget_text(table.budget, "visual")
    title = f"{table.model}, {table.task}: {budget} {kept}, {counted(questions, 'question')}"
    return Section.of(title, columns_of("leaderboard"), table.rows, _leaderboard_notes(table), keep=3)


def _leaderboard_notes(table: BudgetTable) -> Iterator[Note]:
    """Cells without a result, baselines, environments, doubtful costs, and the hard subset."""
    for row in table.rows:
        if row.outcome != "done":
            yield Note(f"{row.label}: {row.outcome}: {row.reason}".rstrip(": "))
    yield from map(Note, (*table.environments, *table.baselines))
    yield from timing_notes([row.cost for row in table.rows])
    if table.hard.questions:
        yield Note(f"hard: {counted(table.hard.questions, 'question')}", ("hard",))
    else:
        yield Note(f"hard: {NOTHING} ({table.hard.reason})")


def cost_sections(tables: Sequence[BudgetTable]) -> list[Section]:
    """One table per budget at which something was measured; a note on several is said once, below the last one."""
    seen: set[Note] = set()
    found = []
    for section in reversed([section for table in tables for section in _cost_section(table)]):
        notes = tuple(note for note in section.notes if note.mark or note not in seen)
        seen.update(section.notes)
        found.append(replace(section, notes=notes))
    return found[::-1]


def _cost_section(table: BudgetTable) -> Iterator[Section]:
    title = f"{table.model}, {table.task}: cost at {budget_text(table.budget)}"
    rows = [row for row in table.rows if row.cost is not None and row.cost.spreads]
    if rows:
        columns = columns_of("cost")
        notes = [*timing_notes([row.cost for row in table.rows]), *_missing_costs(table.rows), *_cost_notes(rows)]
        yield Section.of(title, columns, rows, [*notes, *column_notes(columns)], keep=1)
    elif refused := [row for row in table.rows if row.cost is not None and row.cost.refused]:
        reason = Column("refusal", "not measured", lambda row: row.cost.refusal, words=True)
        yield Section.of(title, (column("pruner"), reason), refused)


def _missing_costs(rows: Sequence[PrunerRow]) -> Iterator[Note]:
    """Cells that are not in the numbers of their row: refused, or measured elsewhere."""
    for row in rows:
        if row.cost is None:
            continue
        seeds = counted(row.cost.cells, "seed")
        if row.cost.refused:
            of = "" if row.cost.cells == 1 else f" for {row.cost.refused} of {seeds}"
            yield Note(f"{row.label}: cost not measured{of}: {row.cost.refusal}")
        for where, count in row.cost.elsewhere.items():
            yield Note(f"{row.label}: {count} of {seeds} measured elsewhere, not shown: {where}")


def _cost_notes(rows: Sequence[PrunerRow]) -> Iterator[Note]:
    costs: dict[str, CostSummary] = {row.label: row.cost for row in rows if row.cost is not None}
    places = dict.fromkeys(cost.where for cost in costs.values())
    for where in places:
        labels = [label for label, cost in costs.items() if cost.where == where]
        yield Note(f"one sample, median: {where}" + (f": {', '.join(labels)}" if len(places) > 1 else ""))
    if not all(cost.same_kernels for cost in costs.values()):
        names = ", ".join(sorted({name for cost in costs.values() for name in cost.kernels})) or "none"
        yield Note(f"pruned runs and floor ran with different attention kernels ({names} when pruned)")
    reasons = dict.fromkeys(f"{name}: {why}" for cost in costs.values() for name, why in cost.unmeasured.items())
    yield from (Note(f"not measured: {reason}") for reason in reasons)


def summary_sections(summary: Summary) -> Iterator[Section]:
    """The budget that each retention needs, and the Pareto fronts, of one model and task."""
    subject = f"{summary.model}, {summary.task}"
    targets = [found.target for found in next(iter(summary.needed.values()), ())]
    labels = dict.fromkeys([*summary.needed, *(label for front in summary.fronts for label in front.hypervolumes)])
    shares = [Column(f"retention_{target}", f"for {100.0 * target:g} %") for target in targets]
    areas = [_COSTS[front.cost][1] for front in summary.fronts]
    rows = []
    for label in labels:
        needed = summary.needed.get(label) or [None] * len(targets)
        volumes = [number(it.hypervolumes.get(label), 3) + it.marks.get(label, "") for it in summary.fronts]
        rows.append((label, *map(token_share, needed), *volumes))
    kept = "after the last cut" if summary.account == "kept" else "averaged over the layers"
    notes = [
        Note(
            f"{shares[0].heading}: share of the visual tokens {kept} that retains 99 % of the unpruned accuracy, "
            "between the measured budgets on a straight line"
            if shares
            else "no retention: the unpruned model has no result, or answers nothing right",
            tuple(share.key for share in shares),
        ),
        Note(
            "HV (hypervolume): share of the box from no cost to the unpruned cost, accuracy 0 to 1, that is dominated; "
            "a point that costs more than the unpruned model adds nothing",
            tuple(area.key for area in areas),
        ),
    ]
    notes = notes if areas else notes[:1]
    notes += [note for front in summary.fronts for note in front.notes if note.mark]
    notes += [Note(f"no front over {_COSTS[cost][0]}: {why}") for cost, why in summary.unmeasured.items()]
    what = "tokens needed per retention" if targets else "hypervolumes"
    if rows:
        yield Section(f"{subject}: {what}", (column("pruner"), *shares, *areas), tuple(rows), tuple(notes))
    for front in summary.fronts:
        yield _front_section(subject, front)


def _front_section(subject: str, front: Front) -> Section:
    what, _, digits = _COSTS[front.cost]

    columns = (
        column("pruner"),
        _BUDGET,
        column(front.cost).of(lambda point: (point.text or number(point.cost, digits)) + point.mark),
        column("accuracy").of(lambda point: percent(point.accuracy)),
    )
    marks = "".join(dict.fromkeys("".join(front.marks.values())))
    notes = [Note(f"hypervolume of all pruners together: {front.hypervolume:.3f}{marks}"), *front.notes]
    return Section.of(f"{subject}: Pareto front of accuracy and {what}", columns, front.points, notes)


def hard_sections(tables: Sequence[BudgetTable]) -> Iterator[Section]:
    """Accuracy on the hard subset, one column per budget; nothing if it is empty at all of them."""
    found = [{row.label: row for row in table.rows if row.hard is not None} for table in tables]
    labels = dict.fromkeys(row.label for table in tables for row in table.rows)
    text = column("hard").render
    rows = tuple(
        (label, *(text(hard[label]) if label in hard else NOTHING for hard in found))
        for label in labels
        if any(label in hard for hard in found)
    )
    if not rows:
        return
    columns = [Column(table.budget, f"{table.budget} ({table.hard.questions})") for table in tables]
    notes = [
        Note("hard: what the unpruned model answers and `downsample` at that budget does not (number of questions)"),
        Note("`downsample` itself is wrong there by definition"),
        *(Note(f"{table.budget}: {table.hard.reason}") for table in tables if table.hard.reason),
    ]
    title = f"{tables[0].model}, {tables[0].task}: accuracy % on the hard subset"
    yield Section(title, (column("pruner"), *columns), rows, tuple(notes))


def stability_sections(tables: Sequence[BudgetTable]) -> Iterator[Section]:
    """How much accuracy and rank move with the seed, if several seeds ran."""
    found = [(table.budget, table.stability) for table in tables if table.stability is not None]
    if not found:
        return
    budgets = [(budget, entry) for budget, stability in found for entry in stability.seeded]
    notes = []
    for budget, stability in found:
        why = f" ({stability.reason})" if stability.reason else ""
        notes.append(Note(f"{budget}: Kendall's W {number(stability.kendall_w, 2)}{why}"))
        notes += [Note(f"{budget}: {reason}") for reason in stability.left_out]

    columns = (
        column("pruner").of(lambda item: item[1].label),
        _BUDGET.of(lambda item: item[0]),
        column("accuracy").of(lambda item: " to ".join(map(percent, item[1].accuracy))),
        Column("ranks", "rank", lambda item: " to ".join(map(str, item[1].ranks))),
    )
    seeds = max(stability.seeds for _, stability in found)
    yield Section.of(f"{tables[0].model}, {tables[0].task}: over {seeds} seeds", columns, budgets, notes)


def family_sections(tables: Sequence[BudgetTable]) -> Iterator[Section]:
    """Accuracy of every pruner in every task family with its interval, and the differences to the baselines."""
    columns = (
        column("pruner"),
        Column("family", "family", words=True, importance=0),
        Column("questions", "questions", importance=4),
        *map(column, ("accuracy", "interval", "against_random", "against_downsample")),
    )
    notes = (Note(f"*: {HOLM}", mark="*"), Note(f"interval {NOTHING}: fewer than {FEWEST} pictures", ("interval",)))
    for table in tables:
        title = f"{table.model}, {table.task}: families at {budget_text(table.budget)}"
        # the score of a family has the same fields as a row
        rows = tuple(
            (row.label, family, str(score.questions), *(shown.render(score) for shown in columns[3:]))
            for row in table.rows
            for family, score in (row.families or {}).items()
        )
        if rows:
            yield Section(title, columns, rows, notes)


def pair_section(table: PairTable) -> Section:
    """Every pair of pruners at one budget, the most different ones first."""
    columns = (
        column("pruner").of(lambda pair: pair.first),
        Column("second", "minus", lambda pair: pair.second, words=True, importance=0),
        Column("difference", "difference", lambda pair: percentage_points(pair.difference), importance=2),
        Column("p_adjusted", "p", lambda pair: p_value(pair.p_adjusted), importance=3),
        Column("p", "p alone", lambda pair: p_value(pair.p)),
    )
    pairs = sorted(table.pairs, key=lambda pair: (pair.p_adjusted, -abs(pair.difference.mean)))
    text = f"p: of equally good, after Holm's correction for {counted(len(table.pairs), 'pair')}"
    title = f"{table.model}, {table.task}: pairs at {table.budget}"
    return Section.of(title, columns, pairs, [Note(text, ("p_adjusted",))])


def environment_sections(environments: Sequence[Shared]) -> Iterator[Section]:
    """A table of the environments of a sweep; nothing if its results are all of one that is known."""
    if not environments or (len(environments) == 1 and environments[0].name != UNKNOWN):
        return
    names = dict.fromkeys(name for each in environments for name in each.differs)
    columns = (
        Column("environment", "environment", words=True, importance=0),
        Column("answered", "cells answered"),
        Column("measured", "costs measured"),
        *(Column(name, name, words=True, importance=0) for name in names),
    )
    rows = tuple(
        (it.name, str(len(it.answered)), str(len(it.measured)), *(it.differs.get(name, NOTHING) for name in names))
        for it in environments
    )
    notes = []
    if len(environments) > 1:
        text = "cells of one environment can be compared; `tokenprune sweep --rerun` runs the older ones again"
        notes.append(Note(text))
    if any(each.name == UNKNOWN for each in environments):
        text = f"{UNKNOWN}: an older tokenprune wrote these results; what they were run with is not recorded"
        notes.append(Note(text))
    yield Section("What the cells were run with", columns, rows, tuple(notes))
