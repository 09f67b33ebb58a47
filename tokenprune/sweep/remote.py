"""A worker process: `python -m tokenprune.sweep.remote DIRECTORY DEVICE OVERLAYS`, cells in, reports out.

One cell per line arrives on standard input as JSON; one report per line goes out on the descriptor that was standard
output at the start. Whatever libraries print goes to standard error instead.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from typing import IO, Any

from tokenprune.sweep.plan import Cell


def main(arguments: list[str]) -> int:
    """Serve cells until standard input closes."""
    directory, device, overlays = arguments
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, lines), daemon=True).start()

    from tokenprune.plugins import load_host
    from tokenprune.sweep.bench import Bench
    from tokenprune.sweep.ledger import Ledger
    from tokenprune.sweep.worker import CellRunner

    runner = CellRunner(Ledger(directory), Bench(load_host(), device), overlays=int(overlays))
    while True:
        cell = Cell.from_json(json.loads(lines.get()))
        _say(reports, {"report": "began", "id": cell.id})
        ended = runner.run(cell)
        _say(reports, {"report": "ended", "id": ended.cell_id, "outcome": ended.outcome})


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass lines on; a closed input means that the parent stopped or died, also in the middle of a cell."""
    for line in stream:
        lines.put(line)
    os._exit(0)


def _say(stream: IO[str], report: dict[str, Any]) -> None:
    stream.write(json.dumps(report) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
