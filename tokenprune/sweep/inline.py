"""The executor `inline`: every cell in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenprune.plugins import Host
from tokenprune.sweep.bench import Bench
from tokenprune.sweep.config import SweepConfig
from tokenprune.sweep.executors import Began, Report
from tokenprune.sweep.ledger import Ledger
from tokenprune.sweep.plan import Cell
from tokenprune.sweep.worker import CellRunner


class Inline:
    """Run the cells one after another, on the first device of the sweep."""

    def __init__(self, ledger: Ledger, config: SweepConfig, host: Host) -> None:
        self._runner = CellRunner(ledger, Bench(host, config.device[0]), overlays=config.overlays)

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells in order (references come first in every plan)."""
        for cell in cells:
            yield Began(cell.id, "inline")
            yield self._runner.run(cell)
