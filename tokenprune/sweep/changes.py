"""Why a sweep that continues has new cells: what changed since its last plan, in a line each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenprune.sweep.plan import Cell

_SAME_CELL = ("model", "task", "label", "budget_ratio", "budget_tokens", "seed")
"""What a person calls the same cell; everything else that its id covers may have changed."""

_NO_MATTER = frozenset({"id", "reference", "efficiency", *_SAME_CELL})


def explain_changes(before: Iterable[Mapping[str, Any]], cells: Iterable[Cell]) -> tuple[str, ...]:
    """Say why cells that were planned before have another id now.

    Args:
        before: The cells of the last plan as they were stored, perhaps by another version.
        cells: The cells of the plan now.

    Returns:
        One sentence per cause, the most frequent first; empty where nothing changed.
    """
    known: dict[tuple[Any, ...], Mapping[str, Any]] = {_place(row): row for row in before}
    causes: Counter[str] = Counter()
    for cell in cells:
        now = cell.to_json()
        row = known.get(_place(now))
        if row is not None and row.get("id") != now["id"]:
            causes.update(_causes(row, now))
    return tuple(
        f"{count} {'cell is' if count == 1 else 'cells are'} new: {cause}" for cause, count in causes.most_common()
    )


def explain_measurements(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Say that cells keep their answers and are measured again, because it is to be done in another way."""
    if not cells:
        return ()
    count = f"{len(cells)} {'cell keeps its' if len(cells) == 1 else 'cells keep their'} answers"
    return (f"{count}, and the cost is measured again: `efficiency` changed",)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _SAME_CELL)


def _causes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
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
