"""The executor `inline`: all cells in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenprune.cell import Cell
from tokenprune.evaluation.machine.devices import check_devices
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.plugins import Host
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.scheduler import companies, next_part
from tokenprune.sweep.messages import Began, Order, Report
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.cell_runner import CellRunner


class Inline:
    """Runs the cells on the first device of the sweep."""

    def __init__(self, store: SweepStore, config: SweepConfig, host: Host) -> None:
        check_devices(config.device[:1])
        self._store = store
        self._share = config.share
        self._runner = CellRunner(store, ModelCache(host, config.device[0]), overlays=config.overlays)

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells, company by company (references come first in every plan)."""
        parts = {cell.id: next_part(self._store, cell) for cell in cells}
        for group in companies(cells, self._share):
            asked = [cell for cell in group if parts[cell.id] == "answers"]
            yield from (Began(cell.id, "inline") for cell in asked)
            yield from self._runner.run_together([Order(cell) for cell in asked])
            for cell in group:
                if next_part(self._store, cell) == "cost":
                    yield Began(cell.id, "inline", part="cost")
                    yield self._runner.measure(cell)
