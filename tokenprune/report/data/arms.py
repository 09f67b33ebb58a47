"""The cells of a sweep, grouped as tables show them: by model and task, then by budget, then by pruner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.cell import REFERENCE
from tokenprune.report.stats.hard import DOWNSAMPLE
from tokenprune.report.stats.paired import CONTROL
from tokenprune.report.stats.scores import Scores, read_scores
from tokenprune.report.text import counted
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData


@dataclass(frozen=True, slots=True)
class Arm:
    """The cells of one model, task and budget, with their scores by label.

    Args:
        budget: Label of the budget.
        unpruned: The cells of the unpruned model.
        groups: Cells of each pruner by label, one per seed.
        base: Scores of the unpruned model.
        scores: Scores of every pruner that has some.
        baselines: Label and scores of `random` and of down-sampling by name, where they have a result; of several
            variants of one of them the first in the plan.
    """

    budget: str
    unpruned: Sequence[CellRecord]
    groups: Mapping[str, Sequence[CellRecord]]
    base: Scores | None
    scores: Mapping[str, Scores]
    baselines: Mapping[str, tuple[str, Scores]]


def subjects_of(data: SweepData) -> Iterator[tuple[str, str, list[Arm]]]:
    """Model, task, and what was run on them at each budget."""
    for subject in dict.fromkeys((entry.cell.model, entry.cell.task, _task_options(entry)) for entry in data.cells):
        entries = [
            entry for entry in data.cells if (entry.cell.model, entry.cell.task, _task_options(entry)) == subject
        ]
        unpruned = [entry for entry in entries if entry.cell.pruner == REFERENCE]
        pruned = [entry for entry in entries if entry.cell.pruner != REFERENCE]
        base = read_scores(data, unpruned, None)
        budgets = list(dict.fromkeys(entry.cell.budget_label for entry in pruned)) or ["all"]
        arms = [
            _arm(data, budget, unpruned, [entry for entry in pruned if entry.cell.budget_label == budget], base)
            for budget in budgets
        ]
        yield subject[0], _task_name(entries[0]), arms


def _arm(
    data: SweepData, budget: str, unpruned: Sequence[CellRecord], pruned: Sequence[CellRecord], base: Scores | None
) -> Arm:
    groups: dict[str, list[CellRecord]] = {}
    for entry in pruned:
        groups.setdefault(entry.cell.label, []).append(entry)
    read = {label: read_scores(data, entries, base) for label, entries in groups.items()}
    scores = {label: found for label, found in read.items() if found is not None}
    baselines: dict[str, tuple[str, Scores]] = {}
    for label, found in scores.items():
        name = groups[label][0].cell.pruner
        if name in (CONTROL, DOWNSAMPLE) and found.known().any():
            baselines.setdefault(name, (label, found))
    return Arm(budget, unpruned, groups, base, scores, baselines)


def baseline_notes(arm: Arm) -> tuple[str, ...]:
    """Which of several variants of a baseline the others are compared with, and what it did not answer."""
    notes = []
    for name, (label, found) in arm.baselines.items():
        variants = [other for other, entries in arm.groups.items() if entries[0].cell.pruner == name]
        if len(variants) > 1:
            notes.append(f"vs {name}: compared with `{label}`, the first of {len(variants)} variants that ran")
        missing = int((~found.known()).sum())
        if missing:
            notes.append(
                f"vs {name}: without {counted(missing, 'question')} on which `{label}` raised an error, "
                "which would make it easier to beat"
            )
        failed = int((~found.answered.any(axis=1)).sum())
        if failed:
            notes.append(f"vs {name}: without {counted(failed, 'cell')} of `{label}` that failed")
    return tuple(notes)


def _task_options(entry: CellRecord) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(entry.cell.task_options.items()))


def _task_name(entry: CellRecord) -> str:
    options = _task_options(entry)
    return f"{entry.cell.task} ({options})" if options else entry.cell.task
