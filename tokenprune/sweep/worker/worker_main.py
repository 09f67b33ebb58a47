"""A worker process, orders in, reports out: `python -m tokenprune.sweep.worker.worker_main DIRECTORY DEVICE ...`.

One order per line arrives on standard input as JSON; one report per line goes out on the descriptor that was standard
output at the start. Whatever libraries print goes to standard error instead.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tokenprune.sweep.messages import Answered, Ended, Order
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.worker.throughput import Meter


class Worker:
    """What every executor runs in its workers: one runner that keeps its model, told of orders one by one.

    Args:
        directory: The sweep directory, as this machine sees it.
        device: Torch device, or `auto`.
        overlays: Samples per cell whose kept tokens are stored.
        token: The token under which this worker may write.
    """

    def __init__(self, directory: str | Path, device: str, overlays: int, token: str) -> None:
        # imported here, so that the process that only counts workers needs no torch
        from tokenprune.evaluation.machine.devices import try_device
        from tokenprune.evaluation.model_cache import ModelCache
        from tokenprune.plugins import load_host
        from tokenprune.sweep.store.result_store import SweepStore
        from tokenprune.sweep.worker.cell_runner import CellRunner

        self._cache = ModelCache(load_host(), device)
        try_device(self._cache.device)
        self._runner = CellRunner(SweepStore(directory, token=token), self._cache, overlays=overlays)

    def serve(self, order: Order, say: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Run the cells of an order to their ends and say how it went.

        Args:
            order: The cells.
            say: Takes the reports `progress` while they run.

        Returns:
            The report `ended` with the outcomes, or `disk` where it takes no more.
        """
        meter = Meter(self._cache.device, say)
        try:
            if order.part == "cost":
                ended: list[Answered | Ended] = [self._runner.measure(order.cell, order.attempt)]
            else:
                ended = list(self._runner.run_together(order.singles(), lambda cell, *how: meter(cell.id, *how)))
        except StorageError as error:
            return {"report": "disk", "message": error.message, "hint": error.hint}
        outcomes = {each.cell_id: each.outcome if isinstance(each, Ended) else "answered" for each in ended}
        return {"report": "ended", "outcomes": outcomes}


def main(arguments: list[str]) -> int:
    """Serve orders until standard input closes."""
    directory, device, overlays, token = arguments
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, lines), daemon=True).start()
    worker = Worker(directory, device, int(overlays), token)
    say = functools.partial(_say, reports)
    say({"report": "ready"})
    while True:
        order = Order.from_json(json.loads(lines.get()))
        say({"report": "began"})
        say(worker.serve(order, say))


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass lines on; a closed input means that the parent stopped or died, also in the middle of a cell."""
    for line in stream:
        lines.put(line)
    os._exit(0)


def _say(stream: IO[str], report: Mapping[str, Any]) -> None:
    stream.write(json.dumps(report) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
