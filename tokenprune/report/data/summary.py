"""What the tables of one model and task say together: the Pareto front, and the tokens that a retention needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.cells.cell import REFERENCE
from tokenprune.report.data.costs import timing_notes
from tokenprune.report.data.rows import BudgetTable, PrunerRow
from tokenprune.report.stats.tradeoff import TARGETS, Point, TokenShare, hypervolume, pareto_front, tokens_for_retention
from tokenprune.report.text import Note, ratio

ACCOUNTS: Mapping[str, str] = {"kept": "final", "average": "layer_average"}
"""The token account that a sweep's budgets count, by the name of its account."""

COSTS = ("over_unpruned", "layer_average")
"""The costs of the two fronts: prefill time as a share of the unpruned model's in the same turns (milliseconds of rows
that were measured at different times cannot be compared), and visual tokens averaged over the layers."""


@dataclass(frozen=True, slots=True)
class Front:
    """Accuracy against one cost.

    Args:
        cost: `over_unpruned` or `layer_average`.
        reference: Cost of the unpruned model, up to which the hypervolume counts.
        points: The points that no other one dominates, in the order of cost.
        hypervolume: The share of the box from cost 0 to `reference` and accuracy 0 to 1 that the points of all pruners
            dominate.
        hypervolumes: The same by pruner.
        marks: By pruner, the marks of its points, which its hypervolume bears, too.
        notes: Notes on the costs.
    """

    cost: str
    reference: float
    points: tuple[Point, ...]
    hypervolume: float
    hypervolumes: Mapping[str, float]
    marks: Mapping[str, str]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """One model and task over all budgets.

    Args:
        needed: By pruner, the share of visual tokens that each retention of `TARGETS` needs.
        fronts: One per cost that was measured.
        unmeasured: Costs without a front, and why.
    """

    model: str
    task: str
    account: str
    needed: Mapping[str, tuple[TokenShare, ...]]
    fronts: tuple[Front, ...]
    unmeasured: Mapping[str, str]


def summarise(model: str, task: str, tables: Sequence[BudgetTable]) -> Summary:
    """Read the tables of one model and task together."""
    found = {cost: _front(tables, cost) for cost in COSTS}
    account = tables[0].account
    return Summary(
        model,
        task,
        account,
        _needed(tables, ACCOUNTS[account]),
        tuple(front for front in found.values() if isinstance(front, Front)),
        {cost: front for cost, front in found.items() if isinstance(front, str)},
    )


def _front(tables: Sequence[BudgetTable], cost: str) -> Front | str:
    """The front, or why there is none."""
    unpruned = _unpruned(tables)
    reference = None if unpruned is None else 1.0 if cost == "over_unpruned" else _cost(unpruned, cost)
    if unpruned is None or reference is None or unpruned.accuracy is None:
        return "not measured for the unpruned model"
    points: dict[str, list[Point]] = {}
    for point in _points(tables, cost):
        points.setdefault(point.label, []).append(point)
    if not points:
        return "not measured"
    everything = [point for found in points.values() for point in found]
    return Front(
        cost,
        reference,
        pareto_front([*everything, Point(unpruned.label, "all", reference, unpruned.accuracy.mean)]),
        hypervolume(everything, cost=reference) / reference,
        {label: hypervolume(found, cost=reference) / reference for label, found in points.items()},
        {label: "".join(dict.fromkeys("".join(point.mark for point in found))) for label, found in points.items()},
        _timing_notes(tables) if cost == "over_unpruned" else (),
    )


def _timing_notes(tables: Sequence[BudgetTable]) -> tuple[Note, ...]:
    """What is to be said of the points of a front over measured time."""
    costs = [row.cost for table in tables for row in table.rows if row.cost and row.over_unpruned is not None]
    places = dict.fromkeys(cost.where for cost in costs)
    several = [Note(f"measured in several places: {'; '.join(places)}")] if len(places) > 1 else []
    text = (
        "prefill time as a share of the unpruned model's, with the 95 % interval of the median. A share whose interval "
        "holds 1 counts as 1; points whose intervals overlap may be in another order"
    )
    return (Note(text, ("over_unpruned",)), *several, *timing_notes(costs))


def _points(tables: Sequence[BudgetTable], cost: str) -> Iterator[Point]:
    for table in tables:
        for row in table.rows:
            value = _cost(row, cost)
            if row.pruner == REFERENCE or row.accuracy is None or value is None:
                continue
            timed = row.cost is not None and cost == "over_unpruned"
            mark = row.cost.marks(cost) if row.cost is not None and timed else ""
            text = ratio(row.over_unpruned, row.over_unpruned_interval) if timed else ""
            yield Point(row.label, table.budget, value, row.accuracy.mean, mark, text)


def _cost(row: PrunerRow, cost: str) -> float | None:
    return row.counted("over_unpruned") if cost == "over_unpruned" else (row.tokens or {}).get(cost)


def _unpruned(tables: Sequence[BudgetTable]) -> PrunerRow | None:
    return next((row for row in tables[0].rows if row.pruner == REFERENCE), None)


def _needed(tables: Sequence[BudgetTable], account: str) -> dict[str, tuple[TokenShare, ...]]:
    """Retention against the realised share of tokens; a failed pruner retains nothing at the share it was asked for."""
    unpruned = _unpruned(tables)
    original = None if unpruned is None else (unpruned.tokens or {}).get("original")
    if not original:
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for table in tables:
        for row in table.rows:
            if row.pruner != REFERENCE and row.retention is not None:
                realised = (row.tokens or {}).get(account)
                share = _asked(table.budget, original) if realised is None else realised / original
                curves.setdefault(row.label, []).append((share, row.retention.mean))
    return {
        label: tuple(found for target in TARGETS if (found := tokens_for_retention(curve, target)) is not None)
        for label, curve in curves.items()
    }


def _asked(budget: str, original: float) -> float:
    """The share behind a budget's label."""
    return float(budget[:-1]) / 100.0 if budget.endswith("%") else min(1.0, float(budget) / original)
