"""One table per model, task and budget: every pruner with its accuracy, intervals, tokens, cost and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenprune.cells.cell import REFERENCE
from tokenprune.report.data.environments import Shared, environment_notes, environments_of
from tokenprune.report.data.groups import BudgetGroup, subjects_of
from tokenprune.report.data.rows import BudgetTable, Contrasts, PrunerRow, row_of
from tokenprune.report.data.summary import Summary, summarise
from tokenprune.report.stats.comparisons import Comparison, against_baselines, against_baselines_by_family, all_pairs
from tokenprune.report.stats.intervals import rounded
from tokenprune.report.stats.ranks import rank_stability
from tokenprune.report.stats.scores import DOWNSAMPLE, hard_questions
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep

SCHEMA = 4


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """All tables of a sweep, and what they say together about each model and task."""

    name: str
    directory: str
    tables: tuple[BudgetTable, ...]
    summaries: tuple[Summary, ...]
    environments: tuple[Shared, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with a schema number."""
        return {"schema": SCHEMA, **asdict(self)}


def leaderboard(source: str | Path | SweepData) -> Leaderboard:
    """The tables of a sweep, finished or not.

    Raises:
        ConfigError: The directory holds no sweep, or the samples of a finished cell are damaged.

    Example:
        >>> from tokenprune import run_sweep
        >>> from tokenprune.report import leaderboard
        >>> from tokenprune.sweep import default_config, with_changes
        >>> small = {"pruners": ["none", "grid"], "budgets": ["25%"], "limit": 2, "efficiency": {"enabled": False}}
        >>> config = with_changes(default_config(), small)
        >>> outcome = run_sweep(config, directory="runs/small", executor="inline", track=False)
        >>> (table,) = leaderboard("runs/small").tables
        >>> [(row.label, row.questions) for row in table.rows], table.budget
        ([('none', 2), ('grid', 2)], '25%')
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    environments = environments_of(data.cells)
    tables: list[BudgetTable] = []
    summaries: list[Summary] = []
    for model, task, groups in subjects_of(data):
        made = tuple(_table(model, task, group, environments) for group in groups)
        tables += made
        summaries.append(summarise(model, task, made))
    return Leaderboard(data.header.name, str(data.store.directory), tuple(tables), tuple(summaries), environments)


@dataclass(frozen=True, slots=True)
class PairTable:
    """Every pair of pruners at one budget, the unpruned model among them."""

    model: str
    task: str
    budget: str
    pairs: tuple[Comparison, ...]


def pair_tables(source: str | Path | SweepData) -> tuple[PairTable, ...]:
    """All paired comparisons of a sweep, one table per model, task and budget.

    Raises:
        ConfigError: The directory holds no sweep, or the samples of a finished cell are damaged.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    tables = []
    for model, task, groups in subjects_of(data):
        for group in groups:
            unpruned = {REFERENCE: group.base} if group.base else {}
            tables.append(PairTable(model, task, group.budget, all_pairs({**unpruned, **group.scores})))
    return tuple(tables)


def _table(model: str, task: str, group: BudgetGroup, environments: Sequence[Shared]) -> BudgetTable:
    contrasts = _contrasts(group)
    mask, hard = hard_questions(group.base, group.baselines[DOWNSAMPLE][1] if DOWNSAMPLE in group.baselines else None)
    rows = [
        row_of(label, entries, group.scores.get(label), group.base, mask, contrasts.get(label, {}))
        for label, entries in group.pruned.items()
    ]
    rows.sort(key=lambda row: (row.accuracy is None, -_accuracy(row), row.outcome == "failed"))
    ranked = [
        # equal accuracies share a rank
        replace(row, rank=None if row.accuracy is None else 1 + sum(_accuracy(it) > _accuracy(row) for it in rows))
        for row in rows
    ]
    unpruned = {group.unpruned[0].cell.label: group.unpruned} if group.unpruned else {}
    first = [row_of(label, entries, group.base, None, None, {}) for label, entries in unpruned.items()]
    return BudgetTable(
        model,
        task,
        group.budget,
        next((entries[0].cell.account for entries in group.pruned.values()), "kept"),
        (*first, *ranked),
        hard,
        rank_stability(group.scores, {label: len(entries) for label, entries in group.pruned.items()}),
        group.baseline_notes(),
        environment_notes(environments, {**unpruned, **group.pruned}),
    )


def _contrasts(group: BudgetGroup) -> dict[str, Contrasts]:
    """Comparisons of each pruner with the baselines, overall and by family."""
    baselines = dict(group.baselines.values())
    names = {label: name for name, (label, _) in group.baselines.items()}
    found: dict[str, Contrasts] = {}
    for (label, baseline), comparison in against_baselines(group.scores, baselines).items():
        found.setdefault(label, {})[names[baseline], None] = comparison
    for (label, baseline, family), comparison in against_baselines_by_family(group.scores, baselines).items():
        found.setdefault(label, {})[names[baseline], family] = comparison
    return found


def _accuracy(row: PrunerRow) -> float:
    return -1.0 if row.accuracy is None else rounded(row.accuracy.mean)
