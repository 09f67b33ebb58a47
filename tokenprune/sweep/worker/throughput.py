"""A worker's side of the live display: how far its cell is, how fast, and how much memory it holds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenprune.sweep.store.atomic_io import StorageError

INTERVAL_S = 1.0
"""Seconds between two reports; a cell that is through its samples says so at once."""

_STATM = Path("/proc/self/statm")
_MIB = 1 << 20


class Meter:
    """Turns what running cells say after each batch into reports: call it with the samples done.

    Args:
        device: Torch device of the worker.
        say: Takes a report as JSON (see `messages.message_of`); one that cannot be sent is lost.
    """

    def __init__(self, device: str, say: Callable[[Mapping[str, Any]], None]) -> None:
        self._device = device
        self._say = say
        self._done: dict[str, int] = {}
        self._origin = (time.monotonic(), 0)
        self._warm = False
        self._last = -math.inf

    def __call__(self, cell_id: str, done: int, total: int, kept: float | None = None, before: int = 0) -> None:
        """Say that `done` of a cell's `total` samples are through, and that `kept` visual tokens stay on average.

        `before` of them an earlier worker had asked: they say nothing about how fast this one is.
        """
        now = time.monotonic()
        self._done[cell_id] = done - before
        rate = self._rate(now, sum(self._done.values()))
        if now - self._last < INTERVAL_S and done < total:
            return
        self._last = now
        report = {
            "report": "progress",
            "cell_id": cell_id,
            "done": done,
            "total": total,
            "kept": kept,
            "samples_per_s": rate,
            "memory_mib": memory_mib(self._device),
        }
        with suppress(OSError, StorageError):  # whoever listened is gone, or the disk is full: the cell will notice
            self._say(report)

    def _rate(self, now: float, done: int) -> float | None:
        """Samples of all cells per second, since the first batch, which loaded the model; at its end, since before."""
        since, before = self._origin
        rate = (done - before) / (now - since) if done > before and now > since else None
        if not self._warm:
            self._warm, self._origin = True, (now, done)
        return rate


def memory_mib(device: str) -> float | None:
    """MiB that this process has allocated on a GPU, else MiB of memory that it holds; `None` where no one tells."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device) / _MIB
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB
