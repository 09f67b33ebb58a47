"""What a model answered, sample by sample, and its form on disk while an evaluation is not finished."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.metrics.distribution import FirstToken
from tokenprune.metrics.lens import KeptTokens


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one sample gave.

    Args:
        row: The sample as `samples.jsonl` holds it: answer, score, token accounts, or the error.
        classes: (C,) int32 ids of the likeliest first tokens of the answer; `None` if the sample failed.
        log_probs: (C,) float32 log-probabilities of these.
        kept: The tokens that stayed; `None` if they are not remembered.
    """

    row: dict[str, Any]
    classes: NDArray[np.int32] | None = None
    log_probs: NDArray[np.float32] | None = None
    kept: KeptTokens | None = None


@dataclass
class Predictions:
    """The predictions so far, in task order.

    Args:
        samples: One per sample.
        first_error: What the first sample that failed raised.
    """

    samples: list[Prediction] = field(default_factory=list)
    first_error: Exception | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `samples.jsonl`."""
        return [sample.row for sample in self.samples]

    @property
    def kept(self) -> dict[int, KeptTokens]:
        """The tokens that stayed, by the index of the sample."""
        return {index: sample.kept for index, sample in enumerate(self.samples) if sample.kept is not None}

    def ran(self) -> int:
        """Number of samples that did not fail."""
        return sum(1 for sample in self.samples if not sample.row["error"])

    def mean_kept(self) -> float | None:
        """Mean number of visual tokens that stay of a sample; `None` before the first one."""
        counts = [sample.row["final_tokens"] for sample in self.samples if not sample.row["error"]]
        return sum(counts) / len(counts) if counts else None

    def first_token(self) -> FirstToken:
        """The distributions of the first answer tokens; samples that failed have log-probabilities of NaN."""
        width = next(len(sample.classes) for sample in self.samples if sample.classes is not None)
        classes = [np.zeros(width, np.int32) if each.classes is None else each.classes for each in self.samples]
        nan = np.full(width, np.nan, np.float32)
        return FirstToken(
            np.stack(classes), np.stack([nan if each.log_probs is None else each.log_probs for each in self.samples])
        )

    def since(self, start: int) -> dict[str, Any]:
        """The predictions from `start` on as JSON, from which `extend` makes the same bits."""
        new = self.samples[start:]
        return {
            "rows": [sample.row for sample in new],
            "classes": [_packed(sample.classes, "<i4") for sample in new],
            "log_probs": [_packed(sample.log_probs, "<f4") for sample in new],
            "kept": {str(index): asdict(kept) for index, kept in self.kept.items() if index >= start},
        }

    def extend(self, batch: Mapping[str, Any]) -> None:
        """Add what `since` gave.

        Raises:
            ValueError: It is damaged; nothing is added.
        """
        try:
            rows = [{**row} for row in batch["rows"]]
            classes = [_unpacked(text, "<i4", np.int32) for text in batch["classes"]]
            log_probs = [_unpacked(text, "<f4", np.float32) for text in batch["log_probs"]]
            kept = {int(index): KeptTokens.from_json(data) for index, data in batch["kept"].items()}
            whole = all(row["error"] or row["final_tokens"] >= 0 for row in rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no predictions of a batch ({type(error).__name__}: {error})") from error
        if not whole or not len(rows) == len(classes) == len(log_probs):
            raise ValueError("no predictions of a batch: something is missing")
        start = len(self.samples)
        for place, (row, ids, values) in enumerate(zip(rows, classes, log_probs, strict=True)):
            self.samples.append(Prediction(row, ids, values, kept.get(start + place)))


def _packed(values: NDArray[Any] | None, dtype: str) -> str | None:
    return None if values is None else base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")


def _unpacked(text: str | None, dtype: str, native: type[np.generic]) -> NDArray[Any] | None:
    return None if text is None else np.frombuffer(base64.b64decode(text, validate=True), dtype).astype(native)
