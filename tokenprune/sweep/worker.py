"""Run one cell: ask every question under its pruner, score, compare, measure, and write the result last."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.engine import Session, pruned
from tokenprune.errors import BudgetError, IncompatibleError, NothingPrunedError, TokenPruneError
from tokenprune.metrics.accounts import token_accounts
from tokenprune.metrics.distribution import FirstToken, kl_divergence, log_probs_at, top_classes
from tokenprune.metrics.efficiency import measure_cost
from tokenprune.metrics.lens import KeptTokens, kept_tokens, lens_errors
from tokenprune.metrics.quality import compare, summarise
from tokenprune.pruner import PositionPolicy, Pruner, PruneRecord
from tokenprune.sweep.bench import Batch, Bench, picture_digest
from tokenprune.sweep.dispatch import Order
from tokenprune.sweep.executors import Ended, Outcome
from tokenprune.sweep.files import StorageError, is_full, storage_error, write_json, write_jsonl
from tokenprune.sweep.lease import LeaseLostError
from tokenprune.sweep.ledger import Ledger
from tokenprune.sweep.pictures import save_overlays
from tokenprune.sweep.plan import Cell

FIRST_TOKEN_FILE = "first_token.npz"
GIVE_UP_AFTER = 8
"""A cell fails where not one of its first samples ran; later failures are counted as wrong answers."""

_log = logging.getLogger(__name__)


@dataclass
class _Answers:
    """What a cell's questions gave so far, in task order."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    classes: list[NDArray[np.int32]] = field(default_factory=list)
    log_probs: list[NDArray[np.float32]] = field(default_factory=list)
    kept: dict[int, KeptTokens] = field(default_factory=dict)
    first_error: Exception | None = None

    def ran(self) -> int:
        return sum(1 for row in self.rows if not row["error"])


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

    def run(self, cell: Cell, *, attempt: int = 1, batch_size: int | None = None) -> Ended:
        """Run one cell to its end; whatever happens in it is recorded and never raised (Ctrl-C is).

        A cell that runs out of memory is tried once more with smaller batches, and its result says so.

        Args:
            cell: The cell.
            attempt: Which attempt this is, for the record.
            batch_size: Samples per batch in place of the cell's own.

        Raises:
            StorageError: The disk takes no more: no matter of this cell.
            LeaseLostError: Another invocation has taken the directory over.
        """
        self.ledger.begin_cell(cell)
        order = Order(cell, attempt, batch_size)
        try:
            result = self._try(order)
            if result is None:
                order = Order(cell, attempt + 1, order.smaller())
                _log.warning("%s ran out of memory, once more with %d samples a batch", cell.name, order.batch_size)
                self.bench.release()
                result = self._result(order)
        except (StorageError, LeaseLostError):
            raise
        except Exception as error:  # the boundary of a cell: a broken one is a recorded failure
            if isinstance(error, OSError) and is_full(error):
                raise storage_error(error, self.ledger.cell_directory(cell.id)) from error
            outcome: Outcome = "refused" if isinstance(error, BudgetError | IncompatibleError) else "failed"
            _log.error("%s %s: %s", cell.name, outcome, error)
            self.ledger.write_error(cell, {**describe_error(error, outcome), **_how(order)})
            return Ended(cell.id, outcome)
        self.ledger.write_result(cell, {**result, **_how(order)})
        return Ended(cell.id, "done")

    def _try(self, order: Order) -> dict[str, Any] | None:
        """The cell's result, or `None` where there was too little memory and smaller batches may do.

        It returns instead of raising, because a traceback holds on to the memory.
        """
        try:
            return self._result(order)
        except Exception as error:
            if order.smaller() is None or not ran_out_of_memory(error):
                raise
            return None

    def _result(self, order: Order) -> dict[str, Any]:
        cell = order.cell
        started, clock = datetime.now(UTC), time.perf_counter()
        torch.manual_seed(cell.seed)
        reference = self._reference(cell)
        loaded = self.bench.model(cell)
        pruner = cast(Pruner, self.bench.host.pruners.get(cell.pruner).build(_options(cell)))
        answers = self._ask_all(order, pruner, reference)
        self._must_have_pruned(cell, answers)
        folder = self.ledger.cell_directory(cell.id)
        against = self._compare(cell, answers, reference)
        lens = self._lens(cell, answers) if cell.lens else None
        cost = self._cost(order, pruner) if cell.efficiency else None
        if cell.reference is None:
            FirstToken(np.stack(answers.classes), np.stack(answers.log_probs)).save(folder / FIRST_TOKEN_FILE)
        write_jsonl(folder / "samples.jsonl", answers.rows)
        if self.overlays:
            write_json(folder / "overlays.json", self._overlays(order, answers))
        return {
            "quality": summarise(answers.rows),
            "against_none": against,
            "tokens": token_accounts(answers.rows),
            "lens": lens,
            "cost": cost,
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "worker": {"pid": os.getpid(), "device": self.bench.device},
            "family": loaded.family,
        }

    # --- questions ------------------------------------------------------------------------------------------------

    def _ask_all(self, order: Order, pruner: Pruner, reference: FirstToken | None) -> _Answers:
        answers, cell = _Answers(), order.cell
        for batch in self.bench.batches(cell, order.batch_size):
            try:
                self._ask(cell, pruner, batch, answers, reference)
            except TokenPruneError:
                raise  # not a matter of one sample: the pruner refuses, or did not prune
            except Exception as error:
                if ran_out_of_memory(error):
                    raise  # nor is this: the cell may do with smaller batches, and is not measured without them
                _log.warning("a batch failed (%s), asking its questions one by one", error)
                self._ask_one_by_one(cell, pruner, batch, answers, reference)
        if not answers.ran():
            assert answers.first_error is not None  # noqa: S101 - every sample failed, so there is one
            raise answers.first_error
        return answers

    def _ask_one_by_one(
        self, cell: Cell, pruner: Pruner, batch: Batch, answers: _Answers, reference: FirstToken | None
    ) -> None:
        loaded, task = self.bench.model(cell), self.bench.task(cell)
        for index in batch.indices:
            single = self.bench.prepare(loaded, task, [index])
            try:
                self._ask(cell, pruner, single, answers, reference)
            except TokenPruneError:
                raise
            except Exception as error:
                if ran_out_of_memory(error):
                    raise
                answers.first_error = answers.first_error or error
                self._note_failure(single, answers, reference, error)
                if not answers.ran() and len(answers.rows) >= GIVE_UP_AFTER:
                    raise

    def _ask(self, cell: Cell, pruner: Pruner, batch: Batch, answers: _Answers, reference: FirstToken | None) -> None:
        loaded, task = self.bench.model(cell), self.bench.task(cell)
        with self._session(cell, pruner) as session:
            made = loaded.model.generate(
                **batch.inputs,
                do_sample=False,
                max_new_tokens=cell.max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        record = session.last
        new = made.sequences[:, batch.inputs["input_ids"].shape[1] :]
        texts = loaded.processor.batch_decode(new, skip_special_tokens=True)
        first = made.logits[0]
        ids = top_classes(first) if reference is None else torch.from_numpy(reference.ids[list(batch.indices)]).long()
        log_probs = log_probs_at(first, ids).cpu().numpy()
        rows = []
        for place, (index, sample, text) in enumerate(zip(batch.indices, batch.samples, texts, strict=True)):
            prediction = str(text).strip()
            rows.append(
                {
                    **_identify(index, sample),
                    "prediction": prediction,
                    "score": float(task.score(prediction, sample)),
                    "error": None,
                    **_account_row(record, place),
                }
            )
        # Nothing is kept of a batch before all of it worked: a retry must not count a sample twice.
        answers.rows += rows
        answers.classes += list(ids.cpu().numpy().astype(np.int32))
        answers.log_probs += list(log_probs.astype(np.float32))
        wanted = max(self.overlays, int(cell.lens.get("samples", 0)))
        for place, index in enumerate(batch.indices):
            if index < wanted:
                answers.kept[index] = kept_tokens(record, place)

    def _note_failure(self, batch: Batch, answers: _Answers, reference: FirstToken | None, error: Exception) -> None:
        (index,), (sample,) = batch.indices, batch.samples
        answers.rows.append(
            {**_identify(index, sample), "prediction": "", "score": 0.0, "error": f"{type(error).__name__}: {error}"}
        )
        like = reference.ids[index] if reference is not None else (answers.classes or [np.zeros(1, np.int32)])[0]
        answers.classes.append(np.zeros_like(like))
        answers.log_probs.append(np.full(like.shape, np.nan, dtype=np.float32))

    def _session(self, cell: Cell, pruner: Pruner) -> AbstractContextManager[Session]:
        loaded = self.bench.model(cell)
        positions = cast(PositionPolicy | None, cell.positions)
        frames = self.bench.host.tasks.get(cell.task).video
        return pruned(loaded.model, pruner, cell.budget, positions=positions, joint=loaded.joint, frames=frames)

    # --- what is made of the answers ------------------------------------------------------------------------------

    def _must_have_pruned(self, cell: Cell, answers: _Answers) -> None:
        for row in answers.rows:
            if row["error"]:
                continue
            asked = cell.budget.count(row["original_tokens"])
            if cell.reference is None:
                if row["layer_average_tokens"] != row["original_tokens"]:
                    raise NothingPrunedError(
                        f"the unpruned cell ran sample `{row['id']}` with {row['layer_average_tokens']} of "
                        f"{row['original_tokens']} visual tokens",
                        hint="this is an error of the engine; please report it",
                    )
            elif asked < row["original_tokens"] and row["layer_average_tokens"] >= row["original_tokens"]:
                raise NothingPrunedError(
                    f"`{cell.label}` was asked to keep {asked} of {row['original_tokens']} visual tokens of sample "
                    f"`{row['id']}` and kept all",
                    hint="this is an error of the pruner or of the engine; please report it",
                )

    def _reference(self, cell: Cell) -> FirstToken | None:
        """First-token distributions of the unpruned cell; for the unpruned cell itself there is none."""
        if cell.reference is None:
            return None
        if self.ledger.state(cell.reference) != "done":
            raise TokenPruneError(
                f"the unpruned cell `{cell.reference}` has no result, so there is nothing to compare with",
                hint="mend what made it fail, then continue with failed cells retried",
            )
        return FirstToken.load(self.ledger.cell_directory(cell.reference) / FIRST_TOKEN_FILE)

    def _compare(self, cell: Cell, answers: _Answers, reference: FirstToken | None) -> dict[str, float | None] | None:
        if cell.reference is None or reference is None:
            return None
        divergence = kl_divergence(reference.log_probs, np.stack(answers.log_probs))
        for row, value in zip(answers.rows, divergence, strict=True):
            row["kl"] = float(value) if np.isfinite(value) else None
        known = [row["kl"] for row in answers.rows if row["kl"] is not None]
        return {
            **compare(answers.rows, self.ledger.samples(cell.reference)),
            "kl": sum(known) / len(known) if known else None,
        }

    def _lens(self, cell: Cell, answers: _Answers) -> dict[str, Any]:
        layers = self.bench.captures(cell)
        count = min(int(cell.lens["samples"]), cell.samples)
        return lens_errors(layers, [answers.kept.get(index) for index in range(count)])

    def _overlays(self, order: Order, answers: _Answers) -> dict[str, Any]:
        cell = order.cell
        first = self.bench.batches(cell, order.batch_size)[0]
        drawn = {index: kept for index, kept in answers.kept.items() if index < min(self.overlays, len(first.indices))}
        grids = self.bench.grids(cell, first)
        return save_overlays(self.ledger.directory, cell, first.samples, grids, drawn, answers.rows)

    def _cost(self, order: Order, pruner: Pruner) -> dict[str, Any]:
        cell = order.cell
        loaded = self.bench.model(cell)
        first = self.bench.batches(cell, order.batch_size)[0]
        sample: Mapping[str, Tensor] = self.bench.encode(loaded, first.samples[:1])
        return measure_cost(loaded.model, sample, lambda: self._session(cell, pruner), **cell.efficiency).to_json()


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


def ran_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch, numpy and Python say that there is no memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's allocator of the CPU


def _how(order: Order) -> dict[str, int]:
    """How often the cell was tried, and with how many samples per batch at last."""
    return {"attempts": order.attempt, "batch_size": order.batch_size or order.cell.batch_size}


def _options(cell: Cell) -> dict[str, Any]:
    return dict(cell.options)


def _identify(index: int, sample: Any) -> dict[str, Any]:
    return {
        "index": index,
        "id": sample.id,
        "family": sample.family,
        "question": sample.question,
        "answer": sample.answer,
        "pictures": picture_digest(sample),
    }


def _account_row(record: PruneRecord, place: int) -> dict[str, float]:
    return {
        "original_tokens": record.original_visual_tokens[place],
        "entering_tokens": record.entering()[place],
        "layer_average_tokens": record.layer_average()[place],
        "kv_tokens": record.kv_tokens()[place],
        "final_tokens": record.final()[place],
    }
