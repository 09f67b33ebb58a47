"""The lens over many pruners: the same questions for all of them, and the errors of each beside the accuracy lost."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from tokenprune.budget import Budget
from tokenprune.cells.cell import REFERENCE, Outcome
from tokenprune.checkpoints import LoadedModel
from tokenprune.engine import capture_prefill
from tokenprune.errors import BudgetError, IncompatibleError, TokenPruneError
from tokenprune.evaluation.batches import Batches
from tokenprune.evaluation.evaluate import Evaluation, batch_by_batch
from tokenprune.evaluation.generation import Pruning
from tokenprune.metrics.lens import lens_errors
from tokenprune.metrics.subsets import SubsetLens
from tokenprune.plugins import Host, default_host
from tokenprune.pruner import PositionPolicy, Pruner
from tokenprune.report.stats.ranks import RankCorrelation, rank_correlation
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
        pruners: The pruners, by the name that rows show.
        budgets: Every pruner runs at each of them.
        limit: Only the first so many questions of the task.
        batch_size: Questions per batch.
        max_new_tokens: Longest answer, in tokens; the task's own if it is not given.
        positions: Position policy; `None` leaves it to the pruner.
        measured: Samples whose kept tokens are measured (accuracy takes all); 0 only asks the questions.
        layer: Decoder layer at which duplication, coverage and regret are judged; the last one if there are fewer.
    """

    pruners: Mapping[str, Pruner]
    budgets: Sequence[Budget]
    limit: int | None = None
    batch_size: int = 16
    max_new_tokens: int | None = None
    positions: PositionPolicy | None = None
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
    """One pruner at one budget, and what was measured of it batch by batch."""

    row: LensRow
    evaluation: Evaluation
    errors: list[dict[str, Any]] = field(default_factory=list)
    subsets: list[tuple[int, float, float, float]] = field(default_factory=list)

    def attempt(self, step: Callable[[], object]) -> None:
        """Run a step; what goes wrong becomes the reason of the row and does not end the study."""
        row = self.row
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the boundary of a row
            row.outcome = "refused" if isinstance(error, BudgetError | IncompatibleError) else "failed"
            row.reason = error.message if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {error}"
            _log.debug("%s at %s %s", row.pruner, row.budget, row.outcome, exc_info=True)
            self.evaluation.stopped = True


def study_lens(
    loaded: LoadedModel,
    task: str,
    settings: LensSettings,
    *,
    options: Mapping[str, Any] | None = None,
    model: str = "",
    host: Host | None = None,
    progress: Callable[[str], None] | None = None,
) -> LensStudy:
    """Run every pruner at every budget on one model and one task.

    Args:
        loaded: The model.
        task: Name of an installed task.
        settings: What runs, and what is measured.
        options: Options of the task.
        model: What the study calls the model; where it came from if it is not given.
        host: Plugins; the installed ones if it is not given.
        progress: Told what runs.

    Raises:
        UnknownNameError: The task is not installed.
        Exception: What the unpruned model raises; an error of a pruner becomes the reason of its row.
    """
    host = host or default_host()
    spec = host.tasks.get(task)
    questions = cast(Task, spec.build(options or {}))
    count = min(len(questions), settings.limit or len(questions))
    batches = Batches(loaded, questions, count=count, size=settings.batch_size)

    def evaluation(pruner: Pruner, budget: Budget) -> Evaluation:
        return Evaluation(
            Pruning(loaded, pruner, budget, settings.positions, spec.video, host),
            batches,
            max_new_tokens=settings.max_new_tokens or int(questions.max_new_tokens),
            keep=settings.measured,
            strict=True,
        )

    reference = evaluation(host.pruners.get(REFERENCE).build(), Budget(ratio=1.0))
    runs = [
        _Run(LensRow(name, budget.label()), evaluation(pruner, budget))
        for name, pruner in settings.pruners.items()
        for budget in settings.budgets
    ]
    by_evaluation = {run.evaluation: run for run in runs}
    for each, ask in batch_by_batch([reference, *by_evaluation]):
        if each is reference:
            ask()
            continue
        run, start = by_evaluation[each], len(each.predictions)
        if progress is not None:
            progress(f"{task}: questions {start + 1} to {min(start + batches.size, count)}, {run.row.pruner}")
        run.attempt(ask)
    layer = min(settings.layer, loaded.facts.num_layers - 1)
    _measure(runs, batches, min(settings.measured, count), layer)
    accuracy = _mean(reference, "score")
    rows = tuple(_finished(run, accuracy) for run in runs)
    return LensStudy(model or loaded.path, task, count, layer, accuracy, rows, correlations(rows))


def _measure(runs: Sequence[_Run], batches: Batches, measured: int, layer: int) -> None:
    """Measure what the pruners kept of the first samples; each batch is captured once for all of them."""
    loaded = batches.loaded
    for number in range(-(-measured // batches.size)):
        indices = [index for index in batches.indices(number) if index < measured]
        batch = batches.batch(number) if len(indices) == len(batches.indices(number)) else batches.prepare(indices)
        layers = capture_prefill(loaded.model, batch.inputs, range(loaded.facts.num_layers))
        subsets = SubsetLens(layers[layer])
        for run in runs:
            if not run.evaluation.stopped:
                run.attempt(functools.partial(_add_figures, run, layers, subsets, indices))


def _add_figures(run: _Run, layers: Sequence[Any], subsets: SubsetLens, indices: Sequence[int]) -> None:
    """Add the figures of one pruner's kept tokens of a batch."""
    kept = run.evaluation.predictions.kept
    batch = [kept[index] for index in indices]
    found = lens_errors(layers, batch)
    run.row.reason = run.row.reason or found["reason"]
    if found["reason"]:
        return
    run.errors.append(found)
    figures = subsets.figures(batch)
    if figures is not None:
        run.subsets.append((len(indices), figures.duplication, figures.coverage, figures.regret))


def _mean(evaluation: Evaluation, column: str) -> float:
    rows = evaluation.predictions.rows
    return sum(float(row[column]) for row in rows) / len(rows)


def _finished(run: _Run, accuracy: float) -> LensRow:
    row = run.row
    if row.outcome != "done":
        return row
    row.questions = len(run.evaluation.predictions)
    row.accuracy = _mean(run.evaluation, "score")
    row.accuracy_lost = accuracy - row.accuracy
    row.layer_average = _mean(run.evaluation, "layer_average_tokens")
    if not run.errors or row.reason:
        row.reason = row.reason or "no sample was measured"
        return row
    counts = [found["samples"] for found in run.errors]
    row.measured = sum(counts)
    row.dual_error = _over_samples([found["dual_error_per_layer"] for found in run.errors], counts)
    row.output_error = _over_samples([found["output_error_per_layer"] for found in run.errors], counts)
    if sum(found[0] for found in run.subsets) < row.measured:
        row.reason = "no visual token is left at the end, so there is no kept set to judge"
        return row
    row.duplication, row.coverage, row.regret = (
        sum(found[0] * found[place] for found in run.subsets) / row.measured for place in (1, 2, 3)
    )
    return row


def _over_samples(per_batch: Sequence[Sequence[float]], counts: Sequence[int]) -> float:
    """The mean over the layers of root mean squares over the samples of all batches, as within a batch."""
    squares = [
        sum(value**2 * count for value, count in zip(layer, counts, strict=True)) / sum(counts)
        for layer in zip(*per_batch, strict=True)
    ]
    return float(sum(square**0.5 for square in squares) / len(squares))


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
