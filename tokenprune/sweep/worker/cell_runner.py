"""Run cells: ask every question under their pruners, score, compare, measure, and write the results last.

Cells of one model and task run together, batch by batch: a batch is prepared and encoded once, and the decoder layers
before a cut run once for all pruners that cut no earlier (`tokenprune.engine.PrefillMemo`). Answers are those of cells
that run by themselves.
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

import numpy as np

from tokenprune.cell import Cell, Outcome
from tokenprune.errors import BudgetError, IncompatibleError, TokenPruneError
from tokenprune.evaluation.batches import prepare, token_grids
from tokenprune.evaluation.environment import Environment
from tokenprune.evaluation.evaluate import Evaluation, batch_by_batch
from tokenprune.evaluation.machine.devices import device_error, lost_device, ran_out_of_memory
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.evaluation.predictions import Predictions
from tokenprune.metrics.accounts import token_accounts
from tokenprune.metrics.distribution import FirstToken, kl_divergence
from tokenprune.metrics.lens import lens_errors
from tokenprune.metrics.quality import compare, summarise
from tokenprune.sweep.messages import Answered, Ended, Order
from tokenprune.sweep.store.atomic_io import StorageError, is_full, storage_error
from tokenprune.sweep.store.lock import TakenOverError
from tokenprune.sweep.store.predictions import Begun, Origin, Partial
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.cell_cost import measure_cell
from tokenprune.sweep.worker.overlay_pictures import save_overlays

Progress = Callable[[Cell, int, int, float | None, int], None]
"""Told after every batch of a cell: samples asked so far, samples in all, visual tokens that stay (mean), and how many
of the samples an earlier worker had asked."""

_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """One cell that is running.

    Args:
        order: The cell, and how it is run.
        evaluation: Its samples under its pruner, once it was opened.
        started: When.
        seconds: What it took so far, without the cells beside it.
        environment: What it is run with.
        error: What made it fail, as `error.json` holds it.
        starved: There was too little memory, and it may do with more of it to itself, or with smaller batches.
        partial: Where its answers are written as they come.
        resumed: Questions that an earlier worker had asked.
        written: Questions whose answers are in `partial`.
        later: How it is run after the others, where an earlier worker had come to smaller batches.
        asked: All its questions were asked.
    """

    order: Order
    started: datetime
    evaluation: Evaluation | None = None
    seconds: float = 0.0
    error: dict[str, Any] | None = None
    environment: Environment | None = None
    starved: bool = False
    partial: Partial | None = None
    resumed: int = 0
    written: int = 0
    later: Order | None = None
    asked: bool = False

    @property
    def runs(self) -> bool:
        return self.error is None and not self.starved and self.later is None

    def close(self) -> None:
        if self.partial is not None:
            self.partial.close()


class CellRunner:
    """Runs cells of one sweep in one process.

    Args:
        store: The sweep directory.
        cache: Models, tasks and batches.
        overlays: Samples per cell whose kept tokens are stored for pictures.
    """

    def __init__(self, store: SweepStore, cache: ModelCache, *, overlays: int = 0) -> None:
        self.store = store
        self.cache = cache
        self.overlays = overlays

    def run(self, cell: Cell) -> Ended:
        """Run one cell to its end; see `run_together` and `measure`."""
        (asked,) = self.run_together([Order(cell)])
        return asked if isinstance(asked, Ended) else self.measure(cell)

    def measure(self, cell: Cell, attempt: int = 1) -> Ended:
        """Measure the cost of a cell that was answered, and complete it; see `tokenprune.sweep.worker.cell_cost`."""
        return measure_cell(self.store, self.cache, cell, attempt)

    def run_together(self, orders: Sequence[Order], progress: Progress | None = None) -> Iterator[Answered | Ended]:
        """Ask the questions of cells of one `company`, batch by batch; yields as they are through.

        A cell without a cost to measure ends with that.

        Whatever happens in a cell is recorded and never raised (Ctrl-C is). A cell that runs out of memory is run
        once more by itself, and then with smaller batches, and its result says so. What a cell gave is written after
        every batch, and a cell that an earlier worker had begun goes on after the last whole batch.

        Args:
            orders: The cells, all of one model, task and batch size.
            progress: Told how far they are.

        Raises:
            StorageError: The disk takes no more: no matter of a cell.
            TakenOverError: Another invocation has taken the directory over.
        """
        jobs = [_Job(order, datetime.now(UTC)) for order in orders]
        try:
            for job in jobs:
                self.store.begin_cell(job.order.cell)
                self._step(job, functools.partial(self._open, job), len(jobs))
            self._evaluate(jobs, progress)
            for job in jobs:
                if job.runs:
                    job.asked = True
                    self._step(job, functools.partial(self._close, job), len(jobs))
                if job.error is not None:
                    yield self._fail(job, job.error)
                elif job.runs:
                    yield Answered(job.order.cell.id) if job.order.cell.efficiency else Ended(job.order.cell.id, "done")
        finally:
            for job in jobs:
                job.close()
        for job in jobs:
            if job.later is not None:
                yield from self.run_together([job.later], progress)
            elif job.starved:
                yield from self.run_together([self._again(job, len(jobs))], progress)

    def _evaluate(self, jobs: Sequence[_Job], progress: Progress | None) -> None:
        """Evaluate batch by batch, and write what each batch gave; a cell that fails is left out of later batches."""
        running = {_opened(job): job for job in jobs if job.runs}
        for evaluation, run in batch_by_batch(tuple(running)):
            job = running[evaluation]
            self._step(job, run, len(jobs))
            if job.runs:
                self._step(job, functools.partial(_write, job), len(jobs))
            evaluation.stopped = not job.runs
            if job.runs and progress is not None:
                cell, predictions = job.order.cell, evaluation.predictions
                progress(cell, len(predictions), cell.samples, predictions.mean_kept(), job.resumed)

    def _step(self, job: _Job, step: Callable[[], object], beside: int) -> None:
        """One step of a cell; its errors end this cell alone."""
        clock = time.perf_counter()
        try:
            step()
        except (StorageError, TakenOverError):
            raise
        except Exception as error:  # the boundary of a cell: a broken one is a recorded failure
            if lost_device(error):
                raise device_error(self.cache.device, error) from error
            if isinstance(error, OSError) and is_full(error):
                raise storage_error(error, self.store.cell_directory(job.order.cell.id)) from error
            if ran_out_of_memory(error) and (beside > 1 or job.order.smaller() is not None):
                job.starved, job.evaluation = True, None  # nothing is kept of the error: its traceback holds the memory
            else:
                outcome: Outcome = "refused" if isinstance(error, BudgetError | IncompatibleError) else "failed"
                job.error = describe_error(error, outcome)
        job.seconds += time.perf_counter() - clock

    def _again(self, job: _Job, beside: int) -> Order:
        """How a cell that ran out of memory is run once more: by itself, or with smaller batches."""
        self.cache.release()
        if beside > 1:
            _log.warning("%s ran out of memory beside others, once more by itself", job.order.cell.name)
            return job.order
        order = Order(job.order.cell, job.order.attempt + 1, job.order.smaller())
        _log.warning("%s ran out of memory, once more with %d samples a batch", order.cell.name, order.batch_size)
        return order

    def _fail(self, job: _Job, error: Mapping[str, Any]) -> Ended:
        _log.error("%s %s: %s", job.order.cell.name, error["outcome"], error["message"])
        where = {"environment": job.environment.to_json()} if job.environment is not None else {}
        if job.partial is not None and not job.asked:  # what is wrong may be wrong with the answers so far, too
            self.store.forget_partial(job.order.cell)
        self.store.write_error(job.order.cell, {**error, **where, **_how(job.order)})
        return Ended(job.order.cell.id, error["outcome"])

    # --- one cell -------------------------------------------------------------------------------------------------

    def _open(self, job: _Job) -> None:
        """Everything that a cell's questions need, or the error that it fails with."""
        cell = job.order.cell
        job.environment = self.cache.environment(cell)
        reference = self._reference(cell)
        self.cache.model(cell)
        job.environment = self.cache.environment(cell)
        batches = self.cache.batches(cell, job.order.batch_size)
        if cell.lens:  # what the lens needs in the end must be there; better told now than after the evaluation
            batches.prepare(range(min(int(cell.lens["samples"]), cell.samples)))
        keep = max(self.overlays, int(cell.lens.get("samples", 0)))
        job.evaluation = Evaluation(
            self.cache.pruning(cell),
            batches,
            max_new_tokens=cell.max_new_tokens,
            label=cell.label,
            seed=cell.seed,
            reference=reference,
            keep=keep,
        )
        self._take_over(
            job, Origin(cell.id, job.environment.to_json(), _batch_size(job.order), keep, _digest(reference))
        )

    def _take_over(self, job: _Job, origin: Origin) -> None:
        """Go on where an earlier worker was stopped, and open the file for what is still to be asked."""
        cell, predictions = job.order.cell, _opened(job).predictions
        begun = self.store.partial(cell.id)
        taken: list[Mapping[str, Any]] = []
        if begun is not None:
            smaller = job.order.smaller()
            if smaller is not None and not replace(origin, batch_size=smaller).differs_from(begun.origin):
                job.later = replace(job.order, attempt=max(job.order.attempt, begun.attempt), batch_size=smaller)
                return
            difference = origin.differs_from(begun.origin)
            if difference:
                _log.warning("%s: %d answers are not taken over, because %s", cell.name, begun.questions, difference)
            else:
                taken = _taken_over(predictions, begun, origin.batch_size, cell.samples)
        if begun is not None and taken:
            job.started = datetime.fromisoformat(begun.started)
            job.seconds = float(taken[-1]["seconds"])
            job.resumed = len(predictions)
            _log.warning("%s goes on after %d of %d questions", cell.name, job.resumed, cell.samples)
        started = job.started.isoformat(timespec="seconds")
        job.partial = self.store.open_partial(cell, Begun(origin.to_json(), started, job.order.attempt, tuple(taken)))
        job.written = len(predictions)

    def _close(self, job: _Job) -> None:
        """What is made of a cell's answers; its result, or what will become one, is written last."""
        clock = time.perf_counter()
        cell, evaluation = job.order.cell, _opened(job)
        predictions = evaluation.finished()
        against = self._compare(cell, predictions, evaluation.reference)
        lens = self._lens(cell, predictions) if cell.lens else None
        if cell.reference is None:
            self.store.write_first_token(cell, predictions.first_token())
        self.store.write_samples(cell, predictions.rows)
        if self.overlays:
            self.store.write_overlays(cell, self._overlays(cell, predictions))
        result = {
            "quality": summarise(predictions.rows),
            "against_none": against,
            "tokens": token_accounts(predictions.rows),
            "lens": lens,
            "cost": None,
            "resumed": job.resumed,
            "started": job.started.isoformat(timespec="seconds"),
            "seconds": job.seconds + time.perf_counter() - clock,
            "environment": None if job.environment is None else job.environment.to_json(),
            "worker": {"pid": os.getpid(), "device": self.cache.device},
            "family": self.cache.model(cell).family,
        }
        write = self.store.write_answers if cell.efficiency else self.store.write_result
        write(cell, {**result, **_how(job.order)})

    def _reference(self, cell: Cell) -> FirstToken | None:
        """First-token distributions of the unpruned cell; for the unpruned cell itself there is none."""
        if cell.reference is None:
            return None
        known = functools.partial(self._known, cell.reference)
        if not (self.store.awaited(cell.reference, known) or {}).get("quality"):
            raise TokenPruneError(
                f"the unpruned cell `{cell.reference}` has no result, so there is nothing to compare with",
                hint="mend what made it fail, then continue with failed cells retried",
            )
        return self.store.first_token(cell.reference)

    def _known(self, cell_id: str) -> Mapping[str, Any] | None:
        """What an unpruned cell came to: its result, or its predictions, or its error."""
        return self.store.settled(cell_id) or self.store.error(cell_id)

    def _compare(
        self, cell: Cell, predictions: Predictions, reference: FirstToken | None
    ) -> dict[str, float | None] | None:
        if cell.reference is None or reference is None:
            return None
        divergence = kl_divergence(reference.log_probs, predictions.first_token().log_probs)
        for row, value in zip(predictions.rows, divergence, strict=True):
            row["kl"] = float(value) if np.isfinite(value) else None
        known = [row["kl"] for row in predictions.rows if row["kl"] is not None]
        return {
            **compare(predictions.rows, self.store.samples(cell.reference)),
            "kl": sum(known) / len(known) if known else None,
        }

    def _lens(self, cell: Cell, predictions: Predictions) -> dict[str, Any]:
        layers = self.cache.captures(cell)
        count = min(int(cell.lens["samples"]), cell.samples)
        kept = predictions.kept
        return lens_errors(layers, [kept.get(index) for index in range(count)])

    def _overlays(self, cell: Cell, predictions: Predictions) -> dict[str, Any]:
        drawn = {index: kept for index, kept in predictions.kept.items() if index < self.overlays}
        if not drawn:
            return {"samples": []}
        loaded = self.cache.model(cell)
        batch = prepare(loaded, self.cache.task(cell), sorted(drawn))
        samples = dict(zip(batch.indices, batch.samples, strict=True))
        grids = dict(zip(batch.indices, token_grids(loaded, batch), strict=True))
        return save_overlays(self.store.directory, cell, samples, grids, drawn, predictions.rows)


def describe_error(error: BaseException, outcome: Outcome) -> dict[str, Any]:
    """An error as `error.json` holds it."""
    return {
        "outcome": outcome,
        "type": type(error).__name__,
        "message": str(error),
        "hint": getattr(error, "hint", ""),
        "traceback": "".join(traceback.format_exception(error)),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write(job: _Job) -> None:
    """Write what a cell gave since the last time; nothing before one of its questions ran, because it may fail yet."""
    predictions = _opened(job).predictions
    if job.partial is not None and predictions.ran():
        job.partial.append({**predictions.since(job.written), "seconds": job.seconds})
        job.written = len(predictions)


def _taken_over(predictions: Predictions, begun: Begun, batch_size: int, samples: int) -> list[Mapping[str, Any]]:
    """Add what an earlier worker was given to a cell's answers; what was added, up to the first that is damaged."""
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


def _batch_size(order: Order) -> int:
    return order.batch_size or order.cell.batch_size


def _digest(reference: FirstToken | None) -> str:
    """The tokens whose probabilities a cell stores."""
    return "" if reference is None else hashlib.sha256(reference.ids.tobytes()).hexdigest()[:16]


def _opened(job: _Job) -> Evaluation:
    assert job.evaluation is not None  # noqa: S101 - a job that runs was opened
    return job.evaluation


def _how(order: Order) -> dict[str, int]:
    """How often the cell was tried, and with how many samples per batch at last."""
    return {"attempts": order.attempt, "batch_size": _batch_size(order)}
