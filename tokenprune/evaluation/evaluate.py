"""The one loop of every evaluation: prepare a batch, generate, decode, score.

`evaluate` is for notebooks. Sweeps and commands make one `Evaluation` per pruner and run them `batch_by_batch`, so that
a batch is prepared and encoded once for all of them.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from tokenprune.budget import Budget, BudgetLike
from tokenprune.cells.cell import REFERENCE
from tokenprune.checkpoints import LoadedModel
from tokenprune.engine import PrefillMemo
from tokenprune.engine.pruning import resolve_budget, resolve_pruner
from tokenprune.errors import ConfigError, NothingPrunedError, TokenPruneError
from tokenprune.evaluation.batches import Batch, Batches, Questions, picture_digest, with_rgb
from tokenprune.evaluation.generation import Pruning
from tokenprune.evaluation.machine.devices import lost_device, ran_out_of_memory
from tokenprune.evaluation.predictions import Prediction, Predictions
from tokenprune.metrics.accounts import token_accounts
from tokenprune.metrics.distribution import FirstToken, log_probs_at, top_classes
from tokenprune.metrics.lens import kept_tokens
from tokenprune.metrics.quality import summarise
from tokenprune.plugins import Host, default_host
from tokenprune.pruner import PositionPolicy, Pruner, PruneRecord
from tokenprune.tasks.base import Sample

GIVE_UP_AFTER = 8
"""An evaluation fails if not one of its first samples ran; later failures are counted as wrong answers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` found.

    Args:
        accuracy: Mean score of all samples, between 0 and 1; a sample that failed scores 0.
        families: Mean score by kind of question.
        errors: Samples that failed.
        tokens: Mean visual tokens per sample: `original`, `entering` the decoder, `layer_average`, in the `kv` cache,
            and `final`; and the `layer_average_ratio`.
        rows: One per sample, in task order: `id`, `question`, `answer`, `prediction`, `score`, `error`, tokens.
    """

    accuracy: float
    families: Mapping[str, float]
    errors: int
    tokens: Mapping[str, float | None]
    rows: tuple[Mapping[str, Any], ...]


def evaluate(
    loaded: LoadedModel,
    pruner: str | Pruner = REFERENCE,
    budget: Budget | BudgetLike | None = None,
    *,
    task: str | Questions | Sequence[Sample] = "scenes",
    limit: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    positions: PositionPolicy | None = None,
    sink: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
    host: Host | None = None,
    **options: Any,
) -> EvaluationResult:
    """Ask a model the questions of a task under a pruner, and score its answers.

    Args:
        loaded: The model, as `load_model` gives it.
        pruner: Name of an installed pruner, or a pruner object; `none` for the unpruned model.
        budget: Visual tokens to keep per image, as `pruned` takes it: `64` tokens, a ratio like `0.25`, or `"25%"`.
        task: Name of an installed task, a task, or samples of your own. An answer to these is right if it is the
            `answer` of the sample, without regard to case and white space at its ends.
        limit: Only the first so many samples.
        batch_size: Samples per batch.
        max_new_tokens: Longest answer in tokens; the task's own if it is not given.
        positions: `keep` or `compact` position ids; the pruner's own choice if it is not given.
        sink: Called with the rows of every batch.
        host: Plugins; the installed ones if it is not given.
        options: Options of a pruner that is given by name (`layer=0`). `seed` is torch's seed, too, as in a sweep.

    Raises:
        UnknownNameError: The pruner or the task is not installed.
        ConfigError: There are no samples, or an option is unknown or out of range.
        BudgetError: The budget is missing or out of range, or the pruner cannot meet it.
        IncompatibleError: The pruner cannot work on this model.
        Exception: Every sample failed; what the first one raised.

    Example:
        >>> from tokenprune import evaluate, load_model
        >>> result = evaluate(load_model("scenes"), "iwp", 0.25, task="scenes", limit=8, layer=0)
        >>> result.tokens["original"], result.tokens["final"]
        (256.0, 64.0)
        >>> 0.0 <= result.accuracy <= 1.0
        True
    """
    host = host or default_host()
    questions = _questions(task, host)
    count = len(questions) if limit is None else min(limit, len(questions))
    if count < 1:
        raise ConfigError("there are no samples to evaluate", hint="give samples, or a `limit` of at least 1")
    chosen = resolve_pruner(pruner, options, host, evaluate)
    frames = host.tasks.get(task).video if isinstance(task, str) else questions[0].video
    evaluation = Evaluation(
        Pruning(loaded, chosen, resolve_budget(chosen, budget), positions, frames, host),
        Batches(loaded, questions, count=count, size=batch_size),
        max_new_tokens=max_new_tokens or int(questions.max_new_tokens),
        seed=int(options.get("seed") or 0),
    )
    for _, run in batch_by_batch([evaluation]):
        new = run()
        if sink is not None:
            sink([prediction.row for prediction in new])
    rows = evaluation.finished().rows
    quality = summarise(rows)
    return EvaluationResult(
        quality["accuracy"],
        {family: facts["accuracy"] for family, facts in quality["families"].items()},
        quality["errors"],
        token_accounts(rows),
        tuple(rows),
    )


class Evaluation:
    """The samples of a task under one pruner.

    Args:
        pruning: The model under its pruner.
        batches: The samples.
        max_new_tokens: Longest answer, in tokens.
        label: What messages call the pruner; its name if it is not given.
        seed: Seed of torch, set anew before every batch: evaluations that run together do not depend on each other.
        reference: First-token distributions of the unpruned model, whose classes are measured under the pruner, too;
            without them the likeliest classes are.
        keep: Samples, from the first on, whose kept tokens are remembered.
        strict: Whether the error of a batch is raised. Otherwise its samples are tried one by one, and those that fail
            alone count as wrong.
    """

    def __init__(
        self,
        pruning: Pruning,
        batches: Batches,
        *,
        max_new_tokens: int,
        label: str = "",
        seed: int = 0,
        reference: FirstToken | None = None,
        keep: int = 0,
        strict: bool = False,
    ) -> None:
        self.pruning = pruning
        self.batches = batches
        self.label = label or pruning.pruner.spec.name
        self.reference = reference
        self.predictions = Predictions()
        self.stopped = False
        """Set it to leave the evaluation out of the batches that are left."""
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._keep = keep
        self._strict = strict

    @property
    def unpruned(self) -> bool:
        """Whether this is the unpruned model."""
        return self.pruning.pruner.spec.name == REFERENCE

    def evaluate(self, number: int, memo: PrefillMemo | None = None) -> Sequence[Prediction]:
        """Evaluate a batch by its number, and return its predictions.

        Args:
            number: The batch.
            memo: What other pruners have computed of it.

        Raises:
            TokenPruneError: The pruner refuses, or did not prune: no matter of one sample.
            Exception: There was too little memory, the device is lost, or none of the first samples ran.
        """
        before = len(self.predictions)
        try:
            batch = self.batches.batch(number)
        except Exception as error:
            if self._strict or ran_out_of_memory(error) or lost_device(error):
                raise
            _log.warning("a batch cannot be prepared (%s), asking its questions one by one", error)
            self._evaluate_one_by_one(self.batches.indices(number))
        else:
            self.evaluate_batch(batch, memo)
        return self.predictions.samples[before:]

    def evaluate_batch(self, batch: Batch, memo: PrefillMemo | None = None) -> None:
        """Evaluate a prepared batch; see `evaluate`."""
        try:
            self._evaluate_whole(batch, memo)
        except TokenPruneError:
            raise
        except Exception as error:
            if self._strict or ran_out_of_memory(error) or lost_device(error):
                raise  # the cell may do with smaller batches, or on another device
            _log.warning("a batch failed (%s), asking its questions one by one", error)
            self._evaluate_one_by_one(batch.indices)

    def finished(self) -> Predictions:
        """All predictions, checked.

        Raises:
            Exception: Every sample failed; what the first one raised.
            NothingPrunedError: Tokens are there that should be gone, or the other way round.
        """
        if not self.predictions.ran():
            assert self.predictions.first_error is not None  # noqa: S101 - every sample failed, so there is one
            raise self.predictions.first_error
        for row in self.predictions.rows:
            if not row["error"]:
                self._check_pruned(row)
        return self.predictions

    def _evaluate_one_by_one(self, indices: Sequence[int]) -> None:
        """Evaluate samples one by one; those that fail, also while they are prepared, count as wrong."""
        predictions = self.predictions
        for index in indices:
            batch: Batch | None = None
            try:
                batch = self.batches.prepare([index])
                self._evaluate_whole(batch, None)
            except Exception as error:
                refused = batch is not None and isinstance(error, TokenPruneError)
                if refused or ran_out_of_memory(error) or lost_device(error):
                    raise
                predictions.first_error = predictions.first_error or error
                predictions.samples.append(Prediction(_failed_row(index, self.batches.task[index], error)))
                if not predictions.ran() and len(predictions) >= GIVE_UP_AFTER:
                    raise

    def _evaluate_whole(self, batch: Batch, memo: PrefillMemo | None) -> None:
        """Generate, decode and score; no prediction is added before all of the batch worked."""
        torch.manual_seed(self._seed)
        made = self.pruning.generate(batch.inputs, self._max_new_tokens, memo)
        texts = self.pruning.loaded.decode(made.tokens)
        if self.reference is None:
            classes = top_classes(made.first_logits)
        else:
            classes = torch.from_numpy(self.reference.ids[list(batch.indices)]).long()
        log_probs = log_probs_at(made.first_logits, classes).cpu().numpy()
        ids = classes.cpu().numpy().astype(np.int32)
        new = []
        for place, (index, sample, prediction) in enumerate(zip(batch.indices, batch.samples, texts, strict=True)):
            row = {
                **_sample_facts(index, sample, picture_digest(sample)),
                "prediction": prediction,
                "score": float(self.batches.task.score(prediction, sample)),
                "error": None,
                **_token_counts(made.record, place),
            }
            kept = kept_tokens(made.record, place) if index < self._keep else None
            new.append(Prediction(row, ids[place], log_probs[place].astype(np.float32), kept))
        self.predictions.samples += new

    def _check_pruned(self, row: Mapping[str, Any]) -> None:
        """Make sure that the tokens that should be gone are gone, and that the unpruned model ran with all.

        Raises:
            NothingPrunedError: Otherwise.
        """
        original, average = row["original_tokens"], row["layer_average_tokens"]
        asked = self.pruning.budget.count(original)
        if self.unpruned:
            if average != original:
                raise NothingPrunedError(
                    f"the unpruned cell ran sample `{row['id']}` with {average} of {original} visual tokens",
                    hint="this is an error of the engine; please report it",
                )
        elif asked < original and average >= original:
            raise NothingPrunedError(
                f"`{self.label}` was asked to keep {asked} of {original} visual tokens of sample `{row['id']}` and "
                "kept all",
                hint="this is an error of the pruner or of the engine; please report it",
            )


def batch_by_batch(
    evaluations: Sequence[Evaluation],
) -> Iterator[tuple[Evaluation, Callable[[], Sequence[Prediction]]]]:
    """The batches of evaluations over the same samples: each batch under every evaluation before the next batch.

    What a batch needs of several evaluations, such as its encoded images, is computed once. Batches that an evaluation
    has predictions of already are left out.

    Args:
        evaluations: The evaluations, with the same `batches`.

    Yields:
        An evaluation, and what runs it on the batch: a function that returns the new predictions, or raises.
    """
    batches = evaluations[0].batches if evaluations else ()
    for number in range(len(batches)):
        start = evaluations[0].batches.indices(number).start
        running = [each for each in evaluations if not each.stopped and len(each.predictions) <= start]
        memo = PrefillMemo() if len(running) > 1 else None
        for evaluation in running:
            yield evaluation, functools.partial(evaluation.evaluate, number, memo)


@dataclass(frozen=True)
class OwnSamples:
    """Samples of a user in place of a task.

    Args:
        samples: The samples.
        max_new_tokens: Longest answer, in tokens.
    """

    samples: Sequence[Sample]
    max_new_tokens: int = 32

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def score(self, prediction: str, sample: Sample) -> float:
        """1 for the answer of the sample, without regard to case, otherwise 0."""
        return float(prediction.strip().casefold() == sample.answer.strip().casefold())


def _questions(task: str | Questions | Sequence[Sample], host: Host) -> Questions:
    if isinstance(task, str):
        return cast(Questions, host.tasks.get(task).build())
    if isinstance(task, Sequence):
        return OwnSamples([*task])
    return task


def _sample_facts(index: int, sample: Sample, pictures: str) -> dict[str, Any]:
    return {
        "index": index,
        "id": sample.id,
        "family": sample.family,
        "question": sample.question,
        "answer": sample.answer,
        "pictures": pictures,
    }


def _failed_row(index: int, sample: Sample, error: Exception) -> dict[str, Any]:
    try:
        pictures = picture_digest(with_rgb(sample))
    except Exception:  # noqa: BLE001 - a broken picture raises nearly anything
        pictures = hashlib.sha256(sample.id.encode()).hexdigest()[:12]  # no other sample has such pictures
    outcome = {"prediction": "", "score": 0.0, "error": f"{type(error).__name__}: {error}"}
    return {**_sample_facts(index, sample, pictures), **outcome}


def _token_counts(record: PruneRecord, place: int) -> dict[str, float]:
    return {
        "original_tokens": record.original_visual_tokens[place],
        "entering_tokens": record.entering()[place],
        "layer_average_tokens": record.layer_average()[place],
        "kv_tokens": record.kv_tokens()[place],
        "final_tokens": record.final()[place],
    }
