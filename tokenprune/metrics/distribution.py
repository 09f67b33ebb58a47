"""How far the first answer token's distribution moves under pruning: KL divergence from the unpruned model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # who only reads what was stored needs no torch
    from torch import Tensor

TOP = 256
"""Classes kept per sample; the rest of the vocabulary is one class more."""


@dataclass(frozen=True)
class FirstToken:
    """Distributions of the first answer token of n samples, compactly.

    Args:
        ids: (n, C) token ids, the C = min(256, vocabulary) most likely under the unpruned model.
        log_probs: (n, C) float32 natural logarithms of their probabilities; NaN rows where a sample failed.
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """The content of an `.npz` file."""
        stream = io.BytesIO()
        np.savez_compressed(stream, ids=self.ids, log_probs=self.log_probs)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FirstToken:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: The data are damaged, or something else.
        """
        try:
            with np.load(io.BytesIO(data)) as stored:
                return cls(stored["ids"], stored["log_probs"])
        except Exception as error:  # an archive that is damaged somewhere raises nearly anything
            raise ValueError(f"no distributions of first tokens ({type(error).__name__}: {error})") from error


def top_classes(logits: Tensor, top: int = TOP) -> Tensor:
    """Ids of the most likely tokens of each row, (n, C), from logits (n, V)."""
    return logits.float().topk(min(top, logits.shape[-1]), dim=-1).indices


def log_probs_at(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (n, C) of the tokens `ids` (n, C) under logits (n, V), in float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, ids.to(logits.device))


def kl_divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(unpruned || pruned) per sample, in nats.

    Args:
        reference: (n, C) log-probabilities under the unpruned model.
        other: (n, C) log-probabilities of the *same* tokens under the pruned one.

    Returns:
        (n,) The divergence between the distributions over these C tokens and "any other token". It equals the
        full divergence where C is the vocabulary, and otherwise bounds it from below (merging classes can only
        lower a divergence). NaN where a row is.
    """
    p, q = reference.astype(np.float64), other.astype(np.float64)
    inside = (np.exp(p) * (p - q)).sum(axis=-1)
    rest_p = np.clip(1.0 - np.exp(p).sum(axis=-1), 0.0, 1.0)
    rest_q = np.clip(1.0 - np.exp(q).sum(axis=-1), np.finfo(np.float32).tiny, 1.0)
    # Below float32's own rounding the rest is noise of the normalisation, not a class.
    matters = rest_p > 1e-5
    rest = np.where(matters, rest_p * (np.log(np.where(matters, rest_p, 1.0)) - np.log(rest_q)), 0.0)
    return np.asarray(np.maximum(inside + rest, 0.0))
