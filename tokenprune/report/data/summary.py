"""What the tables of one model and task say together: the Pareto front, and the tokens that a retention needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.cell import REFERENCE
from tokenprune.report.data.notes import Note, timing_marks, timing_notes
from tokenprune.report.data.rows import Row, Table
from tokenprune.report.stats.pareto import Point, hypervolume, pareto_front
from tokenprune.report.stats.retention import TARGETS, Needed, needed
from tokenprune.report.text import ratio

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
        reference: Cost of the unpruned model, where the hypervolume ends.
        points: The points that no other one dominates, in the order of cost.
        hypervolume: The share of the box from cost 0 to `reference` and accuracy 0 to 1 that the points of all pruners
            dominate.
        hypervolumes: The same by pruner.
        marks: By pruner, the marks of its points: its hypervolume is to be read with the same care.
        notes: What is to be said of the costs.
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
    needed: Mapping[str, tuple[Needed, ...]]
    fronts: tuple[Front, ...]
    unmeasured: Mapping[str, str]


def summarise(model: str, task: str, tables: Sequence[Table]) -> Summary:
    """Read the tables of one model and task together."""
    fronts, unmeasured = [], {}
    for cost in COSTS:
        front = _front(tables, cost)
        if isinstance(front, str):
            unmeasured[cost] = front
        else:
            fronts.append(front)
    account = tables[0].account
    return Summary(model, task, account, _needed(tables, ACCOUNTS[account]), tuple(fronts), unmeasured)


def _front(tables: Sequence[Table], cost: str) -> Front | str:
    """The front, or why there is none."""
    unpruned = next((row for row in tables[0].rows if row.pruner == REFERENCE), None)
    reference = None if unpruned is None else 1.0 if cost == "over_unpruned" else _cost(unpruned, cost)
    if unpruned is None or reference is None or unpruned.accuracy is None:
        return "not measured for the unpruned model"
    points = list(_points(tables, cost))
    if not points:
        return "not measured"
    whole = Point(unpruned.label, "all", reference, unpruned.accuracy.mean)
    volumes = {
        label: hypervolume([point for point in points if point.label == label], cost=reference) / reference
        for label in dict.fromkeys(point.label for point in points)
    }
    together = hypervolume(points, cost=reference) / reference
    notes = _timing_notes(tables) if cost == "over_unpruned" else ()
    marks = {label: "".join(dict.fromkeys(_marks_of(points, label))) for label in volumes}
    return Front(cost, reference, pareto_front([*points, whole]), together, volumes, marks, notes)


def _marks_of(points: Sequence[Point], label: str) -> str:
    return "".join(point.mark for point in points if point.label == label)


def _timing_notes(tables: Sequence[Table]) -> tuple[Note, ...]:
    """What the points of a front over measured time are to be read with."""
    rows = [row for table in tables for row in table.rows if row.over_unpruned is not None]
    places = dict.fromkeys(row.cost.where for row in rows if row.cost is not None)
    several = [Note(f"measured in several places: {'; '.join(places)}")] if len(places) > 1 else []
    text = (
        "x none: prefill divided by that of the unpruned model, which is 1, with the 95 % interval of the median. What "
        "cannot be told from 1 counts as 1; points whose intervals overlap may be in another order"
    )
    return (Note(text, ("x none",)), *several, *timing_notes(rows))


def _points(tables: Sequence[Table], cost: str) -> Iterable[Point]:
    for table in tables:
        for row in table.rows:
            value = _cost(row, cost)
            if row.pruner != REFERENCE and row.accuracy is not None and value is not None:
                timed = cost == "over_unpruned"
                mark = timing_marks(row, cost) if timed else ""
                text = ratio(row.over_unpruned, row.over_unpruned_interval) if timed else ""
                yield Point(row.label, table.budget, value, row.accuracy.mean, mark, text)


def _cost(row: Row, cost: str) -> float | None:
    return row.counted("over_unpruned") if cost == "over_unpruned" else (row.tokens or {}).get(cost)


def _needed(tables: Sequence[Table], account: str) -> dict[str, tuple[Needed, ...]]:
    """Retention against the realised share of tokens; a failed pruner retains nothing at the share it was asked for."""
    unpruned = next((row for row in tables[0].rows if row.pruner == REFERENCE), None)
    original = (unpruned.tokens or {}).get("original") if unpruned is not None else None
    if not original:
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for table in tables:
        for row in table.rows:
            if row.pruner == REFERENCE or row.retention is None:
                continue
            realised = (row.tokens or {}).get(account)
            share = realised / original if realised is not None else _asked(table.budget, original)
            curves.setdefault(row.label, []).append((share, row.retention.mean))
    return {
        label: tuple(found for target in TARGETS if (found := needed(curve, target)) is not None)
        for label, curve in curves.items()
    }


def _asked(budget: str, original: float) -> float:
    """The share behind a budget's label."""
    return float(budget[:-1]) / 100.0 if budget.endswith("%") else min(1.0, float(budget) / original)
