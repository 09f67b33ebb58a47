"""What a worker keeps between cells: loaded models, tasks, prepared batches, the unpruned captures."""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tokenprune.cell import Cell, canonical
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.engine import capture_prefill
from tokenprune.engine.state.image_spans import find_images
from tokenprune.evaluation.environment import Environment, Installed, environment_of
from tokenprune.evaluation.planned import PlanChangedError, check_model, check_pruner, check_task, planned_model
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import Host
from tokenprune.pruner import Pruner
from tokenprune.tasks.base import Sample, Task
from tokenprune.tasks.pictures import as_rgb

KEEP_MIB = 1024
"""Memory of the device that prepared batches may take while they wait for the next cells."""


@dataclass(frozen=True)
class Batch:
    """Samples with the tensors that the processor made of them (left padded)."""

    indices: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: Mapping[str, Tensor]


class Batches:
    """The batches of a task, each prepared when it is asked for the first time.

    Prepared batches are kept for other cells as long as they take less than `KEEP_MIB` together; of the others only the
    last one is, for the cells that run together.

    Args:
        prepare: Makes a batch of samples.
        samples: Samples in all.
        size: Samples per batch.
    """

    def __init__(self, prepare: Callable[[Sequence[int]], Batch], samples: int, size: int) -> None:
        self._prepare = prepare
        self._samples = samples
        self._size = size
        self._kept: dict[int, Batch] = {}
        self._room = KEEP_MIB << 20
        self._last: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        return -(-self._samples // self._size)

    def indices(self, number: int) -> range:
        """The samples of a batch."""
        return range(number * self._size, min((number + 1) * self._size, self._samples))

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
        made = self._prepare(self.indices(number))
        taken = sum(tensor.nbytes for tensor in made.inputs.values())
        if taken <= self._room:
            self._room -= taken
            self._kept[number] = made
        else:
            self._last = (number, made)
        return made


class Bench:
    """Caches of one worker; everything in it depends on the cells' facts only, and is checked against them.

    One model and the batches of one (model, task) are held at a time: cells come grouped so.

    Args:
        host: Plugins.
        device: Torch device, or `auto` for the GPU where there is one.
    """

    def __init__(self, host: Host, device: str) -> None:
        self.host = host
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._models: dict[object, LoadedModel] = {}
        self._changed: dict[object, PlanChangedError] = {}
        self._tasks: dict[object, Task] = {}
        self._batches: dict[object, Batches] = {}
        self._captures: dict[object, list[Any]] = {}
        self._installed = Installed()

    def model(self, cell: Cell) -> LoadedModel:
        """The cell's model.

        Raises:
            PlanChangedError: Its files are not those of the plan.
        """
        key = _model_key(cell)
        if key in self._changed:  # not to be loaded once more for every cell that is left
            raise PlanChangedError(self._changed[key].message, hint=self._changed[key].hint)
        if key not in self._models:
            self._models.clear()
            self._batches.clear()
            self._captures.clear()
            loaded = load_model(
                planned_model(cell, self.host),
                device=self.device,
                dtype=cell.dtype,
                attention=cell.attention,
                host=self.host,
            )
            try:
                check_model(cell, self.host)
            except PlanChangedError as error:
                self._changed[key] = PlanChangedError(error.message, hint=error.hint)  # its traceback holds the model
                raise
            self._models[key] = loaded
        return self._models[key]

    def task(self, cell: Cell) -> Task:
        """The cell's task.

        Raises:
            PlanChangedError: It is not that of the plan.
        """
        key = _task_key(cell)
        if key not in self._tasks:
            task = cast(Task, self.host.tasks.get(cell.task).build(cell.task_options))
            check_task(cell, task)
            self._tasks[key] = task
        return self._tasks[key]

    def pruner(self, cell: Cell) -> Pruner:
        """The cell's pruner, made anew.

        Raises:
            PlanChangedError: It is not that of the plan.
        """
        check_pruner(cell, self.host)
        return cast(Pruner, self.host.pruners.get(cell.pruner).build(dict(cell.options)))

    def batches(self, cell: Cell, batch_size: int | None = None) -> Batches:
        """The batches of the cell, the same ones for every cell of the same model and task.

        Args:
            cell: The cell.
            batch_size: Samples per batch in place of the cell's own.
        """
        loaded, task = self.model(cell), self.task(cell)
        size = batch_size or cell.batch_size
        key = (cell.model_digest, cell.dtype, _task_key(cell), cell.samples, size)
        if key not in self._batches:
            self._batches.clear()
            self._captures.clear()
            self._batches[key] = Batches(functools.partial(self.prepare, loaded, task), cell.samples, size)
        return self._batches[key]

    def environment(self, cell: Cell) -> Environment:
        """What a cell is run with here; without the family's plugin as long as the model is not loaded."""
        loaded = self._models.get(_model_key(cell))
        attention = cell.attention if loaded is None else str(loaded.model.config._attn_implementation)
        owners = [self.host.pruners.owner(cell.pruner)]  # a task's version and data are in the cell's id
        if loaded is not None and loaded.family in self.host.families:
            owners.append(self.host.families.owner(loaded.family))
        return environment_of(torch.device(self.device), attention, cell.dtype, owners, self._installed)

    def release(self) -> None:
        """Let go of everything but the models and tasks, down to what the allocator keeps for later."""
        self._batches.clear()
        self._captures.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def prepare(self, loaded: LoadedModel, task: Task, indices: Sequence[int]) -> Batch:
        """Draw samples from the task and run the processor on them."""
        samples = tuple(with_rgb(task[index]) for index in indices)
        return Batch(tuple(indices), samples, self.encode(loaded, samples))

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The processor's tensors for some samples, on the model's device and in its floating type."""
        return loaded.encode(samples)

    def grids(self, cell: Cell, batch: Batch) -> list[list[tuple[int, int]]]:
        """Per sample of a batch, the token grid (rows, columns) of each of its units: its pictures, or their tiles."""
        parts = parts_of(self.model(cell).model, self.host)
        grids: list[list[tuple[int, int]]] = [[] for _ in batch.samples]
        for span in find_images(parts.is_placeholder(batch.inputs["input_ids"]), parts.visuals(batch.inputs)):
            grids[span.sample].append(span.grid or (1, len(span.slots)))
        return grids

    def captures(self, cell: Cell) -> list[Any]:
        """Unpruned queries, keys and values of all layers for the first samples (the lens), captured once."""
        loaded = self.model(cell)
        count = min(int(cell.lens["samples"]), cell.samples)
        key = (cell.model_digest, cell.dtype, _task_key(cell), count)
        if key not in self._captures:
            batch = self.prepare(loaded, self.task(cell), range(count))
            self._captures.clear()
            self._captures[key] = capture_prefill(loaded.model, batch.inputs, range(loaded.facts.num_layers))
        return self._captures[key]


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


def _model_key(cell: Cell) -> tuple[str, ...]:
    return cell.model, cell.model_digest, cell.dtype, cell.attention


def _task_key(cell: Cell) -> tuple[Any, ...]:
    return cell.task, cell.task_version, cell.task_digest, canonical(cell.task_options)
