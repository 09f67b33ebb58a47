"""What a sweep that continues finds in its directory, and why it has cells to run: a line for each cause."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.cells.cell import Cell
from tokenprune.evaluation.environment import Installed, versions_here, versions_in
from tokenprune.sweep.store.result_store import CellState, SweepStore

_SAME_CELL = ("model", "task", "label", "budget_ratio", "budget_tokens", "seed")
"""What a person calls the same cell; everything else that its id covers may have changed."""

_NAMED = 3
"""Damaged cells that are named."""

_RERUN = "`--rerun` takes such cells up again"

_NO_MATTER = frozenset({"id", "reference", "efficiency", *_SAME_CELL})


@dataclass(frozen=True, slots=True)
class Survey:
    """How far the cells of a plan are.

    Args:
        states: The state of every cell by its id; damaged ones and those to measure again are pending.
        asked_again: Cells that were answered, and must be asked anew.
        measured_again: Cells whose answers stay, and whose cost is measured anew.
        changes: Why there are cells to run that a person may take for finished ones, a sentence each.
    """

    states: Mapping[str, CellState]
    asked_again: tuple[Cell, ...]
    measured_again: tuple[Cell, ...]
    changes: tuple[str, ...]


def survey(store: SweepStore, cells: Sequence[Cell], *, rerun: bool = False) -> Survey:
    """Look what a directory holds of a plan; nothing is written, and the plan before it must still be there.

    Args:
        store: The sweep directory.
        cells: The plan.
        rerun: Take up again what was run with other versions than those that are installed here.
    """
    damaged = [cell for cell in cells if store.damaged(cell)]
    found = [cell for cell in cells if cell not in damaged]
    otherwise = [cell for cell in found if store.measured_otherwise(cell)]
    older, older_costs = _of_other_versions(store, found)
    asked = {cell.id for cell in damaged}
    measured = {cell.id for cell in otherwise}
    if rerun:
        asked |= set(older)
        # what was compared with an unpruned cell that is asked again is compared with the new one
        asked |= {cell.id for cell in found if cell.reference in older and store.settled(cell.id) is not None}
        measured |= set(older_costs)
    measured -= asked
    again = asked | measured
    states: dict[str, CellState] = {cell.id: "pending" if cell.id in again else store.state(cell.id) for cell in cells}
    return Survey(
        states,
        tuple(cell for cell in cells if cell.id in asked),
        tuple(cell for cell in cells if cell.id in measured),
        (
            *explain_changes(store.planned_rows(), cells),
            *_explain_damage(damaged),
            *_explain_measurements(otherwise),
            *_explain_versions("run", older.values(), rerun=rerun),
            *_explain_versions("measured", older_costs.values(), rerun=rerun),
            *_explain_begun(store, [cell for cell in cells if states[cell.id] == "pending"]),
        ),
    )


def explain_changes(before: Iterable[Mapping[str, Any]], cells: Sequence[Cell]) -> tuple[str, ...]:
    """Say why cells that were planned before have another id now.

    Args:
        before: The cells of the last plan as they were stored, perhaps by another version.
        cells: The cells of the plan now.

    Returns:
        One sentence per cause, the most frequent first; empty where nothing changed.
    """
    rows = list(before)
    planned = {cell.id for cell in cells}
    gone: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("id") not in planned:
            gone.setdefault(_place(row), []).append(row)
    known = {row.get("id") for row in rows}
    causes: Counter[str] = Counter()
    for now in (cell.to_json() for cell in cells if cell.id not in known):
        # of several cells of one name (a task listed twice), the one that was most like it
        differing = sorted((_differing(row, now) for row in gone.get(_place(now), ())), key=len)
        causes.update(*differing[:1])
    return tuple(
        f"{count} {'cell is' if count == 1 else 'cells are'} new: {cause}" for cause, count in causes.most_common()
    )


def _of_other_versions(store: SweepStore, cells: Iterable[Cell]) -> tuple[dict[str, str], dict[str, str]]:
    """What differs, by the id of the cell: of its answers, and of its cost where that alone was measured elsewhere."""
    installed = Installed()
    answers: dict[str, str] = {}
    costs: dict[str, str] = {}
    for cell in cells:
        found = store.settled(cell.id)
        if found is None:
            continue
        cost = found.get("cost") or {}
        if difference := _versions_differ(found.get("environment"), installed):
            answers[cell.id] = difference
        elif "environment" in cost and (difference := _versions_differ(cost["environment"], installed)):
            costs[cell.id] = difference
    return answers, costs


def _versions_differ(block: object, installed: Installed) -> str:
    """How the versions that a block says differ from those that are here, in words; empty where they are the same."""
    if not isinstance(block, Mapping):
        return "versions that they do not say (an older tokenprune wrote them)"
    before = versions_in(block)
    here = versions_here(before, installed)
    names = [name for name in before if before[name] != here[name]]
    then = [f"{name} {before[name] or '(none)'}" for name in names]
    now = [here[name] or "(none)" for name in names]
    return f"{_listed(then)}, here {'it is' if len(names) == 1 else 'they are'} {_listed(now)}" if names else ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), *parts[-1:]])


def _explain_versions(done: str, differences: Iterable[str], *, rerun: bool) -> Iterator[str]:
    """A sentence per difference: what was run or measured with other versions, and what becomes of it."""
    for difference, number in Counter(differences).most_common():
        count = f"{number} {'cell was' if number == 1 else 'cells were'} {done} with {difference}"
        yield (
            f"{count}: {done} again"
            if rerun
            else f"{count}: kept as {'it is' if number == 1 else 'they are'}; {_RERUN}"
        )


def _explain_begun(store: SweepStore, cells: Iterable[Cell]) -> Iterator[str]:
    """What becomes of cells that were stopped while they were asked."""
    installed = Installed()
    found = [(cell, begun) for cell in cells if (begun := store.partial(cell.id)) is not None and begun.batches]
    differing = [(begun, _versions_differ(begun.origin.get("environment"), installed)) for _, begun in found]
    same = [(cell, begun) for (cell, begun), (_, difference) in zip(found, differing, strict=True) if not difference]
    if same:
        asked, samples = sum(begun.questions for _, begun in same), sum(cell.samples for cell, _ in same)
        count = "1 cell goes on where it was" if len(same) == 1 else f"{len(same)} cells go on where they were"
        yield f"{count} stopped: {asked} of {samples} questions are answered"
    for begun, difference in differing:
        if difference:
            yield f"1 cell is asked from its start: {begun.questions} questions were answered with {difference}"


def _explain_damage(cells: Sequence[Cell]) -> tuple[str, ...]:
    if not cells:
        return ()
    count = f"{len(cells)} {'cell is' if len(cells) == 1 else 'cells are'} asked again"
    named = ", ".join(f"`cells/{cell.id}`" for cell in cells[:_NAMED])
    more = f" and {len(cells) - _NAMED} more" if len(cells) > _NAMED else ""
    return (f"{count}: files of {named}{more} are damaged",)


def _explain_measurements(cells: Sequence[Cell]) -> tuple[str, ...]:
    if not cells:
        return ()
    count = f"{len(cells)} {'cell keeps its' if len(cells) == 1 else 'cells keep their'} answers"
    return (f"{count}, and the cost is measured again: `efficiency` changed",)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _SAME_CELL)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The causes why one cell is not the other."""
    names = [name for name in now if name not in _NO_MATTER and name in before and before[name] != now[name]]
    return [_cause(name, before, now) for name in names] or [
        "this version of tokenprune tells cells apart in another way"
    ]


def _cause(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (row[name] for row in (before, now))
    if name == "model_digest":
        return f"the files of model `{now['model']}` changed ({old} to {new})"
    if name == "task_digest":
        return f"the data of task `{now['task']}` changed ({old} to {new})"
    if name == "task_version":
        return f"task `{now['task']}` went from version {old} to {new}"
    if name == "distribution_version":
        return f"`{now['distribution']}` went from version {old or '(none)'} to {new or '(none)'}"
    if name == "distribution":
        return f"pruner `{now['pruner']}` comes from `{new}` instead of `{old}`"
    return f"`{name}` changed from {json.dumps(old)} to {json.dumps(new)}"
