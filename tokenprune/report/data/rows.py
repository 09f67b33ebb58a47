"""One pruner at one budget as a row: scores, comparisons, tokens, cost and errors, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.report.data.costs import CostSummary, summarise_costs
from tokenprune.report.stats.comparisons import CONTROL, Comparison
from tokenprune.report.stats.intervals import Interval
from tokenprune.report.stats.ranks import Stability
from tokenprune.report.stats.scores import DOWNSAMPLE, HardSubset, Scores
from tokenprune.sweep.store.sweep_data import CellRecord

Contrasts = dict[tuple[str, str | None], Comparison]
"""Comparisons of one pruner by name of the baseline and family of questions; the family is `None` for all questions."""


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """One pruner on one task family."""

    questions: int
    accuracy: Interval
    against_random: Comparison | None = None
    against_downsample: Comparison | None = None


@dataclass(frozen=True, slots=True)
class PrunerRow:
    """One pruner at one budget, over its seeds. What was not measured is `None`, never 0.

    Args:
        rank: Place by accuracy, 1 is best; `None` for the unpruned model and for cells without a score.
        label: The pruner as tables name it.
        outcome: `done`, `failed`, `refused` or `pending`; with several seeds the worst of them.
        reason: Why there is no result.
        seeds: Cells with a result.
        failed: Cells that failed; each counts as a wrong answer to every question.
        errors: Samples that raised; each counts as a wrong answer.
        accuracy: Mean score over all questions, with its interval.
        against_none: Difference to the unpruned model on the same questions, paired.
        against_random: Comparison with `random` at the same budget, adjusted for all comparisons with the baselines
            in the table.
        against_downsample: The same with down-sampling.
        retention: Accuracy divided by the unpruned accuracy, drawn together.
        agreement: Share of questions with the unpruned model's answer (loyalty).
        hard: Accuracy on the hard subset (see `tokenprune.report.stats.scores`).
        prefill_ms: Median over the repeats, and over the seeds; so are all figures of cost.
        over_unpruned: Prefill divided by that of the unpruned model in the same turns; below 1 it is faster, if the
            95 % interval beside it does not hold 1.
        floor_over_unpruned: The same of the floor: what pruning would reach if choosing were free.
        over_floor: Prefill divided by that of the unpruned model on a prompt of the kept length.
        overhead_share: Share of the prefill that the pruner's views and decisions take.
        busy: Share of the device that other work had, if it is too large to rely on the cost; else 0, and `None` if it
            is not known (why: `cost.unknown`).
        cost: Everything that was measured of the cost.
    """

    rank: int | None
    label: str
    pruner: str
    distribution: str
    outcome: str
    reason: str = ""
    seeds: int = 0
    failed: int = 0
    questions: int = 0
    errors: int = 0
    accuracy: Interval | None = None
    accuracy_macro: float | None = None
    families: Mapping[str, FamilyScore] | None = None
    against_none: Interval | None = None
    against_random: Comparison | None = None
    against_downsample: Comparison | None = None
    retention: Interval | None = None
    agreement: float | None = None
    hard: Interval | None = None
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
    encoder_ms: float | None = None
    first_token_ms: float | None = None
    over_unpruned: float | None = None
    over_unpruned_interval: tuple[float, float] | None = None
    floor_over_unpruned: float | None = None
    floor_prefill_ms: float | None = None
    over_floor: float | None = None
    over_floor_interval: tuple[float, float] | None = None
    overhead_share: float | None = None
    overhead_share_quartiles: tuple[float, float] | None = None
    busy: float | None = None
    cost: CostSummary | None = None
    dual_error: float | None = None
    output_error: float | None = None

    def counted(self, name: str) -> float | None:
        """What a ratio counts as in fronts and figures: 1 if it cannot be told from 1."""
        spreads = {} if self.cost is None else self.cost.spreads
        return spreads[name].counted if name in spreads else None


@dataclass(frozen=True, slots=True)
class BudgetTable:
    """All pruners on one model and task at one budget; the first row is the unpruned model.

    Args:
        baselines: Notes on the baselines: which of several variants is one, and what they did not answer.
        environments: Notes on the environments, if the rows were not all run in one.
    """

    model: str
    task: str
    budget: str
    account: str
    rows: tuple[PrunerRow, ...]
    hard: HardSubset
    stability: Stability | None
    baselines: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


def row_of(
    label: str,
    entries: Sequence[CellRecord],
    scores: Scores | None,
    base: Scores | None,
    hard: NDArray[np.bool_] | None,
    contrasts: Contrasts,
) -> PrunerRow:
    """The row of one pruner.

    Args:
        label: The pruner as tables name it.
        entries: Its cells, one per seed.
        scores: Their scores, `None` if there are none.
        base: Scores of the unpruned model.
        hard: Which questions are hard, shape (questions,).
        contrasts: Comparisons with the baselines.
    """
    cell = entries[0].cell
    worst = next((it for it in ("failed", "refused", "pending") if it in {entry.state for entry in entries}), "done")
    reason = next((str(entry.error.get("message", "")) for entry in entries if entry.error), "")
    row = PrunerRow(None, label, cell.pruner, cell.distribution, worst, reason)
    if scores is None:
        return row
    results = [entry.result for entry in entries if entry.result is not None]
    families = {
        family: FamilyScore(
            questions=len(found.pictures),
            accuracy=found.accuracy(),
            against_random=contrasts.get((CONTROL, family)),
            against_downsample=contrasts.get((DOWNSAMPLE, family)),
        )
        for family, found in scores.by_family().items()
    }
    whole = scores.paired_with(base) if base is not None and base.ever_answered().any() else None
    scored = replace(
        row,
        seeds=len(results),
        failed=len(scores.seeds) - len(results),
        questions=len(scores.pictures),
        errors=sum(int(result["quality"]["errors"]) for result in results),
        accuracy=scores.accuracy(),
        accuracy_macro=sum(found.accuracy.mean for found in families.values()) / len(families),
        families=families,
        against_none=None if whole is None else whole[0].minus(whole[1]),
        against_random=contrasts.get((CONTROL, None)),
        against_downsample=contrasts.get((DOWNSAMPLE, None)),
        retention=None if whole is None else whole[0].divided_by(whole[1]),
        agreement=_agreement(results, len(scores.seeds)),
        hard=None if hard is None else scores.only(hard).accuracy(),
    )
    return replace(scored, **_measured(results)) if results else scored


def _agreement(results: Sequence[Mapping[str, Any]], cells: int) -> float | None:
    """Mean over the cells; a failed one agrees with nothing."""
    mean = _mean(results, "against_none", "agreement") if results else 0.0
    return None if mean is None else mean * len(results) / cells


def _measured(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was measured in the cells that ran, by field of `PrunerRow`."""
    found: dict[str, Any] = {
        "kl": _mean(results, "against_none", "kl"),
        "tokens": {name: _mean(results, "tokens", name) for name in results[0]["tokens"]},
        "dual_error": _mean(results, "lens", "dual_error"),
        "output_error": _mean(results, "lens", "output_error"),
    }
    cost = summarise_costs([result.get("cost") for result in results])
    if cost is None:
        return found
    tera = cost.figures.get("prefill_tflops")
    flat = {
        **cost.figures,
        **{name: spread.median for name, spread in cost.spreads.items()},
        **{f"{name}_quartiles": (spread.q1, spread.q3) for name, spread in cost.spreads.items()},
        **{f"{name}_interval": spread.interval for name, spread in cost.spreads.items()},
        "prefill_gflops": None if tera is None else 1000.0 * tera,
        "floor_prefill_ms": cost.floor["prefill_ms"].median if "prefill_ms" in cost.floor else None,
        "busy": cost.busy,
    }
    known = {field.name for field in fields(PrunerRow)}
    return {**found, "cost": cost, **{name: value for name, value in flat.items() if name in known}}


def _mean(results: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    """Mean over the seeds of one figure; `None` if one of them lacks it."""
    values = []
    for result in results:
        value: Any = result
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return None
        values.append(float(value))
    return sum(values) / len(values)
