"""The task contract: a fixed, versioned list of samples and a scorer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one or more images (or about the frames of one video)."""

    id: str
    images: tuple[Image.Image, ...]
    question: str
    answer: str
    family: str
    """The kind of question; scores are reported per family."""
    video: bool = False
    """True where `images` are the frames of one video, in order."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a picture of the sample may show beside it (boxes of the objects asked for, seeds)."""


@runtime_checkable
class Task(Protocol):
    """A data set with a scorer.

    Indexing is deterministic: the same `version`, `split` and index give the same sample on every machine.
    """

    name: str
    version: str
    split: str
    families: tuple[str, ...]
    max_new_tokens: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def score(self, prediction: str, sample: Sample) -> float:
        """Score one prediction between 0 (wrong) and 1 (right)."""
        ...

    def digest(self) -> str:
        """Hash of everything that defines the samples (generator version, seeds, data files)."""
        ...
