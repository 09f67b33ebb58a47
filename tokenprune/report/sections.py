"""The tables below the leaderboard, as text that a terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from tokenprune.report.costs import CostSummary, Quartiles
from tokenprune.report.pareto import Point
from tokenprune.report.rows import Row, Table
from tokenprune.report.summary import Front, Summary
from tokenprune.report.tables import Leaderboard, PairTable
from tokenprune.report.text import (
    BUSY,
    NOTHING,
    contrast,
    ends,
    number,
    p_value,
    percent,
    points,
    quartiles,
    share,
)

_COSTS = {
    "prefill_ms": ("prefill time", "prefill ms", "HV time", 1),
    "layer_average": ("layer-averaged tokens", "layer average", "HV tokens", 0),
}
"""Of each cost: what it is, the headings of its column and of its hypervolume, and its digits."""


@dataclass(frozen=True, slots=True)
class Section:
    """One table.

    Args:
        title: Heading.
        header: Names of the columns.
        rows: One text per column and row.
        names: Columns that hold names; the others hold numbers.
        notes: Sentences below.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: tuple[str, ...] = ("pruner",)
    notes: tuple[str, ...] = ()


def sections_of(board: Leaderboard, *, families: bool = True) -> list[Section]:
    """Everything below the leaderboard but the pairs, with or without the task families."""
    made: list[Section] = []
    for summary in board.summaries:
        tables = [table for table in board.tables if (table.model, table.task) == (summary.model, summary.task)]
        made += [*summary_sections(summary), *cost_sections(tables)]
        made += [*hard_sections(tables), *stability_sections(tables)]
        made += family_sections(tables) if families else ()
    return made


def summary_sections(summary: Summary) -> Iterator[Section]:
    """The budget that each retention needs, and the Pareto fronts, of one model and task."""
    subject = f"{summary.model}, {summary.task}"
    volumes = [(_COSTS[front.cost][2], front.hypervolumes) for front in summary.fronts]
    labels = dict.fromkeys([*summary.needed, *(label for _, found in volumes for label in found)])
    rows = []
    for label in labels:
        found = summary.needed.get(label, ())
        areas = [number(volume.get(label), 3) for _, volume in volumes]
        rows.append((label, *(map(share, found) if found else [NOTHING] * len(_targets(summary))), *areas))
    counted = "after the last cut" if summary.account == "kept" else "averaged over the layers"
    notes = [
        f"for 99 %: share of the visual tokens {counted} that retains 99 % of the unpruned accuracy, "
        "between the measured budgets on a straight line"
    ]
    if volumes:
        notes.append(
            "HV: share of the box from no cost to the unpruned cost, accuracy 0 to 1, that is dominated; a point that "
            "costs more than the unpruned model adds nothing"
        )
    notes += [f"no front over {_COSTS[cost][0]}: {why}" for cost, why in summary.unmeasured.items()]
    header = ("pruner", *_targets(summary), *(name for name, _ in volumes))
    if rows:
        yield Section(f"{subject}: tokens needed per retention", header, tuple(rows), notes=tuple(notes))
    for front in summary.fronts:
        yield _front_section(subject, front)


def _targets(summary: Summary) -> list[str]:
    first = next(iter(summary.needed.values()), ())
    return [f"for {100.0 * found.target:g} %" for found in first]


def _front_section(subject: str, front: Front) -> Section:
    what, heading, _, digits = _COSTS[front.cost]

    def row(point: Point) -> tuple[str, ...]:
        return point.label, point.budget, number(point.cost, digits), percent(point.accuracy)

    note = f"hypervolume of all pruners together: {front.hypervolume:.3f}"
    return Section(
        f"{subject}: Pareto front of accuracy and {what}",
        ("pruner", "budget", heading, "accuracy %"),
        tuple(map(row, front.points)),
        notes=(note,),
    )


def cost_sections(tables: Sequence[Table]) -> Iterator[Section]:
    """What every pruner costs at each budget, beside the unpruned model on a prompt of the kept length."""
    for table in tables:
        measured = [(row, row.cost) for row in table.rows if row.cost is not None and row.cost.spreads]
        refused = [(row.label, row.cost.unmeasured["cost"]) for row in table.rows if _is_refused(row.cost)]
        if not measured:
            if refused:
                yield Section(_title(table, "cost"), ("pruner", "refused"), tuple(refused), names=("pruner", "refused"))
            continue
        lines = [(row.label, *_cost_line(row, cost)) for row, cost in measured]
        used = [place for place in range(len(_COST_HEADER)) if any(line[place] != NOTHING for line in lines)]
        yield Section(
            _title(table, "cost"),
            tuple(_COST_HEADER[place] for place in used),
            tuple(tuple(line[place] for place in used) for line in lines),
            notes=(
                *_cost_notes([cost for _, cost in measured]),
                *(f"{label}: cost refused: {why}" for label, why in refused),
                *busy_notes(table.rows),
            ),
        )


_COST_HEADER = (
    "pruner",
    "prefill ms",
    "quartiles",
    "floor ms",
    "x floor",
    "x floor quartiles",
    "pruner ms",
    "pruner %",
    "encoder ms",
    "first token ms",
    "decode ms",
    "floor decode ms",
    "peak MiB",
    "KV MiB",
    "GFLOPs",
    "floor GFLOPs",
    "energy J",
    "repeats",
)


def _cost_line(row: Row, cost: CostSummary) -> tuple[str, ...]:
    def middle(found: Mapping[str, Quartiles], name: str, digits: int) -> str:
        return number(found[name].median if name in found else None, digits)

    tera = cost.floor_figures.get("prefill_tflops")
    return (
        number(row.prefill_ms, 1) + busy_mark(row),
        quartiles(row.prefill_ms_quartiles, 1),
        number(row.floor_prefill_ms, 1),
        number(row.over_floor, 2),
        quartiles(row.over_floor_quartiles, 2),
        number(row.overhead_ms, 1),
        percent(row.overhead_share),
        number(row.encoder_ms, 1),
        number(row.first_token_ms, 1),
        number(row.decode_ms_per_token, 2),
        middle(cost.floor, "decode_ms_per_token", 2),
        number(row.peak_mem_mib, 1),
        number(row.kv_mib, 2),
        number(row.prefill_gflops, 2),
        number(None if tera is None else 1000.0 * tera, 2),
        middle(cost.spreads, "energy_j", 2),
        f"{cost.repeats}{'' if cost.precise is not False else '?'}",
    )


def _cost_notes(costs: Sequence[CostSummary]) -> Iterator[str]:
    yield f"one sample, median: {'; '.join(dict.fromkeys(cost.where for cost in costs))}"
    if any(cost.floor for cost in costs):
        yield (
            "floor: the unpruned model on a prompt that already has the kept length, as many visual tokens as the "
            "layer average; x floor: median and quartiles over the repeats, in which both take turns"
        )
    if any(cost.precise is False for cost in costs):
        yield "`?`: the repeats ran out before the medians were known as well as was asked for"
    if not all(cost.same_kernels for cost in costs):
        used = sorted({name for cost in costs for name in cost.kernels})
        yield f"pruned runs and floor ran with different attention kernels ({', '.join(used) or 'none'} when pruned)"
    reasons = dict.fromkeys(f"{name}: {why}" for cost in costs for name, why in cost.unmeasured.items())
    yield from (f"not measured: {reason}" for reason in reasons if not reason.startswith("cost: "))


def _is_refused(cost: CostSummary | None) -> TypeGuard[CostSummary]:
    return cost is not None and "cost" in cost.unmeasured


def busy_mark(row: Row) -> str:
    """A dagger, where the device had other work while a row's cost was measured."""
    return BUSY if row.busy and row.prefill_ms is not None else ""


def busy_notes(rows: Sequence[Row]) -> list[str]:
    """What the dagger means, where one of the rows has it."""
    shares = [row.busy for row in rows if row.busy and row.prefill_ms is not None]
    if not shares:
        return []
    return [f"{BUSY}: other work had up to {100.0 * max(shares):.0f} % of the device when this was measured"]


def _title(table: Table, what: str) -> str:
    budget = table.budget if table.budget.endswith("%") else f"{table.budget} tokens"
    return f"{table.model}, {table.task}: {what} at {budget}"


def hard_sections(tables: Sequence[Table]) -> Iterator[Section]:
    """Accuracy on the hard subset, one column per budget."""
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    found = [{row.label: row.hard for row in table.rows} for table in tables]
    rows = tuple(
        (label, *(NOTHING if (value := hard.get(label)) is None else percent(value.mean) for hard in found))
        for label in labels
        if any(hard.get(label) is not None for hard in found)
    )
    notes = [
        "hard: what the unpruned model answers and `downsample` at that budget does not (how many questions)",
        "`downsample` itself is wrong there by definition",
        *(f"{table.budget}: {table.hard.reason}" for table in tables if table.hard.reason),
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
        notes.append(f"{table.budget}: Kendall's W {agreement}")
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
                notes=("`*`: p < 0.05 after Holm's correction for all families, pruners and baselines of this table",),
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
        notes=(f"p: of equally good, after Holm's correction for the {len(pairs)} pairs",),
    )
