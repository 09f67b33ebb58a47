"""A sweep: a grid of (model, task, pruner, budget, seed), run cell by cell, with the directory as the truth."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenprune.cell import Cell
    from tokenprune.sweep.config.schema import SweepConfig, default_config, load_config, with_changes
    from tokenprune.sweep.plan.cells import plan_cells
    from tokenprune.sweep.runner import SweepOutcome, run_sweep
    from tokenprune.sweep.store.result_store import Ledger

__all__ = [
    "Cell",
    "Ledger",
    "SweepConfig",
    "SweepOutcome",
    "default_config",
    "load_config",
    "plan_cells",
    "run_sweep",
    "with_changes",
]

#: Imported on first use: the host loads `tokenprune.sweep.executors.executor` for every command, also for `--help`.
_LAZY = {
    "Ledger": "store.result_store",
    "SweepConfig": "config.schema",
    "SweepOutcome": "runner",
    "default_config": "config.schema",
    "load_config": "config.schema",
    "plan_cells": "plan.cells",
    "run_sweep": "runner",
    "with_changes": "config.schema",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"tokenprune.sweep.{_LAZY[name]}"), name)
    raise AttributeError(f"module `tokenprune.sweep` has no attribute `{name}`")
