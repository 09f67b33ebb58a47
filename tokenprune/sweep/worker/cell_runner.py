"""Runs the cells of an assignment: evaluates them batch by batch, keeps what is finished, and recovers from errors.

Cells of one batch group run together: a batch is prepared and encoded once, and the decoder layers before a cut run
once for all pruners that cut no earlier (`tokenprune.engine.PrefillMemo`). Each cell gets the results that it gets
alone.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from tokenprune.cells.cell import Cell, Outcome
from tokenprune.cells.events import CellEvaluated, CellProgress
from tokenprune.errors import BudgetError, IncompatibleError, TokenPruneError
from tokenprune.evaluation.environment import Environment
from tokenprune.evaluation.evaluate import Evaluation, batch_by_batch
from tokenprune.evaluation.machine.devices import device_error, lost_device, ran_out_of_memory
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.evaluation.predictions import Predictions
from tokenprune.metrics.distribution import FirstToken
from tokenprune.sweep.messages import Assignment, CellFinished
from tokenprune.sweep.store.atomic_io import StorageError, is_full, storage_error
from tokenprune.sweep.store.lock import TakenOverError
from tokenprune.sweep.store.predictions import Begun, Origin, Partial
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.cell_cost import measure_cell
from tokenprune.sweep.worker.cell_result import save_predictions
from tokenprune.sweep.worker.throughput import ThroughputMeter

_log = logging.getLogger(__name__)


@dataclass
class _RunningCell:
    """One cell while it is evaluated.

    Args:
        assignment: This cell alone, and how it runs.
        started: When its evaluation began, by this worker or an earlier one.
        seconds: What it took so far, without co-scheduled cells.
        environment: What it runs with.
        evaluation: Its samples under its pruner, once everything it needs is there.
        partial: The file that keeps its predictions until all are there.
        resumed: Samples that an earlier worker evaluated.
        written: Samples whose predictions are in that file.
        evaluated: Whether all samples are evaluated.
        error: Why it failed, as `error.json` holds it.
        retry: How it runs once more after the others: alone, or with smaller batches.
    """

    assignment: Assignment
    started: datetime
    seconds: float = 0.0
    environment: Environment | None = None
    evaluation: Evaluation | None = None
    partial: Partial | None = None
    resumed: int = 0
    written: int = 0
    evaluated: bool = False
    error: Mapping[str, Any] | None = None
    retry: Assignment | None = None

    @property
    def cell(self) -> Cell:
        return self.assignment.cells[0]

    @property
    def predictions(self) -> Predictions:
        assert self.evaluation is not None  # noqa: S101 - a cell that goes on was opened
        return self.evaluation.predictions

    @property
    def goes_on(self) -> bool:
        return self.error is None and self.retry is None

    def how(self) -> dict[str, int]:
        """The attempt and the batch size, as results and errors hold them."""
        return {"attempts": self.assignment.attempt, "batch_size": self.assignment.samples_per_batch}


class CellRunner:
    """Runs cells of one sweep in one process.

    Args:
        store: The sweep directory.
        cache: Models, tasks and batches.
        overlays: Samples per cell whose kept tokens are stored for pictures.
    """

    def __init__(self, store: SweepStore, cache: ModelCache, *, overlays: int = 0) -> None:
        self._store = store
        self._cache = cache
        self._overlays = overlays

    def run_cell(self, cell: Cell) -> Outcome:
        """Run both phases of a cell that has neither predictions nor a cost; how it ended."""
        last = list(self.run(Assignment((cell,))))[-1]
        return last.outcome if isinstance(last, CellFinished) else self._measure(cell, 1).outcome

    def run(self, assignment: Assignment) -> Iterator[CellProgress | CellEvaluated | CellFinished]:
        """Run an assignment; yields what happens to its cells.

        Whatever goes wrong in a cell is recorded and not raised, and the other cells go on. A cell that runs out of
        memory runs once more alone, and then with smaller batches; its result says so. Predictions are written after
        every batch, and a cell that an earlier worker left continues after its last whole batch.

        Raises:
            StorageError: The disk takes no more.
            TakenOverError: Another invocation has taken the directory over.
            PrerequisiteError: The device is lost.
        """
        if assignment.phase == "cost":
            yield from (self._measure(cell, assignment.attempt) for cell in assignment.cells)
        else:
            yield from self._evaluate(assignment, ThroughputMeter(self._cache.device))

    def _measure(self, cell: Cell, attempt: int) -> CellFinished:
        measure_cell(self._store, self._cache, cell, attempt)
        return CellFinished(cell, "done")

    def _evaluate(
        self, assignment: Assignment, meter: ThroughputMeter
    ) -> Iterator[CellProgress | CellEvaluated | CellFinished]:
        running = [_RunningCell(each, datetime.now(UTC)) for each in assignment.split()]
        alone = len(running) == 1
        try:
            for each in running:
                self._store.begin_cell(each.cell)
                self._step(each, functools.partial(self._open, each), alone)
            yield from self._evaluate_batches([each for each in running if each.goes_on], meter, alone)
            for each in running:
                if each.goes_on:
                    each.evaluated = True
                    self._step(each, functools.partial(self._complete, each), alone)
                if each.error is not None:
                    yield self._fail(each, each.error)
                elif each.goes_on:
                    yield CellEvaluated(each.cell) if each.cell.efficiency else CellFinished(each.cell, "done")
        finally:
            for each in running:
                if each.partial is not None:
                    each.partial.close()
        for each in running:
            if each.retry is not None:
                self._cache.release()
                yield from self._evaluate(each.retry, meter)

    def _evaluate_batches(
        self, running: Sequence[_RunningCell], meter: ThroughputMeter, alone: bool
    ) -> Iterator[CellProgress]:
        """Evaluate batch by batch, and write what each batch gave; a cell that fails is left out of later batches."""
        cells = {each.evaluation: each for each in running}
        for evaluation, evaluate in batch_by_batch(tuple(filter(None, cells))):
            each = cells[evaluation]
            self._step(each, evaluate, alone)
            if each.goes_on:
                self._step(each, functools.partial(_write, each), alone)
            evaluation.stopped = not each.goes_on
            if each.goes_on:
                found = evaluation.predictions
                progress = meter.after_batch(each.cell, len(found), found.mean_kept(), each.resumed)
                if progress is not None:
                    yield progress

    def _step(self, running: _RunningCell, step: Callable[[], object], alone: bool) -> None:
        """One step of a cell; an error ends this cell only, or makes it run once more."""
        clock = time.perf_counter()
        try:
            step()
        except (StorageError, TakenOverError):
            raise
        except Exception as error:  # the boundary of a cell: whatever is wrong with it is a recorded failure
            if lost_device(error):
                raise device_error(self._cache.device, error) from error
            if isinstance(error, OSError) and is_full(error):
                raise storage_error(error, self._store.cell_directory(running.cell.id)) from error
            if ran_out_of_memory(error):
                running.retry = _after_out_of_memory(running.assignment, alone)
            if running.retry is not None:
                running.evaluation = None  # nor is anything kept of the error: its traceback holds the memory
            else:
                outcome: Outcome = "refused" if isinstance(error, BudgetError | IncompatibleError) else "failed"
                running.error = _describe(error, outcome)
        running.seconds += time.perf_counter() - clock

    def _fail(self, running: _RunningCell, error: Mapping[str, Any]) -> CellFinished:
        cell = running.cell
        _log.error("%s %s: %s", cell.name, error["outcome"], error["message"])
        environment = {} if running.environment is None else {"environment": running.environment.to_json()}
        if running.partial is not None and not running.evaluated:  # its predictions so far may be wrong, too
            self._store.forget_partial(cell)
        self._store.write_error(cell, {**error, **environment, **running.how()})
        return CellFinished(cell, error["outcome"])

    # --- one cell -----------------------------------------------------------------------------------------------------

    def _open(self, running: _RunningCell) -> None:
        """Load what the cell needs, and take over what an earlier worker has evaluated."""
        cell = running.cell
        running.environment = self._cache.environment(cell)
        reference = self._reference(cell)
        self._cache.model(cell)
        running.environment = self._cache.environment(cell)
        batches = self._cache.batches(cell, running.assignment.batch_size)
        keep = max(self._overlays, int(cell.lens.get("samples", 0)))
        running.evaluation = Evaluation(
            self._cache.pruning(cell),
            batches,
            max_new_tokens=cell.max_new_tokens,
            label=cell.label,
            seed=cell.seed,
            reference=reference,
            keep=keep,
        )
        batch_size, environment = running.assignment.samples_per_batch, running.environment.to_json()
        self._take_over(running, Origin(cell.id, environment, batch_size, keep, _digest(reference)))

    def _take_over(self, running: _RunningCell, origin: Origin) -> None:
        """Continue where an earlier worker stopped, and open the file for the samples that are left."""
        cell, assignment = running.cell, running.assignment
        begun = self._store.partial(cell.id)
        taken: list[Mapping[str, Any]] = []
        if begun is not None:
            smaller = assignment.smaller_batch_size()
            if smaller is not None and not replace(origin, batch_size=smaller).differs_from(begun.origin):
                attempt = max(assignment.attempt, begun.attempt)
                running.retry = replace(assignment, attempt=attempt, batch_size=smaller)
                return
            difference = origin.differs_from(begun.origin)
            if difference:
                _log.warning("%s: %d answers are not taken over, because %s", cell.name, begun.questions, difference)
            else:
                taken = _taken_over(running.predictions, begun, origin.batch_size, cell.samples)
            if taken:
                running.started = datetime.fromisoformat(begun.started)
                running.seconds = float(taken[-1]["seconds"])
                running.resumed = len(running.predictions)
                _log.warning("%s goes on after %d of %d questions", cell.name, running.resumed, cell.samples)
        started = running.started.isoformat(timespec="seconds")
        head = Begun(origin.to_json(), started, assignment.attempt, tuple(taken))
        running.partial = self._store.open_partial(cell, head)
        running.written = len(running.predictions)

    def _complete(self, running: _RunningCell) -> None:
        """Store what the predictions say. The result, or what becomes one with the cost, is written last."""
        clock = time.perf_counter()
        cell, evaluation = running.cell, running.evaluation
        assert evaluation is not None and running.environment is not None  # noqa: S101, PT018 - the cell was opened
        facts = save_predictions(self._store, self._cache, cell, evaluation, self._overlays)
        result = {
            **facts,
            "cost": None,
            "resumed": running.resumed,
            "started": running.started.isoformat(timespec="seconds"),
            "seconds": running.seconds + time.perf_counter() - clock,
            "environment": running.environment.to_json(),
            "worker": {"pid": os.getpid(), "device": self._cache.device},
            **running.how(),
        }
        write = self._store.write_answers if cell.efficiency else self._store.write_result
        write(cell, result)

    def _reference(self, cell: Cell) -> FirstToken | None:
        """First-token distributions of the unpruned cell; `None` for the unpruned cell itself."""
        reference = cell.reference
        if reference is None:
            return None
        found = self._store.awaited(reference, lambda: self._store.settled(reference) or self._store.error(reference))
        found = found or {}
        if found.get("outcome") == "refused":  # what this model cannot do unpruned, it cannot do pruned
            raise IncompatibleError(str(found.get("message")), hint=str(found.get("hint")))
        if not found.get("quality"):
            raise TokenPruneError(
                f"the unpruned cell `{reference}` has no result, so there is nothing to compare with",
                hint="mend what made it fail, then continue with failed cells retried",
            )
        return self._store.first_token(reference)


def _after_out_of_memory(assignment: Assignment, alone: bool) -> Assignment | None:
    """How a cell runs once more: alone, then with smaller batches; `None` if nothing is left to try."""
    (cell,) = assignment.cells
    if not alone:
        _log.warning("%s ran out of memory beside others, once more by itself", cell.name)
        return assignment
    smaller = assignment.smaller_batch_size()
    if smaller is None:
        return None
    _log.warning("%s ran out of memory, once more with %d samples a batch", cell.name, smaller)
    return replace(assignment, attempt=assignment.attempt + 1, batch_size=smaller)


def _describe(error: BaseException, outcome: Outcome) -> dict[str, Any]:
    """An error as `error.json` holds it."""
    return {
        "outcome": outcome,
        "type": type(error).__name__,
        "message": str(error),
        "hint": getattr(error, "hint", ""),
        "traceback": "".join(traceback.format_exception(error)),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write(running: _RunningCell) -> None:
    """Write new predictions; none before one of the samples ran, because the whole cell may fail yet."""
    predictions = running.predictions
    if running.partial is not None and predictions.ran():
        running.partial.append({**predictions.since(running.written), "seconds": running.seconds})
        running.written = len(predictions)


def _taken_over(predictions: Predictions, begun: Begun, batch_size: int, samples: int) -> list[Mapping[str, Any]]:
    """Add an earlier worker's batches to the predictions; those that were added, up to the first that is damaged."""
    taken = []
    for batch in begun.batches:
        rows = len(predictions) + len(batch["rows"])
        if rows > samples or (rows % batch_size and rows != samples) or not isinstance(batch.get("seconds"), float):
            break
        try:
            predictions.extend(batch)
        except ValueError:
            break
        taken.append(batch)
    return taken


def _digest(reference: FirstToken | None) -> str:
    """The tokens whose probabilities a cell stores; empty for the unpruned cell, which chooses them."""
    return "" if reference is None else hashlib.sha256(reference.ids.tobytes()).hexdigest()[:16]
