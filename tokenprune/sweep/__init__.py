"""A sweep: a grid of (model, task, pruner, budget, seed), run cell by cell, with the directory as the truth."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenprune.sweep.config import SweepConfig, default_config, load_config, with_changes
    from tokenprune.sweep.ledger import Ledger
    from tokenprune.sweep.plan import Cell, plan_cells
    from tokenprune.sweep.runner import SweepOutcome, run_sweep

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

#: Imported on first use: the host loads `tokenprune.sweep.executors` for every command, also for `--help`.
_LAZY = {
    "Cell": "plan",
    "Ledger": "ledger",
    "SweepConfig": "config",
    "SweepOutcome": "runner",
    "default_config": "config",
    "load_config": "config",
    "plan_cells": "plan",
    "run_sweep": "runner",
    "with_changes": "config",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"tokenprune.sweep.{_LAZY[name]}"), name)
    raise AttributeError(f"module `tokenprune.sweep` has no attribute `{name}`")
