"""One table per model, task and budget: every pruner with its accuracy, intervals, tokens, cost and errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenprune.report.reading import Finished, SweepData, read_sweep
from tokenprune.report.statistics import Interval, adjust, bootstrap_mean, sign_flip_p
from tokenprune.sweep.config import REFERENCE

CONTROL = "random"
"""The pruner that others must beat."""

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One pruner at one budget, over its seeds. What was not measured is `None`, never 0.

    Args:
        rank: Place by accuracy, 1 is best; `None` for the unpruned model and for cells without a result.
        label: The pruner as tables name it.
        outcome: `done`, `failed`, `refused` or `pending`; with several seeds the worst of them.
        reason: Why there is no result.
        accuracy: Mean score over all questions, with its interval.
        against_none: Difference to the unpruned model on the same questions, paired.
        against_random: Difference to `random` at the same budget, paired.
        q_random: P-value of that difference, adjusted for the number of pruners in the table.
    """

    rank: int | None
    label: str
    pruner: str
    distribution: str
    outcome: str
    reason: str = ""
    seeds: int = 0
    questions: int = 0
    errors: int = 0
    accuracy: Interval | None = None
    accuracy_macro: float | None = None
    families: Mapping[str, float] | None = None
    against_none: Interval | None = None
    against_random: Interval | None = None
    q_random: float | None = None
    retention: float | None = None
    agreement: float | None = None
    kl: float | None = None
    tokens: Mapping[str, float | None] | None = None
    prefill_ms: float | None = None
    prefill_ms_quartiles: tuple[float, float] | None = None
    decode_ms_per_token: float | None = None
    total_ms: float | None = None
    overhead_ms: float | None = None
    peak_mem_mib: float | None = None
    kv_mib: float | None = None
    prefill_gflops: float | None = None
    dual_error: float | None = None
    output_error: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """All pruners on one model and task at one budget; the first row is the unpruned model."""

    model: str
    task: str
    budget: str
    account: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """All tables of a sweep."""

    name: str
    directory: str
    tables: tuple[Table, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with a schema number."""
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class _Scores:
    """Scores per question in task order (mean over seeds), and the picture of each."""

    values: list[float]
    pictures: list[str]


def leaderboard(source: str | Path | SweepData) -> Leaderboard:
    """The tables of a sweep, finished or not.

    Raises:
        ConfigError: The directory holds no sweep.
    """
    data = source if isinstance(source, SweepData) else read_sweep(source)
    tables = []
    for subject in dict.fromkeys((entry.cell.model, entry.cell.task, _task_options(entry)) for entry in data.cells):
        entries = [
            entry for entry in data.cells if (entry.cell.model, entry.cell.task, _task_options(entry)) == subject
        ]
        unpruned = [entry for entry in entries if entry.cell.pruner == REFERENCE]
        pruned = [entry for entry in entries if entry.cell.pruner != REFERENCE]
        budgets = list(dict.fromkeys(entry.cell.budget_label for entry in pruned)) or ["all"]
        for budget in budgets:
            chosen = [entry for entry in pruned if entry.cell.budget_label == budget]
            rows = tuple(_rows(data, unpruned, chosen))
            account = chosen[0].cell.account if chosen else "kept"
            tables.append(Table(subject[0], _task_name(entries[0]), budget, account, rows))
    return Leaderboard(data.header.name, str(data.ledger.directory), tuple(tables))


def _task_options(entry: Finished) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(entry.cell.task_options.items()))


def _task_name(entry: Finished) -> str:
    options = _task_options(entry)
    return f"{entry.cell.task} ({options})" if options else entry.cell.task


def _rows(data: SweepData, unpruned: Sequence[Finished], pruned: Sequence[Finished]) -> Iterator[Row]:
    groups: dict[str, list[Finished]] = {}
    for entry in pruned:
        groups.setdefault(entry.cell.label, []).append(entry)
    scores = {label: _scores(data, entries) for label, entries in groups.items()}
    base = _scores(data, unpruned)
    control = next((scores[label] for label, entries in groups.items() if entries[0].cell.pruner == CONTROL), None)
    rows = [_row(label, entries, scores[label], base, control) for label, entries in groups.items()]
    rows = _with_q_values(rows, scores, control)
    rows.sort(key=lambda row: (row.accuracy is None, -_accuracy(row)))
    if unpruned:
        yield _row(unpruned[0].cell.label, unpruned, base, None, None)
    for row in rows:
        better = sum(1 for other in rows if _accuracy(other) > _accuracy(row))  # equal accuracies share a rank
        yield replace(row, rank=None if row.accuracy is None else 1 + better)


def _accuracy(row: Row) -> float:
    return -1.0 if row.accuracy is None else row.accuracy.mean


def _scores(data: SweepData, entries: Sequence[Finished]) -> _Scores | None:
    """Mean scores over the seeds that are done, or `None`."""
    done = [data.samples(entry.cell) for entry in entries if entry.state == "done"]
    if not done:
        return None
    values = np.mean([[float(row["score"]) for row in rows] for rows in done], axis=0)
    return _Scores([float(value) for value in values], [str(row["pictures"]) for row in done[0]])


def _row(
    label: str,
    entries: Sequence[Finished],
    scores: _Scores | None,
    base: _Scores | None,
    control: _Scores | None,
) -> Row:
    cell = entries[0].cell
    worst = next((s for s in ("failed", "refused", "pending") if any(e.state == s for e in entries)), "done")
    reason = next((str(entry.error.get("message", "")) for entry in entries if entry.error), "")
    row = Row(None, label, cell.pruner, cell.distribution, worst, reason)
    results = [entry.result for entry in entries if entry.result is not None]
    if scores is None or not results:
        return row
    quartiles = (_mean(results, "cost", "prefill_ms", "q1"), _mean(results, "cost", "prefill_ms", "q3"))
    flops = _mean(results, "cost", "prefill_tflops")
    return replace(
        row,
        seeds=len(results),
        questions=len(scores.values),
        errors=sum(int(result["quality"]["errors"]) for result in results),
        accuracy=bootstrap_mean(scores.values, scores.pictures),
        accuracy_macro=_mean(results, "quality", "accuracy_macro"),
        families={
            family: float(np.mean([result["quality"]["families"][family]["accuracy"] for result in results]))
            for family in results[0]["quality"]["families"]
        },
        against_none=_difference(scores, base),
        against_random=_difference(scores, control) if control is not scores else None,
        retention=_mean(results, "against_none", "retention"),
        agreement=_mean(results, "against_none", "agreement"),
        kl=_mean(results, "against_none", "kl"),
        tokens={name: _mean(results, "tokens", name) for name in results[0]["tokens"]},
        prefill_ms=_mean(results, "cost", "prefill_ms", "median"),
        prefill_ms_quartiles=None if quartiles[0] is None or quartiles[1] is None else (quartiles[0], quartiles[1]),
        decode_ms_per_token=_mean(results, "cost", "decode_ms_per_token", "median"),
        total_ms=_mean(results, "cost", "total_ms", "median"),
        overhead_ms=_mean(results, "cost", "overhead_ms", "median"),
        peak_mem_mib=_mean(results, "cost", "peak_mem_mib"),
        kv_mib=_mean(results, "cost", "kv_mib"),
        prefill_gflops=None if flops is None else 1000.0 * flops,
        dual_error=_mean(results, "lens", "dual_error"),
        output_error=_mean(results, "lens", "output_error"),
    )


def _mean(results: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    """Mean over the seeds of one figure; `None` where any of them lacks it."""
    values = []
    for result in results:
        value: Any = result
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return None
        values.append(float(value))
    return sum(values) / len(values)


def _difference(scores: _Scores, other: _Scores | None) -> Interval | None:
    if other is None:
        return None
    differences = [ours - theirs for ours, theirs in zip(scores.values, other.values, strict=True)]
    return bootstrap_mean(differences, scores.pictures)


def _with_q_values(rows: Sequence[Row], scores: Mapping[str, _Scores | None], control: _Scores | None) -> list[Row]:
    """Add the adjusted p-values against the control."""
    p_values: dict[str, float] = {}
    for row in rows:
        ours = scores[row.label]
        if ours is None or control is None or ours is control:
            continue
        differences = [a - b for a, b in zip(ours.values, control.values, strict=True)]
        p_values[row.label] = sign_flip_p(differences, ours.pictures)
    adjusted = dict(zip(p_values, adjust(list(p_values.values())), strict=True))
    return [replace(row, q_random=adjusted.get(row.label)) for row in rows]
