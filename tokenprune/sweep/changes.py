"""What a sweep that continues finds in its directory, and why it has cells to run: a line for each cause."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.sweep.ledger import CellState, Ledger
from tokenprune.sweep.plan import Cell

_SAME_CELL = ("model", "task", "label", "budget_ratio", "budget_tokens", "seed")
"""What a person calls the same cell; everything else that its id covers may have changed."""

_NAMED = 3
"""Damaged cells that are named."""

_NO_MATTER = frozenset({"id", "reference", "efficiency", *_SAME_CELL})


@dataclass(frozen=True, slots=True)
class Survey:
    """How far the cells of a plan are.

    Args:
        states: The state of every cell by its id; damaged ones and those to measure again are pending.
        damaged: Cells that were answered, and must be asked anew.
        measured_otherwise: Cells whose answers stay, and whose cost is measured anew.
        changes: Why there are cells to run that a person may take for finished ones, a sentence each.
    """

    states: Mapping[str, CellState]
    damaged: tuple[Cell, ...]
    measured_otherwise: tuple[Cell, ...]
    changes: tuple[str, ...]


def survey(ledger: Ledger, cells: Sequence[Cell]) -> Survey:
    """Look what a directory holds of a plan; nothing is written, and the plan before it must still be there."""
    damaged = tuple(cell for cell in cells if ledger.damaged(cell))
    measured = tuple(cell for cell in cells if ledger.measured_otherwise(cell) and cell not in damaged)
    again = {cell.id for cell in (*damaged, *measured)}
    states: dict[str, CellState] = {cell.id: "pending" if cell.id in again else ledger.state(cell.id) for cell in cells}
    changes = explain_changes(ledger.planned_rows(), cells)
    return Survey(states, damaged, measured, (*changes, *_explain_damage(damaged), *_explain_measurements(measured)))


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
