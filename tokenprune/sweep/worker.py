"""Run cells: ask every question under their pruners, score, compare, measure, and write the results last.

Cells of one model and task run together, batch by batch: a batch is prepared and encoded once, and the decoder layers
before a cut run once for all pruners that cut no earlier (`tokenprune.engine.PrefillMemo`). Answers are those of cells
that run by themselves.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tokenprune.engine import PrefillMemo
from tokenprune.errors import BudgetError, IncompatibleError, TokenPruneError
from tokenprune.metrics.accounts import token_accounts
from tokenprune.metrics.distribution import FirstToken, kl_divergence
from tokenprune.metrics.lens import lens_errors
from tokenprune.metrics.quality import compare, summarise
from tokenprune.sweep.asking import Answers, Asking
from tokenprune.sweep.bench import Batch, Bench
from tokenprune.sweep.crew import Order
from tokenprune.sweep.devices import device_error, lost_device, ran_out_of_memory
from tokenprune.sweep.environment import Environment
from tokenprune.sweep.executors import Answered, Ended, Outcome
from tokenprune.sweep.files import StorageError, is_full, storage_error
from tokenprune.sweep.lease import LeaseLostError
from tokenprune.sweep.ledger import Ledger
from tokenprune.sweep.measuring import measure_cell
from tokenprune.sweep.pictures import save_overlays
from tokenprune.sweep.plan import Cell

Progress = Callable[[Cell, int, int, float | None], None]
"""Told after every batch of a cell: samples asked so far, samples in all, visual tokens that stay (mean)."""

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
    """

    order: Order
    started: datetime
    asking: Asking | None = None
    seconds: float = 0.0
    error: dict[str, Any] | None = None
    environment: Environment | None = None
    starved: bool = False

    @property
    def runs(self) -> bool:
        return self.error is None and not self.starved


class CellRunner:
    """Runs cells of one sweep in one process.

    Args:
        ledger: The sweep directory.
        bench: Models, tasks and batches.
        overlays: Samples per cell whose kept tokens are stored for pictures.
    """

    def __init__(self, ledger: Ledger, bench: Bench, *, overlays: int = 0) -> None:
        self.ledger = ledger
        self.bench = bench
        self.overlays = overlays

    def run(self, cell: Cell) -> Ended:
        """Run one cell to its end; see `run_together` and `measure`."""
        (asked,) = self.run_together([Order(cell)])
        return asked if isinstance(asked, Ended) else self.measure(cell)

    def measure(self, cell: Cell, attempt: int = 1) -> Ended:
        """Measure the cost of a cell that was answered, and complete it; see `tokenprune.sweep.measuring`."""
        return measure_cell(self.ledger, self.bench, cell, attempt)

    def run_together(self, orders: Sequence[Order], progress: Progress | None = None) -> Iterator[Answered | Ended]:
        """Ask the questions of cells of one `company`, batch by batch; yields as they are through.

        A cell without a cost to measure ends with that.

        Whatever happens in a cell is recorded and never raised (Ctrl-C is). A cell that runs out of memory is run
        once more by itself, and then with smaller batches, and its result says so.

        Args:
            orders: The cells, all of one model, task and batch size.
            progress: Told how far they are.

        Raises:
            StorageError: The disk takes no more: no matter of a cell.
            LeaseLostError: Another invocation has taken the directory over.
        """
        jobs = [_Job(order, datetime.now(UTC)) for order in orders]
        for job in jobs:
            self.ledger.begin_cell(job.order.cell)
            self._step(job, self._open, len(jobs))
        for batch in self._batches(jobs):
            memo = PrefillMemo() if sum(job.runs for job in jobs) > 1 else None
            for job in jobs:
                if job.runs:
                    self._step(job, functools.partial(_ask, batch=batch, memo=memo), len(jobs))
                if job.runs and progress is not None:
                    answers = _opened(job).answers
                    progress(job.order.cell, len(answers.rows), job.order.cell.samples, answers.mean_kept())
            del memo  # it holds the tensors of its batch
        for job in jobs:
            if job.runs:
                self._step(job, self._close, len(jobs))
            if job.error is not None:
                yield self._fail(job, job.error)
            elif not job.starved:
                yield Answered(job.order.cell.id) if job.order.cell.efficiency else Ended(job.order.cell.id, "done")
        for job in jobs:
            if job.starved:
                yield from self.run_together([self._again(job, len(jobs))], progress)

    def _step(self, job: _Job, step: Callable[[_Job], None], beside: int) -> None:
        """One step of a cell; its errors end this cell alone."""
        clock = time.perf_counter()
        try:
            step(job)
        except (StorageError, LeaseLostError):
            raise
        except Exception as error:  # the boundary of a cell: a broken one is a recorded failure
            if lost_device(error):
                raise device_error(self.bench.device, error) from error
            if isinstance(error, OSError) and is_full(error):
                raise storage_error(error, self.ledger.cell_directory(job.order.cell.id)) from error
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
        self.ledger.write_error(job.order.cell, {**error, **where, **_how(job.order)})
        return Ended(job.order.cell.id, error["outcome"])

    # --- one cell -------------------------------------------------------------------------------------------------

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[Batch]:
        first = next((job for job in jobs if job.runs), None)
        if first is not None:
            yield from self.bench.batches(first.order.cell, first.order.batch_size)

    def _open(self, job: _Job) -> None:
        """Everything that a cell's questions need, or the error that it fails with."""
        cell = job.order.cell
        job.environment = self.bench.environment(cell)
        reference = self._reference(cell)
        loaded, task = self.bench.model(cell), self.bench.task(cell)
        job.environment = self.bench.environment(cell)
        self.bench.batches(cell, job.order.batch_size)
        job.asking = Asking(
            cell,
            self.bench.pruner(cell),
            loaded,
            task,
            self.bench.host,
            lambda index: self.bench.prepare(loaded, task, [index]),
            reference,
            keep=max(self.overlays, int(cell.lens.get("samples", 0))),
        )

    def _close(self, job: _Job) -> None:
        """What is made of a cell's answers; its result, or what will become one, is written last."""
        clock = time.perf_counter()
        cell, asking = job.order.cell, _opened(job)
        answers = asking.finished()
        against = self._compare(cell, answers, asking.reference)
        lens = self._lens(cell, answers) if cell.lens else None
        if cell.reference is None:
            self.ledger.write_first_token(cell, answers.first_token())
        self.ledger.write_samples(cell, answers.rows)
        if self.overlays:
            self.ledger.write_overlays(cell, self._overlays(job.order, answers))
        result = {
            "quality": summarise(answers.rows),
            "against_none": against,
            "tokens": token_accounts(answers.rows),
            "lens": lens,
            "cost": None,
            "started": job.started.isoformat(timespec="seconds"),
            "seconds": job.seconds + time.perf_counter() - clock,
            "environment": None if job.environment is None else job.environment.to_json(),
            "worker": {"pid": os.getpid(), "device": self.bench.device},
            "family": self.bench.model(cell).family,
        }
        write = self.ledger.write_answers if cell.efficiency else self.ledger.write_result
        write(cell, {**result, **_how(job.order)})

    def _reference(self, cell: Cell) -> FirstToken | None:
        """First-token distributions of the unpruned cell; for the unpruned cell itself there is none."""
        if cell.reference is None:
            return None
        known = functools.partial(self._known, cell.reference)
        if not (self.ledger.awaited(cell.reference, known) or {}).get("quality"):
            raise TokenPruneError(
                f"the unpruned cell `{cell.reference}` has no result, so there is nothing to compare with",
                hint="mend what made it fail, then continue with failed cells retried",
            )
        return self.ledger.first_token(cell.reference)

    def _known(self, cell_id: str) -> Mapping[str, Any] | None:
        """What an unpruned cell came to: its result, or its answers, or its error."""
        return self.ledger.settled(cell_id) or self.ledger.error(cell_id)

    def _compare(self, cell: Cell, answers: Answers, reference: FirstToken | None) -> dict[str, float | None] | None:
        if cell.reference is None or reference is None:
            return None
        divergence = kl_divergence(reference.log_probs, answers.first_token().log_probs)
        for row, value in zip(answers.rows, divergence, strict=True):
            row["kl"] = float(value) if np.isfinite(value) else None
        known = [row["kl"] for row in answers.rows if row["kl"] is not None]
        return {
            **compare(answers.rows, self.ledger.samples(cell.reference)),
            "kl": sum(known) / len(known) if known else None,
        }

    def _lens(self, cell: Cell, answers: Answers) -> dict[str, Any]:
        layers = self.bench.captures(cell)
        count = min(int(cell.lens["samples"]), cell.samples)
        return lens_errors(layers, [answers.kept.get(index) for index in range(count)])

    def _overlays(self, order: Order, answers: Answers) -> dict[str, Any]:
        cell = order.cell
        first = self.bench.batches(cell, order.batch_size)[0]
        drawn = {index: kept for index, kept in answers.kept.items() if index < min(self.overlays, len(first.indices))}
        grids = self.bench.grids(cell, first)
        return save_overlays(self.ledger.directory, cell, first.samples, grids, drawn, answers.rows)


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


def _ask(job: _Job, batch: Batch, memo: PrefillMemo | None) -> None:
    _opened(job).ask(batch, memo)


def _opened(job: _Job) -> Asking:
    assert job.asking is not None  # noqa: S101 - a job that runs was opened
    return job.asking


def _how(order: Order) -> dict[str, int]:
    """How often the cell was tried, and with how many samples per batch at last."""
    return {"attempts": order.attempt, "batch_size": order.batch_size or order.cell.batch_size}
