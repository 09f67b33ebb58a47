"""What went wrong, case by case: questions that a pruner loses, and cells that have no result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenprune.report.data.groups import BudgetGroup, subjects_of
from tokenprune.report.stats.scores import RIGHT
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData

PAGE_CASES = 12_000
"""Lost questions that one page lists in all; if there are more, each cell lists an evenly spaced part of its own."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a task."""

    text: str
    answer: str
    family: str


@dataclass(frozen=True, slots=True)
class Lost:
    """What one cell loses: questions that it answers wrong and the unpruned model right.

    Args:
        label: The pruner as tables name it, with its seed if that is not 0.
        budget: Label of the budget.
        lost: Place of each lost question in the task, and what was answered instead.
        errors: How many of them were not answered because the sample raised an error.
    """

    label: str
    budget: str
    lost: tuple[tuple[int, str], ...]
    errors: int


@dataclass(frozen=True, slots=True)
class Cases:
    """The lost questions of one model and task.

    Args:
        model: The model.
        task: The task with its options.
        questions: Every question that some cell loses, by its place in the task.
        right: How many questions the unpruned model answers right.
        cells: One entry per cell with a result, in the order of the plan.
    """

    model: str
    task: str
    questions: Mapping[int, Question]
    right: int
    cells: tuple[Lost, ...]

    def hardest(self) -> list[tuple[int, int]]:
        """Place of each lost question and how many cells lose it, the most lost ones first."""
        counts = Counter(place for cell in self.cells for place, _ in cell.lost)
        return sorted(counts.items(), key=lambda found: (-found[1], found[0]))


@dataclass(frozen=True, slots=True)
class Problem:
    """A cell without a result, or with samples that raised.

    Args:
        cell: The cell's name.
        model: Its model.
        outcome: `failed`, `refused`, or `sample errors`.
        reason: What was raised.
        hint: What can be done, if the error says so.
    """

    cell: str
    model: str
    outcome: str
    reason: str
    hint: str = ""


def cases_of(data: SweepData) -> Iterator[Cases]:
    """The lost questions of every model and task that has a result of the unpruned model."""
    for model, task, groups in subjects_of(data):
        unpruned = [entry for group in groups[:1] for entry in group.unpruned if entry.state == "done"]
        if unpruned:
            yield _cases(data, model, task, unpruned[0], groups)


def problems_of(data: SweepData) -> list[Problem]:
    """Every cell that failed, was refused, or has samples that raised."""
    found = []
    for entry in data.cells:
        name, model = entry.cell.name, entry.cell.model
        if entry.error is not None:
            reason, hint = str(entry.error.get("message", "")), str(entry.error.get("hint", ""))
            found.append(Problem(name, model, entry.state, reason, hint))
        elif entry.result is not None and entry.result["quality"]["errors"]:
            first = next((row["error"] for row in data.samples(entry.cell) if row["error"]), "")
            reason = f"{entry.result['quality']['errors']} of {entry.cell.samples} samples, the first one: {first}"
            found.append(Problem(name, model, "sample errors", reason))
    return found


def evenly_spaced(cases: Sequence[tuple[int, str]], limit: int) -> list[tuple[int, str]]:
    """At most `limit` cases, evenly spaced, so that no family of questions is left out for standing last."""
    if len(cases) <= limit:
        return list(cases)
    return [cases[int(place)] for place in np.linspace(0, len(cases) - 1, limit)]


def _cases(data: SweepData, model: str, task: str, unpruned: CellRecord, groups: Sequence[BudgetGroup]) -> Cases:
    base = data.samples(unpruned.cell)
    right = {place for place, row in enumerate(base) if float(row["score"]) >= RIGHT}
    cells = [
        _lost(data, entry, right)
        for group in groups
        for entries in group.pruned.values()
        for entry in entries
        if entry.state == "done"
    ]
    places = sorted({place for cell in cells for place, _ in cell.lost})
    questions = {
        place: Question(str(base[place]["question"]), _text(base[place]["answer"]), str(base[place]["family"]))
        for place in places
    }
    return Cases(model, task, questions, len(right), tuple(cells))


def _lost(data: SweepData, entry: CellRecord, right: set[int]) -> Lost:
    rows = data.samples(entry.cell)
    lost = [(place, row) for place, row in enumerate(rows) if place in right and float(row["score"]) < RIGHT]
    seed = f" seed {entry.cell.seed}" if entry.cell.seed else ""
    said = tuple((place, f"error: {row['error']}" if row["error"] else str(row["prediction"])) for place, row in lost)
    errors = sum(1 for _, row in lost if row["error"])
    return Lost(f"{entry.cell.label}{seed}", entry.cell.budget_label, said, errors)


def _text(answer: Any) -> str:
    return ", ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer)
