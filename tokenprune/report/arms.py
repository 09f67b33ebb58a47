"""The cells of a sweep, grouped as tables show them: by model and task, then by budget, then by pruner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.report.hard import DOWNSAMPLE
from tokenprune.report.paired import CONTROL
from tokenprune.report.reading import Finished, SweepData
from tokenprune.report.scores import Scores, read_scores
from tokenprune.sweep.config import REFERENCE


@dataclass(frozen=True, slots=True)
class Arm:
    """The cells of one model, task and budget, with their scores by label.

    Args:
        budget: Label of the budget.
        unpruned: The cells of the unpruned model.
        groups: Cells of each pruner by label, one per seed.
        base: Scores of the unpruned model.
        scores: Scores of every pruner that has some.
        baselines: Label and scores of `random` and of down-sampling by name, where they have a result.
    """

    budget: str
    unpruned: Sequence[Finished]
    groups: Mapping[str, Sequence[Finished]]
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
    data: SweepData, budget: str, unpruned: Sequence[Finished], pruned: Sequence[Finished], base: Scores | None
) -> Arm:
    groups: dict[str, list[Finished]] = {}
    for entry in pruned:
        groups.setdefault(entry.cell.label, []).append(entry)
    scores = {label: read_scores(data, entries, base) for label, entries in groups.items()}
    baselines: dict[str, tuple[str, Scores]] = {}
    for label, entries in groups.items():
        name = entries[0].cell.pruner
        # a baseline's failures would make it easier to beat, so they are left out of it
        found = read_scores(data, entries, None) if name in (CONTROL, DOWNSAMPLE) and name not in baselines else None
        if found is not None:
            baselines[name] = (label, found)
    known = {label: found for label, found in scores.items() if found is not None}
    return Arm(budget, unpruned, groups, base, known, baselines)


def _task_options(entry: Finished) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(entry.cell.task_options.items()))


def _task_name(entry: Finished) -> str:
    options = _task_options(entry)
    return f"{entry.cell.task} ({options})" if options else entry.cell.task
