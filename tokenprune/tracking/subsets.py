"""The runs that a view shows: subsets of a sweep that MLflow's page loads whole.

The page loads 100 runs, and compares the answers of 10. Of more runs it would show the first by its order (the best by
accuracy, or the newest), which misleads. So a larger sweep is split by model and task, then by budget, then by pruner,
and every subset holds the unpruned model. A tag of each run names its subsets, so a view finds its runs by a filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenprune.cells.cell import REFERENCE, Cell

CHART_RUNS = 100
"""Runs that the page loads into its table and charts."""

ANSWER_RUNS = 10
"""Runs whose sample tables the page shows side by side."""

Subject = tuple[str, str, str]
"""Model, task, and the task's options as text: cells of one subject answer the same questions."""


@dataclass(frozen=True, slots=True)
class RunSubset:
    """A subset of a sweep; the unpruned cells of its model and task belong to it whatever the budget and the pruners.

    Args:
        key: Name in the runs' tag; letters, digits and `-`, none of which a LIKE pattern reads as a wildcard.
        title: What it holds, for people; empty for the whole sweep.
        subject: Model and task; `None` for all.
        budget: Label of the budget; `None` for all.
        labels: Labels of the pruners; `None` for all.
    """

    key: str
    title: str
    subject: Subject | None = None
    budget: str | None = None
    labels: tuple[str, ...] | None = None

    def holds(self, cell: Cell) -> bool:
        """Whether a cell belongs to this subset."""
        if self.subject is not None and subject_of(cell) != self.subject:
            return False
        if cell.pruner == REFERENCE:
            return True
        return self.budget in (None, cell.budget_label) and (self.labels is None or cell.label in self.labels)


@dataclass(frozen=True, slots=True)
class SweepSubsets:
    """The subsets that the views of a sweep show.

    Args:
        charts: Subsets of at most 100 runs that make up the sweep; one if it is that small.
        tasks: The same for each model and task alone.
        answers: Subsets of at most 10 runs, per model, task and budget, the smallest budget first.
    """

    charts: tuple[RunSubset, ...]
    tasks: tuple[RunSubset, ...]
    answers: tuple[RunSubset, ...]

    def all(self) -> tuple[RunSubset, ...]:
        """Every subset."""
        return (*self.charts, *self.tasks, *self.answers)


def subsets_of(cells: Sequence[Cell]) -> SweepSubsets:
    """Split a sweep into subsets that MLflow's page shows whole.

    One pruner at one budget is never split: with more than 99 seeds its subset is larger than the page loads.
    """
    titles = subject_titles(cells)
    charts = [RunSubset("chart-0", "")] if len(cells) <= CHART_RUNS else []
    tasks: list[RunSubset] = []
    answers: list[RunSubset] = []
    for subject, title in titles.items():
        members = [cell for cell in cells if subject_of(cell) == subject]
        several = title if len(titles) > 1 else ""
        tasks += _by_budget(f"task-{len(tasks)}", title, subject, members)
        if len(cells) > CHART_RUNS:
            charts += _by_budget(f"chart-{len(charts)}", several, subject, members)
        for budget in sorted(_budgets(members), key=lambda label: _size(label, members)):
            answers += _by_pruner(
                f"answers-{len(answers)}", _joined(several, budget), subject, budget, members, ANSWER_RUNS
            )
    return SweepSubsets(tuple(charts), tuple(tasks), tuple(answers))


def subject_of(cell: Cell) -> Subject:
    """The subject of a cell."""
    return cell.model, cell.task, ", ".join(f"{key}={value}" for key, value in sorted(cell.task_options.items()))


def subject_titles(cells: Sequence[Cell]) -> dict[Subject, str]:
    """A readable name per subject: the task, and what else is needed to tell the subjects apart."""
    subjects = list(dict.fromkeys(map(subject_of, cells)))
    models = {model for model, _, _ in subjects}
    variants = {(task, options) for _, task, options in subjects}
    titles = {}
    for model, task, options in subjects:
        ambiguous = sum(name == task for name, _ in variants) > 1
        title = f"{task} ({options})" if ambiguous and options else task
        titles[model, task, options] = f"{short_model(model)}: {title}" if len(models) > 1 else title
    return titles


def short_model(model: str) -> str:
    """The last component of a hub name or a path."""
    return Path(model).name or model


def _by_budget(key: str, title: str, subject: Subject, cells: Sequence[Cell]) -> Iterator[RunSubset]:
    """One subset if the cells fit, otherwise one per budget, split further if that does not fit either."""
    if len(cells) <= CHART_RUNS:
        yield RunSubset(key, title, subject)
        return
    for number, budget in enumerate(_budgets(cells)):
        yield from _by_pruner(f"{key}-{number}", _joined(title, budget), subject, budget, cells, CHART_RUNS)


def _by_pruner(
    key: str, title: str, subject: Subject, budget: str, cells: Sequence[Cell], limit: int
) -> Iterator[RunSubset]:
    """One budget, in groups of neighbouring pruners that fit beside the unpruned cells."""
    room = limit - sum(cell.pruner == REFERENCE for cell in cells)
    pruned = [cell.label for cell in cells if cell.pruner != REFERENCE and cell.budget_label == budget]
    if len(pruned) <= room:
        yield RunSubset(key, title, subject, budget)
        return
    groups: list[list[str]] = [[]]
    used = 0
    for label in sorted(set(pruned)):
        count = pruned.count(label)
        if groups[-1] and used + count > room:
            groups.append([])
            used = 0
        groups[-1].append(label)
        used += count
    for number, labels in enumerate(groups):
        span = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
        yield RunSubset(f"{key}-{number}", _joined(title, span), subject, budget, tuple(labels))


def _budgets(cells: Sequence[Cell]) -> list[str]:
    """The budgets of the pruned cells, each once."""
    return list(dict.fromkeys(cell.budget_label for cell in cells if cell.pruner != REFERENCE))


def _size(budget: str, cells: Sequence[Cell]) -> tuple[bool, float]:
    """Order of budgets: ratios by size, then counts of tokens."""
    cell = next(cell for cell in cells if cell.budget_label == budget)
    if cell.budget_ratio is not None:
        return False, cell.budget_ratio
    return True, float(cell.budget_tokens or 0)


def _joined(*texts: str) -> str:
    return ", ".join(filter(None, texts))
