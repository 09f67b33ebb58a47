"""Measures the cost of an evaluated cell, alone on its device; whatever happens, its answers stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tokenprune.cells.cell import Cell
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.evaluation.batches import prepare
from tokenprune.evaluation.cost.efficiency import measure_cost
from tokenprune.evaluation.machine.devices import device_error, lost_device
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.lock import TakenOverError
from tokenprune.sweep.store.result_store import SweepStore

_log = logging.getLogger(__name__)


def measure_cell(store: SweepStore, cache: ModelCache, cell: Cell, attempt: int = 1) -> None:
    """Measure the cost on the first sample that did not fail, and complete the cell.

    If the measurement fails, the cost is an `error` with a `hint`; the answers stay.

    Args:
        store: The sweep directory.
        cache: Models, tasks and batches.
        cell: An evaluated cell.
        attempt: Which attempt this is.

    Raises:
        ConfigError: The cell has no answers.
        StorageError: The disk takes no more.
        TakenOverError: Another invocation has taken the directory over.
    """
    store.check_token()  # a measurement is long, and another invocation may use the device by now
    answers = store.awaited(cell.id, lambda: store.answers(cell.id))
    if answers is None:
        raise ConfigError(f"cell `{cell.name}` has no answers to add a cost to", hint="run the sweep again")
    clock = time.perf_counter()
    cost = _cost(store, cache, cell)
    seconds = answers["seconds"] + time.perf_counter() - clock
    attempts = max(attempt, answers.get("attempts", 1))
    store.write_result(cell, {**answers, "cost": cost, "seconds": seconds, "attempts": attempts})


def _cost(store: SweepStore, cache: ModelCache, cell: Cell) -> Mapping[str, Any]:
    try:
        index = next(row["index"] for row in store.samples(cell.id) if not row["error"])
        pruning = cache.pruning(cell)
        sample = prepare(pruning.loaded, cache.task(cell), [index]).inputs
        cost = measure_cost(pruning.loaded.model, sample, pruning.session, **cell.efficiency).to_json()
        # a block of its own: the cost may be measured later than the answers, with another torch or on another machine
        environment = replace(cache.environment(cell), threads=cost.get("threads", torch.get_num_threads()))
        return {**cost, "environment": environment.to_json()}
    except (StorageError, TakenOverError):
        raise
    except Exception as error:
        if lost_device(error):
            raise device_error(cache.device, error) from error
        _log.warning("%s was not measured", cell.name, exc_info=True)
        first = (str(error).strip().splitlines() or [""])[0]
        text = first if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {first}".rstrip(": ")
        return {"error": text, "hint": getattr(error, "hint", "") or "the worker's log in `logs` has the traceback"}
