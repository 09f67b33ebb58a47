"""Which runs a view shows: parts of a sweep that MLflow's page loads whole.

The page loads 100 runs, and compares the answers of 10. A view of more would show the first ones by its order, which is
a biased picture: the best by accuracy, or the newest. So a larger sweep is split by model and task, then by budget,
then by pruner, and every part holds the unpruned model. A run says in one tag which parts it belongs to, so that a
view finds its runs by a plain filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenprune.cell import REFERENCE, Cell

CHART_RUNS = 100
"""Runs that the page loads into its table and charts."""

ANSWER_RUNS = 10
"""Runs whose sample tables the page sets side by side."""

Subject = tuple[str, str, str]
"""Model, task, and the task's options as text."""


@dataclass(frozen=True, slots=True)
class RunSubset:
    """A part of a sweep; the unpruned cells of its model and task belong to it whatever the budget and the pruners.

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
        """Whether a cell belongs to this part."""
        if self.subject is not None and subject_of(cell) != self.subject:
            return False
        if cell.pruner == REFERENCE:
            return True
        return self.budget in (None, cell.budget_label) and (self.labels is None or cell.label in self.labels)


@dataclass(frozen=True, slots=True)
class SweepSubsets:
    """The parts that the views of a sweep show.

    Args:
        charts: Parts of at most 100 runs that make up the sweep; one where it is that small.
        tasks: The same for each model and task alone.
        answers: Parts of at most 10 runs, per model, task and budget, the smallest budget first.
    """

    charts: tuple[RunSubset, ...]
    tasks: tuple[RunSubset, ...]
    answers: tuple[RunSubset, ...]

    def all(self) -> tuple[RunSubset, ...]:
        """Every part."""
        return (*self.charts, *self.tasks, *self.answers)


def subsets_of(cells: Sequence[Cell]) -> SweepSubsets:
    """Split a sweep for its views.

    One pruner at one budget is never split: with more than 99 seeds its part is larger than the page loads.
    """
    titles = subject_titles(cells)
    by_subject = {subject: [cell for cell in cells if subject_of(cell) == subject] for subject in titles}
    charts: list[RunSubset] = []
    tasks: list[RunSubset] = []
    answers: list[RunSubset] = []
    for subject, members in by_subject.items():
        title = titles[subject]
        tasks += _by_budget(f"task-{len(tasks)}", title, subject, members)
        several = title if len(titles) > 1 else ""
        for budget in sorted(dict.fromkeys(_budgets(members)), key=lambda label: _size(label, members)):
            key = f"answers-{len(answers)}"
            answers += _by_pruner(key, _joined(several, budget), subject, budget, members, ANSWER_RUNS)
    if len(cells) <= CHART_RUNS:
        charts.append(RunSubset("chart-0", ""))
    else:
        for subject, members in by_subject.items():
            several = titles[subject] if len(titles) > 1 else ""
            charts += _by_budget(f"chart-{len(charts)}", several, subject, members)
    return SweepSubsets(tuple(charts), tuple(tasks), tuple(answers))


def subject_of(cell: Cell) -> Subject:
    """What a cell is about; cells of one subject answer the same questions."""
    return cell.model, cell.task, ", ".join(f"{key}={value}" for key, value in sorted(cell.task_options.items()))


def subject_titles(cells: Sequence[Cell]) -> dict[Subject, str]:
    """A readable name per subject: the task, and only what else is needed to tell them apart."""
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
    """The last part of a hub name or a path."""
    return Path(model).name or model


def _by_budget(key: str, title: str, subject: Subject, cells: Sequence[Cell]) -> Iterator[RunSubset]:
    """One part where the cells fit, otherwise one per budget, split further where that does not fit either."""
    if len(cells) <= CHART_RUNS:
        yield RunSubset(key, title, subject)
        return
    for place, budget in enumerate(dict.fromkeys(_budgets(cells))):
        yield from _by_pruner(f"{key}-{place}", _joined(title, budget), subject, budget, cells, CHART_RUNS)


def _by_pruner(
    key: str, title: str, subject: Subject, budget: str, cells: Sequence[Cell], limit: int
) -> Iterator[RunSubset]:
    """One budget, in runs of neighbouring pruners that fit beside the unpruned cells."""
    room = limit - sum(cell.pruner == REFERENCE for cell in cells)
    counts: dict[str, int] = {}
    for cell in cells:
        if cell.pruner != REFERENCE and cell.budget_label == budget:
            counts[cell.label] = counts.get(cell.label, 0) + 1
    if sum(counts.values()) <= room:
        yield RunSubset(key, title, subject, budget)
        return
    parts: list[list[str]] = [[]]
    used = 0
    for label, count in sorted(counts.items()):
        if parts[-1] and used + count > room:
            parts.append([])
            used = 0
        parts[-1].append(label)
        used += count
    for place, labels in enumerate(parts):
        span = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
        yield RunSubset(f"{key}-{place}", _joined(title, span), subject, budget, tuple(labels))


def _budgets(cells: Sequence[Cell]) -> list[str]:
    return [cell.budget_label for cell in cells if cell.pruner != REFERENCE]


def _size(budget: str, cells: Sequence[Cell]) -> tuple[bool, float]:
    """Order of budgets: ratios by size, then counts of tokens."""
    cell = next(cell for cell in cells if cell.budget_label == budget)
    if cell.budget_ratio is not None:
        return False, cell.budget_ratio
    return True, float(cell.budget_tokens or 0)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
