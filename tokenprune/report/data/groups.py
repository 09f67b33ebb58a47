"""The cells of a sweep, grouped as tables show them: by model and task, then by budget, then by pruner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.cells.cell import REFERENCE, Cell
from tokenprune.report.stats.comparisons import CONTROL
from tokenprune.report.stats.scores import DOWNSAMPLE, Scores, read_scores
from tokenprune.report.text import counted
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData


@dataclass(frozen=True, slots=True)
class BudgetGroup:
    """The cells of one model, task and budget, with their scores by label.

    Args:
        budget: Label of the budget.
        unpruned: The cells of the unpruned model.
        pruned: Cells of each pruner by label, one per seed.
        base: Scores of the unpruned model.
        scores: Scores of every pruner that has some.
        baselines: Label and scores of `random` and of `downsample` by name, if they have a result; of several variants
            of one of them the first in the plan.
    """

    budget: str
    unpruned: Sequence[CellRecord]
    pruned: Mapping[str, Sequence[CellRecord]]
    base: Scores | None
    scores: Mapping[str, Scores]
    baselines: Mapping[str, tuple[str, Scores]]

    def baseline_notes(self) -> tuple[str, ...]:
        """Which of several variants of a baseline the others are compared with, and what it did not answer."""
        notes = []
        for name, (label, found) in self.baselines.items():
            variants = sum(entries[0].cell.pruner == name for entries in self.pruned.values())
            if variants > 1:
                notes.append(f"vs {name}: compared with `{label}`, the first of {variants} variants that ran")
            missing = int((~found.ever_answered()).sum())
            if missing:
                notes.append(
                    f"vs {name}: without {counted(missing, 'question')} on which `{label}` raised an error, "
                    "which would make it easier to beat"
                )
            failed = int((~found.answered.any(axis=1)).sum())
            if failed:
                notes.append(f"vs {name}: without {counted(failed, 'cell')} of `{label}` that failed")
        return tuple(notes)


def subjects_of(data: SweepData) -> Iterator[tuple[str, str, list[BudgetGroup]]]:
    """Model, task with its options, and what was run on them at each budget."""
    subjects: dict[tuple[str, str], list[CellRecord]] = {}
    for entry in data.cells:
        subjects.setdefault((entry.cell.model, _task_name(entry.cell)), []).append(entry)
    for (model, task), entries in subjects.items():
        unpruned = [entry for entry in entries if entry.cell.pruner == REFERENCE]
        base = read_scores(data, unpruned, None)
        budgets: dict[str, list[CellRecord]] = {}
        for entry in entries:
            if entry.cell.pruner != REFERENCE:
                budgets.setdefault(entry.cell.budget_label, []).append(entry)
        found = (budgets or {"all": []}).items()
        yield model, task, [_group(data, budget, unpruned, pruned, base) for budget, pruned in found]


def _group(
    data: SweepData, budget: str, unpruned: Sequence[CellRecord], entries: Sequence[CellRecord], base: Scores | None
) -> BudgetGroup:
    pruned: dict[str, list[CellRecord]] = {}
    for entry in entries:
        pruned.setdefault(entry.cell.label, []).append(entry)
    read = {label: read_scores(data, cells, base) for label, cells in pruned.items()}
    scores = {label: found for label, found in read.items() if found is not None}
    baselines: dict[str, tuple[str, Scores]] = {}
    for label, found in scores.items():
        name = pruned[label][0].cell.pruner
        if name in (CONTROL, DOWNSAMPLE) and found.ever_answered().any():
            baselines.setdefault(name, (label, found))
    return BudgetGroup(budget, unpruned, pruned, base, scores, baselines)


def _task_name(cell: Cell) -> str:
    options = ",".join(f"{key}={value}" for key, value in sorted(cell.task_options.items()))
    return f"{cell.task} ({options})" if options else cell.task
