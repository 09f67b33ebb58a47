"""Measure the cost of a cell whose questions were asked: alone on its device, and at no risk to the answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tokenprune.cell import Cell
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.evaluation.batches import prepare
from tokenprune.evaluation.cost.efficiency import measure_cost
from tokenprune.evaluation.machine.devices import device_error, lost_device
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.sweep.messages import Ended
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.lock import TakenOverError
from tokenprune.sweep.store.result_store import SweepStore

_log = logging.getLogger(__name__)


def measure_cell(store: SweepStore, cache: ModelCache, cell: Cell, attempt: int = 1) -> Ended:
    """Measure the first sample of a cell that ran, and complete the cell.

    A measurement that fails is a cost with an `error` and a `hint`; the answers stand.

    Args:
        store: The sweep directory.
        cache: Models, tasks and batches.
        cell: A cell that was answered.
        attempt: Which attempt this is.

    Raises:
        ConfigError: The cell has no answers.
        StorageError: The disk takes no more.
        TakenOverError: Another invocation has taken the directory over.
    """
    store.check_token()  # a measurement is long, and its device may be somebody else's by now
    answers = store.awaited(cell.id, lambda: store.answers(cell.id))
    if answers is None:
        raise ConfigError(f"cell `{cell.name}` has no answers to add a cost to", hint="run the sweep again")
    clock = time.perf_counter()
    cost = _cost(store, cache, cell)
    seconds = answers["seconds"] + time.perf_counter() - clock
    attempts = max(attempt, answers.get("attempts", 1))
    store.write_result(cell, {**answers, "cost": cost, "seconds": seconds, "attempts": attempts})
    return Ended(cell.id, "done")


def _cost(store: SweepStore, cache: ModelCache, cell: Cell) -> Mapping[str, Any]:
    try:
        index = next(row["index"] for row in store.samples(cell.id) if not row["error"])
        pruning = cache.pruning(cell)
        sample = prepare(pruning.loaded, cache.task(cell), [index]).inputs
        cost = measure_cost(pruning.loaded.model, sample, pruning.session, **cell.efficiency).to_json()
        # of its own: answers stay where a cost is measured again, perhaps with another torch on another machine
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
