"""Run one cell of a planned sweep: `python -m benchmarks.sharing.one_cell DIRECTORY CELL_ID`."""

from __future__ import annotations

import sys

from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.plugins import load_host
from tokenprune.sweep import SweepStore
from tokenprune.sweep.worker.cell_runner import CellRunner

if __name__ == "__main__":
    directory, cell_id = sys.argv[1:]
    store = SweepStore(directory)
    (cell,) = (cell for cell in store.plan() if cell.id == cell_id)
    outcome = CellRunner(store, ModelCache(load_host(), "cpu")).run_cell(cell)
    print(cell.name, outcome)
