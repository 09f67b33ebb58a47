"""Samples as tensors: prepared batch by batch, and kept for the next pruner while there is room."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tokenprune.checkpoints import LoadedModel
from tokenprune.engine.state.image_spans import find_images
from tokenprune.tasks.base import Sample
from tokenprune.tasks.pictures import as_rgb

Grid = tuple[int, int]
"""Rows and columns."""

KEEP_MIB = 1024
"""Memory of the device that prepared batches may take while they wait for the next cells."""


class Questions(Protocol):
    """What an evaluation needs of a task: its samples and their scorer."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, in tokens."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def score(self, prediction: str, sample: Sample) -> float:
        """Score one prediction between 0 (wrong) and 1 (right)."""
        ...


@dataclass(frozen=True)
class Batch:
    """Samples with the tensors that the processor made of them (left padded)."""

    indices: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: Mapping[str, Tensor]


class Batches:
    """The first samples of a task in batches, each prepared when it is first needed.

    Prepared batches are kept as long as they take less than `KEEP_MIB` together. Of the others only the last one is
    kept, for the pruners that run together.

    Args:
        loaded: The model that reads them.
        task: The samples.
        count: How many samples.
        size: Samples per batch.
    """

    def __init__(self, loaded: LoadedModel, task: Questions, *, count: int, size: int) -> None:
        self.loaded = loaded
        self.task = task
        self.count = count
        self.size = size
        self._kept: dict[int, Batch] = {}
        self._room = KEEP_MIB << 20
        self._last: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def indices(self, number: int) -> range:
        """The samples of a batch."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def batch(self, number: int) -> Batch:
        """One batch.

        Raises:
            Exception: A sample cannot be drawn or prepared.
        """
        if number in self._kept:
            return self._kept[number]
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        self._last = None  # its memory is free before the next one takes some
        made = self.prepare(self.indices(number))
        taken = sum(tensor.nbytes for tensor in made.inputs.values())
        if taken <= self._room:
            self._room -= taken
            self._kept[number] = made
        else:
            self._last = (number, made)
        return made

    def prepare(self, indices: Sequence[int]) -> Batch:
        """A batch of any samples; it is not kept."""
        return prepare(self.loaded, self.task, indices)


def prepare(loaded: LoadedModel, task: Questions, indices: Sequence[int]) -> Batch:
    """Draw samples from a task and run the model's processor on them."""
    samples = tuple(with_rgb(task[index]) for index in indices)
    return Batch(tuple(indices), samples, loaded.encode(samples))


def token_grids(loaded: LoadedModel, batch: Batch) -> list[list[Grid]]:
    """Per sample of a batch, the token grid of each of its units: its pictures, or their tiles."""
    parts = loaded.parts
    grids: list[list[Grid]] = [[] for _ in batch.samples]
    for span in find_images(parts.is_placeholder(batch.inputs["input_ids"]), parts.visuals(batch.inputs)):
        grids[span.sample].append(span.grid or (1, len(span.slots)))
    return grids


def picture_digest(sample: Sample) -> str:
    """Hash of a sample's pictures: questions about the same pictures are not independent."""
    digest = hashlib.sha256()
    for image in sample.images:
        digest.update(f"{image.mode}{image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:12]


def with_rgb(sample: Sample) -> Sample:
    """The sample with its pictures as models, reports and digests see them."""
    images = tuple(as_rgb(image, f"a picture of sample `{sample.id}`") for image in sample.images)
    return dataclasses.replace(sample, images=images)
