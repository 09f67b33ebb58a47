"""Ask the questions of one cell under its pruner, batch by batch, and keep what they gave in task order."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.cell import Cell
from tokenprune.checkpoints import LoadedModel
from tokenprune.engine import PrefillMemo, Session, pruned
from tokenprune.errors import NothingPrunedError, TokenPruneError
from tokenprune.evaluation.machine.devices import lost_device, ran_out_of_memory
from tokenprune.evaluation.model_cache import Batch, picture_digest, with_rgb
from tokenprune.metrics.distribution import FirstToken, log_probs_at, top_classes
from tokenprune.metrics.lens import KeptTokens, kept_tokens
from tokenprune.plugins import Host
from tokenprune.pruner import PositionPolicy, Pruner, PruneRecord
from tokenprune.tasks.base import Sample, Task

GIVE_UP_AFTER = 8
"""A cell fails where not one of its first samples ran; later failures are counted as wrong answers."""

_log = logging.getLogger(__name__)


@dataclass
class Answers:
    """What a cell's questions gave so far, in task order.

    Args:
        rows: One per question, as `samples.jsonl` holds it.
        classes: Ids of the first answer token's likeliest classes; `None` where the question failed.
        log_probs: Their log-probabilities.
        kept: The tokens that stayed, of the samples that are looked at later.
        first_error: What the first question that failed raised.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    classes: list[NDArray[np.int32] | None] = field(default_factory=list)
    log_probs: list[NDArray[np.float32] | None] = field(default_factory=list)
    kept: dict[int, KeptTokens] = field(default_factory=dict)
    first_error: Exception | None = None

    def ran(self) -> int:
        """Questions that did not fail."""
        return sum(1 for row in self.rows if not row["error"])

    def since(self, start: int) -> dict[str, Any]:
        """What the questions from `start` on gave, as JSON that gives the same bits again (see `take_over`)."""
        return {
            "rows": self.rows[start:],
            "classes": [None if found is None else _packed(found.astype("<i4")) for found in self.classes[start:]],
            "log_probs": [None if found is None else _packed(found.astype("<f4")) for found in self.log_probs[start:]],
            "kept": {str(index): asdict(kept) for index, kept in self.kept.items() if index >= start},
        }

    def take_over(self, batch: Mapping[str, Any]) -> None:
        """Add what `since` gave earlier.

        Raises:
            ValueError: It is damaged; nothing is added.
        """
        try:
            rows = [{**row} for row in batch["rows"]]
            classes = [None if text is None else _unpacked(text, "<i4") for text in batch["classes"]]
            log_probs = [None if text is None else _unpacked(text, "<f4") for text in batch["log_probs"]]
            kept = {int(index): KeptTokens.from_json(data) for index, data in batch["kept"].items()}
            whole = all(row["error"] or row["final_tokens"] >= 0 for row in rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no answers of a batch ({type(error).__name__}: {error})") from error
        if not whole or not len(rows) == len(classes) == len(log_probs):
            raise ValueError("no answers of a batch: something is missing")
        self.rows += rows
        self.classes += [None if found is None else found.astype(np.int32) for found in classes]
        self.log_probs += [None if found is None else found.astype(np.float32) for found in log_probs]
        self.kept.update(kept)

    def first_token(self) -> FirstToken:
        """The first answer tokens; those of questions that failed have no log-probability (NaN)."""
        width = next(len(ids) for ids in self.classes if ids is not None)
        ids = [np.zeros(width, np.int32) if found is None else found for found in self.classes]
        log_probs = [np.full(width, np.nan, np.float32) if found is None else found for found in self.log_probs]
        return FirstToken(np.stack(ids), np.stack(log_probs))

    def mean_kept(self) -> float | None:
        """Visual tokens that stay of a sample, the mean so far."""
        kept = [row["final_tokens"] for row in self.rows if not row["error"]]
        return sum(kept) / len(kept) if kept else None


class Asking:
    """The questions of one cell.

    Args:
        cell: The cell.
        pruner: Its pruner.
        loaded: Its model.
        task: Its task.
        host: Plugins.
        prepare: Makes a batch of some of the task's samples.
        reference: First-token distributions of the unpruned cell; `None` for the unpruned cell itself.
        keep: Samples, from the first on, whose kept tokens are remembered.
    """

    def __init__(
        self,
        cell: Cell,
        pruner: Pruner,
        loaded: LoadedModel,
        task: Task,
        host: Host,
        prepare: Callable[[int], Batch],
        reference: FirstToken | None,
        keep: int,
    ) -> None:
        self.cell = cell
        self.pruner = pruner
        self.reference = reference
        self.answers = Answers()
        self._loaded = loaded
        self._task = task
        self._host = host
        self._prepare = prepare
        self._keep = keep

    def ask(self, batch: Batch, memo: PrefillMemo | None = None) -> None:
        """Ask a batch; where it fails, its questions one by one, and those that fail alone count as wrong.

        Args:
            batch: The batch.
            memo: What other cells have computed of it.

        Raises:
            TokenPruneError: The pruner refuses, or did not prune: no matter of one sample.
            Exception: There was too little memory, or none of the first samples ran.
        """
        try:
            self._ask(batch, memo)
        except TokenPruneError:
            raise
        except Exception as error:
            if ran_out_of_memory(error) or lost_device(error):
                raise  # no matter of one sample either: the cell may do with smaller batches, or on another device
            _log.warning("a batch failed (%s), asking its questions one by one", error)
            self.ask_one_by_one(batch.indices)

    def finished(self) -> Answers:
        """All answers.

        Raises:
            Exception: Every question failed; what the first one raised.
            NothingPrunedError: Tokens that should be gone are there, or the other way round.
        """
        if not self.answers.ran():
            assert self.answers.first_error is not None  # noqa: S101 - every sample failed, so there is one
            raise self.answers.first_error
        must_have_pruned(self.cell, self.answers)
        return self.answers

    def ask_one_by_one(self, indices: Sequence[int]) -> None:
        """Ask questions each by itself; those that fail, also while their batch of one is prepared, count as wrong.

        Raises:
            TokenPruneError: The pruner refuses, or did not prune: no matter of one sample.
            Exception: There was too little memory, or none of the first samples ran.
        """
        answers = self.answers
        for index in indices:
            batch: Batch | None = None
            try:
                batch = self._prepare(index)
                self._ask(batch, None)
            except Exception as error:
                refused = batch is not None and isinstance(error, TokenPruneError)
                if refused or ran_out_of_memory(error) or lost_device(error):
                    raise
                answers.first_error = answers.first_error or error
                self._note_failure(index, error)
                if not answers.ran() and len(answers.rows) >= GIVE_UP_AFTER:
                    raise

    def _ask(self, batch: Batch, memo: PrefillMemo | None) -> None:
        model, answers = self._loaded.model, self.answers
        torch.manual_seed(self.cell.seed)  # anew for every batch: cells that run together must not meet each other here
        with session_of(self.cell, self.pruner, self._loaded, self._host, memo) as session:
            made = model.generate(
                **batch.inputs,
                do_sample=False,
                max_new_tokens=self.cell.max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        record = session.last
        new = made.sequences[:, batch.inputs["input_ids"].shape[1] :]
        texts = self._loaded.processor.batch_decode(new, skip_special_tokens=True)
        first, known = made.logits[0], self.reference
        ids = top_classes(first) if known is None else torch.from_numpy(known.ids[list(batch.indices)]).long()
        log_probs = log_probs_at(first, ids).cpu().numpy()
        rows = []
        for place, (index, sample, text) in enumerate(zip(batch.indices, batch.samples, texts, strict=True)):
            prediction = str(text).strip()
            rows.append(
                {
                    **_identify(index, sample),
                    "prediction": prediction,
                    "score": float(self._task.score(prediction, sample)),
                    "error": None,
                    **_account_row(record, place),
                }
            )
        # Nothing is kept of a batch before all of it worked: a retry must not count a sample twice.
        answers.rows += rows
        answers.classes += list(ids.cpu().numpy().astype(np.int32))
        answers.log_probs += list(log_probs.astype(np.float32))
        for place, index in enumerate(batch.indices):
            if index < self._keep:
                answers.kept[index] = kept_tokens(record, place)

    def _note_failure(self, index: int, error: Exception) -> None:
        answers = self.answers
        answers.rows.append(
            {
                **_identify(index, self._task[index], prepared=False),
                "prediction": "",
                "score": 0.0,
                "error": f"{type(error).__name__}: {error}",
            }
        )
        answers.classes.append(None)
        answers.log_probs.append(None)


def session_of(
    cell: Cell, pruner: Pruner, loaded: LoadedModel, host: Host, memo: PrefillMemo | None = None
) -> AbstractContextManager[Session]:
    """A cell's model under its pruner."""
    return pruned(
        loaded.model,
        pruner,
        cell.budget,
        positions=cast(PositionPolicy | None, cell.positions),
        joint=loaded.joint,
        frames=host.tasks.get(cell.task).video,
        memo=memo,
        host=host,
    )


def must_have_pruned(cell: Cell, answers: Answers) -> None:
    """Make sure that the tokens that should be gone are gone, and that the unpruned cell ran with all.

    Raises:
        NothingPrunedError: Otherwise.
    """
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


def _identify(index: int, sample: Sample, *, prepared: bool = True) -> dict[str, Any]:
    return {
        "index": index,
        "id": sample.id,
        "family": sample.family,
        "question": sample.question,
        "answer": sample.answer,
        "pictures": picture_digest(sample) if prepared else _picture_digest(sample),
    }


def _picture_digest(sample: Sample) -> str:
    """The digest of pictures that perhaps cannot be read; these are nobody else's then."""
    try:
        return picture_digest(with_rgb(sample))
    except Exception:  # noqa: BLE001 - a broken picture raises nearly anything
        return hashlib.sha256(sample.id.encode()).hexdigest()[:12]


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _unpacked(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def _account_row(record: PruneRecord, place: int) -> dict[str, float]:
    return {
        "original_tokens": record.original_visual_tokens[place],
        "entering_tokens": record.entering()[place],
        "layer_average_tokens": record.layer_average()[place],
        "kv_tokens": record.kv_tokens()[place],
        "final_tokens": record.final()[place],
    }
