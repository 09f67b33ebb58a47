"""Real handwritten digits, split by position in the file so that the writers differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

SPLITS: Final[dict[str, tuple[int, int]]] = {
    "train": (0, 1200),
    "validation": (1200, 1350),
    "test": (1350, 1797),
}
"""Half-open ranges of sample numbers. The file is in the order of its writers, so contiguous
ranges share at most the writer at their border."""


@dataclass(frozen=True)
class DigitBank:
    """The handwritten digits of one split.

    Attributes:
        split: Name of the split.
        images: Ink of every digit, between 0 and 1; shape (S, 8, 8).
        labels: The digit each shows; shape (S,).
        indices: Number of each sample in the whole data set; shape (S,).
    """

    split: str
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]

    def of_value(self, value: int) -> npt.NDArray[np.int64]:
        """Positions in this bank of the samples that show `value`; shape (S_value,)."""
        return np.flatnonzero(self.labels == value)

    def digest(self) -> str:
        """Hash of the pictures and labels."""
        pixels = np.rint(self.images * 16).astype(np.uint8)
        state = hashlib.sha256(pixels.tobytes())
        state.update(self.labels.astype("<i8").tobytes())
        return state.hexdigest()


@lru_cache(maxsize=len(SPLITS))
def load_bank(split: str) -> DigitBank:
    """Load the digits of `split`; they come with scikit-learn, nothing is downloaded."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    # Imported here because it takes a second and listing tasks must not pay for it.
    from sklearn.datasets import load_digits

    data = load_digits()
    start, stop = SPLITS[split]
    return DigitBank(
        split=split,
        images=(data.images[start:stop] / 16.0).astype(np.float32),
        labels=data.target[start:stop].astype(np.int64),
        indices=np.arange(start, stop, dtype=np.int64),
    )
