"""The lens over many pruners: the same questions, one unpruned capture per batch, errors beside the accuracy lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch

from tokenprune.budget import Budget
from tokenprune.cell import REFERENCE, Outcome
from tokenprune.checkpoints import LoadedModel
from tokenprune.engine import capture_prefill, pruned
from tokenprune.errors import BudgetError, IncompatibleError, TokenPruneError
from tokenprune.evaluation.model_cache import Batch, Bench
from tokenprune.metrics.lens import KeptTokens, kept_tokens, lens_errors
from tokenprune.metrics.subsets import SubsetLens
from tokenprune.plugins import Host
from tokenprune.pruner import PositionPolicy, Pruner
from tokenprune.report.stats.ranks import RankCorrelation, rank_correlation
from tokenprune.sweep.config.schema import PrunerEntry, SweepConfig, TaskEntry
from tokenprune.tasks.base import Task

_log = logging.getLogger(__name__)

#: Figures whose order over the methods is compared with that of the accuracy lost, and their meaning.
MEASURES = {
    "output_error": "error of the attention output, mean over the layers",
    "dual_error": "error of the implicit weight, mean over the layers",
    "duplication": "duplication left among the kept tokens",
    "coverage": "how well the kept tokens cover all",
    "regret": "output error above that of the best subset of the size",
}


@dataclass(frozen=True, slots=True)
class LensSettings:
    """What a study runs.

    Args:
        measured: Samples whose kept sets are measured (accuracy takes all); 0 only asks the questions.
        layer: Decoder layer at which duplication, coverage and regret are judged; the last one where there are fewer.
    """

    measured: int = 28
    layer: int = 2


@dataclass
class LensRow:
    """One pruner at one budget; figures that cannot be had are `None`, and `reason` says why."""

    pruner: str
    budget: str
    layer_average: float | None = None
    accuracy: float | None = None
    accuracy_lost: float | None = None
    output_error: float | None = None
    dual_error: float | None = None
    duplication: float | None = None
    coverage: float | None = None
    regret: float | None = None
    questions: int = 0
    measured: int = 0
    outcome: Outcome = "done"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LensCorrelation:
    """Rank correlation of one figure with the accuracy lost, over the methods at one budget or at all."""

    measure: str
    budget: str
    found: RankCorrelation


@dataclass(frozen=True, slots=True)
class LensStudy:
    """What a study found on one model and task."""

    model: str
    task: str
    questions: int
    layer: int
    accuracy: float
    rows: tuple[LensRow, ...]
    correlations: tuple[LensCorrelation, ...]

    def to_json(self) -> dict[str, Any]:
        """The study as plain JSON types."""
        correlations = [
            {"measure": entry.measure, "budget": entry.budget, **asdict(entry.found)} for entry in self.correlations
        ]
        return {
            "model": self.model,
            "task": self.task,
            "questions": self.questions,
            "layer": self.layer,
            "accuracy": self.accuracy,
            "rows": [asdict(row) for row in self.rows],
            "correlations": correlations,
        }


@dataclass
class _Run:
    """One pruner at one budget while the batches go by."""

    row: LensRow
    pruner: Pruner
    budget: Budget
    scores: list[float] = field(default_factory=list)
    layer_average: list[float] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    subsets: list[tuple[int, float, float, float]] = field(default_factory=list)


def study_lens(
    config: SweepConfig,
    host: Host,
    settings: LensSettings,
    *,
    progress: Callable[[str], None] | None = None,
) -> Iterator[LensStudy]:
    """Run every pruner of a sweep file at every budget, one study per model and task.

    Args:
        config: Models, tasks, pruners, budgets, `limit`, `batch_size`; cells, seeds and trackers play no part.
        host: Plugins.
        settings: What is measured.
        progress: Told what runs, or `None`.

    Raises:
        TokenPruneError: The model or the task cannot be had.
    """
    bench = Bench(host, config.device[0])
    for model in config.models:
        loaded = load_for(config, model, bench)
        for entry in config.tasks:
            yield _study(config, loaded, model, entry, bench, settings, progress)


def load_for(config: SweepConfig, model: str, bench: Bench) -> LoadedModel:
    """The model under the settings of a sweep file."""
    from tokenprune.checkpoints import load_model

    return load_model(model, device=bench.device, dtype=config.dtype, attention=config.attention, host=bench.host)


def _study(
    config: SweepConfig,
    loaded: LoadedModel,
    model: str,
    entry: TaskEntry,
    bench: Bench,
    settings: LensSettings,
    progress: Callable[[str], None] | None,
) -> LensStudy:
    task = cast(Task, bench.host.tasks.get(entry.name).build(entry.options))
    count = min(len(task), config.limit or len(task))
    layer = min(settings.layer, loaded.facts.num_layers - 1)
    runs = [run for pruner in config.pruners if pruner.name != REFERENCE for run in _runs(pruner, config, bench.host)]
    reference: list[float] = []
    new_tokens = config.max_new_tokens or int(task.max_new_tokens)
    for start in range(0, count, config.batch_size):
        batch = bench.prepare(loaded, task, range(start, min(start + config.batch_size, count)))
        reference += _answer(loaded, task, batch, new_tokens)
        measured = max(0, min(settings.measured, count) - start)
        lens = _Lens(loaded, bench, task, batch, measured, layer) if measured else None
        for run in runs:
            if run.row.outcome == "done":
                if progress is not None:
                    progress(f"{entry.name}: questions {start + 1} to {start + len(batch.indices)}, {run.row.pruner}")
                _step(run, loaded, task, batch, new_tokens, lens, config.positions)
    accuracy = sum(reference) / len(reference)
    rows = tuple(_finished(run, accuracy) for run in runs)
    return LensStudy(model, entry.name, count, layer, accuracy, rows, correlations(rows))


def _runs(entry: PrunerEntry, config: SweepConfig, host: Host) -> Iterator[_Run]:
    for budget_entry in config.budgets:
        budget = budget_entry.budget(config.account)
        pruner = cast(Pruner, host.pruners.get(entry.name).build(entry.options))
        yield _Run(LensRow(entry.title, budget.label()), pruner, budget)


class _Lens:
    """The unpruned capture of the measured samples of one batch, shared by all pruners."""

    def __init__(self, loaded: LoadedModel, bench: Bench, task: Task, batch: Batch, measured: int, layer: int) -> None:
        whole = measured >= len(batch.indices)
        captured = batch if whole else bench.prepare(loaded, task, batch.indices[:measured])
        self.count = len(captured.indices)
        self.layers = capture_prefill(loaded.model, captured.inputs, range(loaded.facts.num_layers))
        self.subsets = SubsetLens(self.layers[layer])

    def look(self, run: _Run, kept: Sequence[KeptTokens]) -> None:
        """Add the figures of one pruner's kept sets to its run."""
        found = lens_errors(self.layers, kept)
        run.row.reason = run.row.reason or found["reason"]
        if found["reason"]:
            return
        run.errors.append(found)
        figures = self.subsets.figures(kept)
        if figures is not None:
            run.subsets.append((self.count, figures.duplication, figures.coverage, figures.regret))


@torch.no_grad()
def _answer(loaded: LoadedModel, task: Task, batch: Batch, new_tokens: int) -> list[float]:
    """Scores of the model's answers to one batch, under whatever prunes it now."""
    made = loaded.model.generate(**batch.inputs, do_sample=False, max_new_tokens=new_tokens)
    texts = loaded.processor.batch_decode(made[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [float(task.score(str(text).strip(), sample)) for text, sample in zip(texts, batch.samples, strict=True)]


def _step(
    run: _Run,
    loaded: LoadedModel,
    task: Task,
    batch: Batch,
    new_tokens: int,
    lens: _Lens | None,
    positions: PositionPolicy | None,
) -> None:
    """One batch under one pruner; what goes wrong becomes the reason of its row."""
    try:
        frames = batch.samples[0].video
        with pruned(
            loaded.model, run.pruner, run.budget, positions=positions, joint=loaded.joint, frames=frames
        ) as session:
            scores = _answer(loaded, task, batch, new_tokens)
            record = session.last
        if lens is not None:
            lens.look(run, [kept_tokens(record, sample) for sample in range(lens.count)])
    except Exception as error:  # noqa: BLE001 - the boundary of a row: one that cannot run must not take the others along
        run.row.outcome = "refused" if isinstance(error, BudgetError | IncompatibleError) else "failed"
        text = error.message if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {error}"
        _log.debug("%s at %s %s", run.row.pruner, run.row.budget, run.row.outcome, exc_info=True)
        run.row.reason = text
        run.scores.clear()
        run.errors.clear()
        return
    run.scores += scores
    run.layer_average += record.layer_average()


def _finished(run: _Run, accuracy: float) -> LensRow:
    row = run.row
    if not run.scores:
        return row
    row.questions = len(run.scores)
    row.accuracy = sum(run.scores) / len(run.scores)
    row.accuracy_lost = accuracy - row.accuracy
    row.layer_average = sum(run.layer_average) / len(run.layer_average)
    if not run.errors or row.reason:
        row.reason = row.reason or "no sample was measured"
        return row
    counts = [found["samples"] for found in run.errors]
    row.measured = sum(counts)
    for name in ("dual_error", "output_error"):  # root mean squares over the samples, as within a batch
        squares = [
            sum(value[layer] ** 2 * count for value, count in zip(per_layer, counts, strict=True)) / row.measured
            for per_layer in [[found[f"{name}_per_layer"] for found in run.errors]]
            for layer in range(len(per_layer[0]))
        ]
        setattr(row, name, sum(square**0.5 for square in squares) / len(squares))
    if sum(found[0] for found in run.subsets) < row.measured:
        row.reason = "no visual token is left at the end, so there is no kept set to judge"
        return row
    for place, name in enumerate(("duplication", "coverage", "regret"), start=1):
        setattr(row, name, sum(found[0] * found[place] for found in run.subsets) / row.measured)
    return row


def correlations(rows: Sequence[LensRow]) -> tuple[LensCorrelation, ...]:
    """Rank correlation of every figure with the accuracy lost: at each budget, and over all rows.

    Over all rows the budget alone moves both sides; the order *at* a budget is what tells methods apart.
    """
    budgets = list(dict.fromkeys(row.budget for row in rows))
    budgets += ["all"] if len(budgets) > 1 else []
    found = []
    for measure in MEASURES:
        for budget in budgets:
            points = [
                (value, row.accuracy_lost, row.pruner)
                for row in rows
                if budget in (row.budget, "all")
                and (value := getattr(row, measure)) is not None
                and row.accuracy_lost is not None
            ]
            values, lost, names = (list(column) for column in zip(*points, strict=True)) if points else ([], [], [])
            found.append(LensCorrelation(measure, budget, rank_correlation(values, lost, names)))
    return tuple(found)
