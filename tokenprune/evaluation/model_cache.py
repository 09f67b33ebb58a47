"""What a worker keeps between cells: the loaded model, tasks, prepared batches, the unpruned captures."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from tokenprune.cells.cell import Cell
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.engine import CapturedLayer, capture_prefill
from tokenprune.evaluation.batches import Batch, Batches, prepare
from tokenprune.evaluation.environment import Environment, Installed, environment_of
from tokenprune.evaluation.generation import Pruning
from tokenprune.evaluation.machine.devices import device_of, lost_device, ran_out_of_memory
from tokenprune.evaluation.planned import PlanChangedError, check_model, check_pruner, check_task, planned_model
from tokenprune.plugins import Host
from tokenprune.pruner import PositionPolicy, Pruner
from tokenprune.tasks.base import Task

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Captures:
    """Captured projections of some samples.

    Args:
        indices: The samples.
        layers: All decoder layers; their batch holds these samples.
    """

    indices: tuple[int, ...]
    layers: Sequence[CapturedLayer]


class ModelCache:
    """Caches of one worker; everything in it depends on the cells' facts only, and is checked against them.

    One model and the batches of one (model, task) are held at a time, because cells come grouped so.

    Args:
        host: Plugins.
        device: Torch device, or `auto` for the GPU if there is one.
    """

    def __init__(self, host: Host, device: str) -> None:
        self.host = host
        self.device = device_of(device)
        self._models: dict[Key, LoadedModel] = {}
        self._changed: dict[Key, PlanChangedError] = {}
        self._tasks: dict[Key, Task] = {}
        self._batches: dict[Key, Batches] = {}
        self._captures: dict[Key, Captures] = {}
        self._installed = Installed()

    def model(self, cell: Cell) -> LoadedModel:
        """The cell's model.

        Raises:
            PlanChangedError: Its files are not those of the plan.
        """
        key = cell.model_key
        if key in self._changed:  # it is not loaded once more for every cell that is left
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
        key = cell.task_key
        if key not in self._tasks:
            task = cast(Task, self.host.tasks.get(cell.task).build(cell.task_options))
            check_task(cell, task)
            self._tasks[key] = task
        return self._tasks[key]

    def pruning(self, cell: Cell) -> Pruning:
        """The cell's model under its pruner, which is made anew.

        Raises:
            PlanChangedError: The model or the pruner is not that of the plan.
        """
        loaded = self.model(cell)
        check_pruner(cell, self.host)
        return Pruning(
            loaded,
            cast(Pruner, self.host.pruners.get(cell.pruner).build(dict(cell.options))),
            cell.budget,
            positions=cast(PositionPolicy | None, cell.positions),
            frames=self.host.tasks.get(cell.task).video,
            host=self.host,
        )

    def batches(self, cell: Cell, batch_size: int | None = None) -> Batches:
        """The batches of the cell, the same ones for every cell of the same model and task.

        Args:
            cell: The cell.
            batch_size: Samples per batch in place of the cell's own.
        """
        loaded, task = self.model(cell), self.task(cell)
        size = batch_size or cell.batch_size
        key = (cell.model_digest, cell.dtype, cell.task_key, cell.samples, size)
        if key not in self._batches:
            self._batches.clear()
            self._captures.clear()
            self._batches[key] = Batches(loaded, task, count=cell.samples, size=size)
        return self._batches[key]

    def captures(self, cell: Cell) -> Captures:
        """Unpruned queries, keys and values of all layers for the samples of the lens, captured once.

        These are the first samples that the processor takes in one batch; most processors take all.
        """
        loaded = self.model(cell)
        count = min(int(cell.lens["samples"]), cell.samples)
        key = (cell.model_digest, cell.dtype, cell.task_key, count)
        if key not in self._captures:
            self._captures.clear()
            batch = self._batch_of(cell, range(count))
            layers = capture_prefill(loaded.model, batch.inputs, range(loaded.facts.num_layers)) if batch else []
            self._captures[key] = Captures(batch.indices if batch else (), layers)
        return self._captures[key]

    def _batch_of(self, cell: Cell, indices: Sequence[int]) -> Batch | None:
        """The samples in one batch, without those that cannot be prepared beside the ones before them."""
        batch = self._prepared(cell, indices)
        if batch is None:
            for index in indices:
                before = batch.indices if batch else ()
                batch = self._prepared(cell, (*before, index)) or batch
        return batch

    def _prepared(self, cell: Cell, indices: Sequence[int]) -> Batch | None:
        try:
            return prepare(self.model(cell), self.task(cell), indices)
        except Exception as error:
            if ran_out_of_memory(error) or lost_device(error):
                raise
            return None  # its samples count as wrong, and say why

    def environment(self, cell: Cell) -> Environment:
        """What a cell is run with here; without the family's plugin as long as the model is not loaded."""
        loaded = self._models.get(cell.model_key)
        attention = cell.attention if loaded is None else str(loaded.model.config._attn_implementation)
        owners = [self.host.pruners.owner(cell.pruner)]  # a task's version and data are in the cell's id
        if loaded is not None and loaded.family in self.host.families:
            owners.append(self.host.families.owner(loaded.family))
        return environment_of(torch.device(self.device), attention, cell.dtype, owners, self._installed)

    def release(self) -> None:
        """Let go of everything but the models and tasks, also of what the allocator keeps for later."""
        self._batches.clear()
        self._captures.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
