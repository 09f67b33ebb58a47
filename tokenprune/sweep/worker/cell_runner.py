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
from tokenprune.engine import PrefillMemo
from tokenprune.errors import BudgetError, IncompatibleError, TokenPruneError
from tokenprune.evaluation.environment import Environment
from tokenprune.evaluation.evaluate import Answers, Asking
from tokenprune.evaluation.machine.devices import device_error, lost_device, ran_out_of_memory
from tokenprune.evaluation.model_cache import Bench
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
        asking: Its questions, once it was opened.
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
    asking: Asking | None = None
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
        bench: Models, tasks and batches.
        overlays: Samples per cell whose kept tokens are stored for pictures.
    """

    def __init__(self, store: SweepStore, bench: Bench, *, overlays: int = 0) -> None:
        self.store = store
        self.bench = bench
        self.overlays = overlays

    def run(self, cell: Cell) -> Ended:
        """Run one cell to its end; see `run_together` and `measure`."""
        (asked,) = self.run_together([Order(cell)])
        return asked if isinstance(asked, Ended) else self.measure(cell)

    def measure(self, cell: Cell, attempt: int = 1) -> Ended:
        """Measure the cost of a cell that was answered, and complete it; see `tokenprune.sweep.worker.cell_cost`."""
        return measure_cell(self.store, self.bench, cell, attempt)

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
                self._step(job, self._open, len(jobs))
            for number in range(self._batches(jobs)):
                self._ask_all([job for job in jobs if job.runs and not _has(job, number)], number, len(jobs), progress)
            for job in jobs:
                if job.runs:
                    job.asked = True
                    self._step(job, self._close, len(jobs))
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

    def _ask_all(self, jobs: Sequence[_Job], number: int, beside: int, progress: Progress | None) -> None:
        """Ask one batch under all cells that have not answered it, and write what each gave."""
        memo = PrefillMemo() if len(jobs) > 1 else None
        for job in jobs:
            self._step(job, functools.partial(self._ask, number=number, memo=memo), beside)
            if job.runs:
                self._step(job, _write, beside)
            if job.runs and progress is not None:
                cell, answers = job.order.cell, _opened(job).answers
                progress(cell, len(answers.rows), cell.samples, answers.mean_kept(), job.resumed)

    def _step(self, job: _Job, step: Callable[[_Job], None], beside: int) -> None:
        """One step of a cell; its errors end this cell alone."""
        clock = time.perf_counter()
        try:
            step(job)
        except (StorageError, TakenOverError):
            raise
        except Exception as error:  # the boundary of a cell: a broken one is a recorded failure
            if lost_device(error):
                raise device_error(self.bench.device, error) from error
            if isinstance(error, OSError) and is_full(error):
                raise storage_error(error, self.store.cell_directory(job.order.cell.id)) from error
            if ran_out_of_memory(error) and (beside > 1 or job.order.smaller() is not None):
                job.starved, job.asking = True, None  # nothing is kept of the error: its traceback holds the memory
            else:
                outcome: Outcome = "refused" if isinstance(error, BudgetError | IncompatibleError) else "failed"
                job.error = describe_error(error, outcome)
        job.seconds += time.perf_counter() - clock

    def _again(self, job: _Job, beside: int) -> Order:
        """How a cell that ran out of memory is run once more: by itself, or with smaller batches."""
        self.bench.release()
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

    def _batches(self, jobs: Sequence[_Job]) -> int:
        """How many batches there are."""
        first = next((job for job in jobs if job.runs), None)
        return 0 if first is None else len(self.bench.batches(first.order.cell, first.order.batch_size))

    def _open(self, job: _Job) -> None:
        """Everything that a cell's questions need, or the error that it fails with."""
        cell = job.order.cell
        job.environment = self.bench.environment(cell)
        reference = self._reference(cell)
        loaded, task = self.bench.model(cell), self.bench.task(cell)
        job.environment = self.bench.environment(cell)
        if cell.lens:  # what it looks at in the end must be there; better told now than when all is asked
            self.bench.prepare(loaded, task, range(min(int(cell.lens["samples"]), cell.samples)))
        keep = max(self.overlays, int(cell.lens.get("samples", 0)))
        job.asking = Asking(
            cell,
            self.bench.pruner(cell),
            loaded,
            task,
            self.bench.host,
            lambda index: self.bench.prepare(loaded, task, [index]),
            reference,
            keep=keep,
        )
        self._take_over(
            job, Origin(cell.id, job.environment.to_json(), _batch_size(job.order), keep, _digest(reference))
        )

    def _take_over(self, job: _Job, origin: Origin) -> None:
        """Go on where an earlier worker was stopped, and open the file for what is still to be asked."""
        cell, answers = job.order.cell, _opened(job).answers
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
                taken = _taken_over(answers, begun, origin.batch_size, cell.samples)
        if begun is not None and taken:
            job.started = datetime.fromisoformat(begun.started)
            job.seconds = float(taken[-1]["seconds"])
            job.resumed = len(answers.rows)
            _log.warning("%s goes on after %d of %d questions", cell.name, job.resumed, cell.samples)
        started = job.started.isoformat(timespec="seconds")
        job.partial = self.store.open_partial(cell, Begun(origin.to_json(), started, job.order.attempt, tuple(taken)))
        job.written = len(answers.rows)

    def _ask(self, job: _Job, number: int, memo: PrefillMemo | None) -> None:
        batches, asking = self.bench.batches(job.order.cell, job.order.batch_size), _opened(job)
        try:
            batch = batches.batch(number)
        except Exception as error:
            if ran_out_of_memory(error) or lost_device(error):
                raise
            _log.warning("a batch cannot be prepared (%s), asking its questions one by one", error)
            asking.ask_one_by_one(batches.indices(number))
        else:
            asking.ask(batch, memo)

    def _close(self, job: _Job) -> None:
        """What is made of a cell's answers; its result, or what will become one, is written last."""
        clock = time.perf_counter()
        cell, asking = job.order.cell, _opened(job)
        answers = asking.finished()
        against = self._compare(cell, answers, asking.reference)
        lens = self._lens(cell, answers) if cell.lens else None
        if cell.reference is None:
            self.store.write_first_token(cell, answers.first_token())
        self.store.write_samples(cell, answers.rows)
        if self.overlays:
            self.store.write_overlays(cell, self._overlays(cell, answers))
        result = {
            "quality": summarise(answers.rows),
            "against_none": against,
            "tokens": token_accounts(answers.rows),
            "lens": lens,
            "cost": None,
            "resumed": job.resumed,
            "started": job.started.isoformat(timespec="seconds"),
            "seconds": job.seconds + time.perf_counter() - clock,
            "environment": None if job.environment is None else job.environment.to_json(),
            "worker": {"pid": os.getpid(), "device": self.bench.device},
            "family": self.bench.model(cell).family,
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
        """What an unpruned cell came to: its result, or its answers, or its error."""
        return self.store.settled(cell_id) or self.store.error(cell_id)

    def _compare(self, cell: Cell, answers: Answers, reference: FirstToken | None) -> dict[str, float | None] | None:
        if cell.reference is None or reference is None:
            return None
        divergence = kl_divergence(reference.log_probs, answers.first_token().log_probs)
        for row, value in zip(answers.rows, divergence, strict=True):
            row["kl"] = float(value) if np.isfinite(value) else None
        known = [row["kl"] for row in answers.rows if row["kl"] is not None]
        return {
            **compare(answers.rows, self.store.samples(cell.reference)),
            "kl": sum(known) / len(known) if known else None,
        }

    def _lens(self, cell: Cell, answers: Answers) -> dict[str, Any]:
        layers = self.bench.captures(cell)
        count = min(int(cell.lens["samples"]), cell.samples)
        return lens_errors(layers, [answers.kept.get(index) for index in range(count)])

    def _overlays(self, cell: Cell, answers: Answers) -> dict[str, Any]:
        drawn = {index: kept for index, kept in answers.kept.items() if index < self.overlays}
        if not drawn:
            return {"samples": []}
        batch = self.bench.prepare(self.bench.model(cell), self.bench.task(cell), sorted(drawn))
        samples = dict(zip(batch.indices, batch.samples, strict=True))
        grids = dict(zip(batch.indices, self.bench.grids(cell, batch), strict=True))
        return save_overlays(self.store.directory, cell, samples, grids, drawn, answers.rows)


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
    answers = _opened(job).answers
    if job.partial is not None and answers.ran():
        job.partial.append({**answers.since(job.written), "seconds": job.seconds})
        job.written = len(answers.rows)


def _taken_over(answers: Answers, begun: Begun, batch_size: int, samples: int) -> list[Mapping[str, Any]]:
    """Add what an earlier worker was given to a cell's answers; what was added, up to the first that is damaged."""
    taken = []
    for batch in begun.batches:
        rows = len(answers.rows) + len(batch["rows"])
        if rows > samples or (rows % batch_size and rows != samples) or not isinstance(batch.get("seconds"), float):
            break
        try:
            answers.take_over(batch)
        except ValueError:
            break
        taken.append(batch)
    return taken


def _has(job: _Job, number: int) -> bool:
    """Whether a cell has answered a batch."""
    return len(_opened(job).answers.rows) > number * _batch_size(job.order)


def _batch_size(order: Order) -> int:
    return order.batch_size or order.cell.batch_size


def _digest(reference: FirstToken | None) -> str:
    """The tokens whose probabilities a cell stores."""
    return "" if reference is None else hashlib.sha256(reference.ids.tobytes()).hexdigest()[:16]


def _opened(job: _Job) -> Asking:
    assert job.asking is not None  # noqa: S101 - a job that runs was opened
    return job.asking


def _how(order: Order) -> dict[str, int]:
    """How often the cell was tried, and with how many samples per batch at last."""
    return {"attempts": order.attempt, "batch_size": _batch_size(order)}
