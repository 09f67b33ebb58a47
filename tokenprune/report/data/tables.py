"""One table per model, task and budget: every pruner with its accuracy, intervals, tokens, cost and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenprune.cell import REFERENCE
from tokenprune.report.data.arms import Arm, baseline_notes, subjects_of
from tokenprune.report.data.environments import Shared, environment_notes, environments_of
from tokenprune.report.data.rows import Contrasts, FamilyScore, Row, Table, row_of
from tokenprune.report.data.summary import Summary, summarise
from tokenprune.report.stats.hard import DOWNSAMPLE, hard_questions
from tokenprune.report.stats.paired import Comparison, against_baselines, against_baselines_by_family, all_pairs
from tokenprune.report.stats.stability import rank_stability
from tokenprune.report.stats.statistics import level
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep

__all__ = ["FamilyScore", "Leaderboard", "PairTable", "Row", "Table", "leaderboard", "pair_tables"]

SCHEMA = 4


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """All tables of a sweep, and what they say together about each model and task."""

    name: str
    directory: str
    tables: tuple[Table, ...]
    summaries: tuple[Summary, ...]
    environments: tuple[Shared, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with a schema number."""
        return {"schema": SCHEMA, **asdict(self)}


def leaderboard(source: str | Path | SweepData) -> Leaderboard:
    """The tables of a sweep, finished or not.

    Raises:
        ConfigError: The directory holds no sweep, or the samples of a finished cell are damaged.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    environments = environments_of(data.cells)
    tables: list[Table] = []
    summaries: list[Summary] = []
    for model, task, arms in subjects_of(data):
        made = tuple(_table(model, task, arm, environments) for arm in arms)
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
    return tuple(
        PairTable(model, task, arm.budget, all_pairs({**({REFERENCE: arm.base} if arm.base else {}), **arm.scores}))
        for model, task, arms in subjects_of(data)
        for arm in arms
    )


def _table(model: str, task: str, arm: Arm, environments: Sequence[Shared]) -> Table:
    baselines = dict(arm.baselines.values())
    names = {label: name for name, (label, _) in arm.baselines.items()}
    overall = _by_pruner(against_baselines(arm.scores, baselines), names)
    families = _by_pruner(against_baselines_by_family(arm.scores, baselines), names)
    mask, hard = hard_questions(arm.base, arm.baselines[DOWNSAMPLE][1] if DOWNSAMPLE in arm.baselines else None)
    rows = [
        row_of(label, entries, arm.scores.get(label), arm.base, mask, overall.get(label, {}), families.get(label, {}))
        for label, entries in arm.groups.items()
    ]
    rows.sort(key=lambda row: (row.accuracy is None, -_accuracy(row), row.outcome == "failed"))
    ranked = [
        # equal accuracies share a rank
        replace(row, rank=None if row.accuracy is None else 1 + sum(_accuracy(it) > _accuracy(row) for it in rows))
        for row in rows
    ]
    if arm.unpruned:
        ranked.insert(0, row_of(arm.unpruned[0].cell.label, arm.unpruned, arm.base, None, None, {}, {}))
    account = next((entries[0].cell.account for entries in arm.groups.values()), "kept")
    stability = rank_stability(arm.scores, {label: len(entries) for label, entries in arm.groups.items()})
    everything = {**({arm.unpruned[0].cell.label: arm.unpruned} if arm.unpruned else {}), **arm.groups}
    mixed = environment_notes(environments, everything)
    return Table(model, task, arm.budget, account, tuple(ranked), hard, stability, baseline_notes(arm), mixed)


def _by_pruner(comparisons: Mapping[Any, Comparison], names: Mapping[str, str]) -> dict[str, Contrasts]:
    """Comparisons by pruner, baselines by name instead of label."""
    found: dict[str, Contrasts] = {}
    for (label, baseline, *family), comparison in comparisons.items():
        found.setdefault(label, {})[(names[baseline], *family)] = comparison
    return found


def _accuracy(row: Row) -> float:
    return -1.0 if row.accuracy is None else level(row.accuracy.mean)
