"""A worker's side of the live display: how far its cells are, how fast, and how much memory it holds."""

from __future__ import annotations

import math
import time

import psutil

from tokenprune.cells.cell import Cell
from tokenprune.cells.events import CellProgress

INTERVAL_S = 1.0
"""Seconds between two progress events; a cell whose samples are all evaluated gets one at once."""

_MIB = 1 << 20


class ThroughputMeter:
    """Turns what a worker knows after each batch into progress events.

    Args:
        device: Torch device of the worker.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._done: dict[str, int] = {}
        self._origin = (time.monotonic(), 0)
        self._warm = False
        self._last = -math.inf

    def after_batch(self, cell: Cell, done: int, kept_tokens: float | None, resumed: int = 0) -> CellProgress | None:
        """The progress of a cell, or `None` if the last event is less than a second ago.

        Args:
            cell: The cell.
            done: Its samples that are evaluated.
            kept_tokens: Mean number of visual tokens that stay of a sample.
            resumed: Samples that an earlier worker evaluated; they say nothing about the speed of this one.
        """
        now = time.monotonic()
        self._done[cell.id] = done - resumed
        rate = self._rate(now, sum(self._done.values()))
        if now - self._last < INTERVAL_S and done < cell.samples:
            return None
        self._last = now
        return CellProgress(
            cell,
            samples_done=done,
            samples=cell.samples,
            kept_tokens=kept_tokens,
            samples_per_s=rate,
            memory_mib=memory_mib(self._device),
        )

    def _rate(self, now: float, done: int) -> float | None:
        """Samples per second of all cells since the first batch, which loads the model; at first with that batch."""
        since, before = self._origin
        rate = (done - before) / (now - since) if done > before and now > since else None
        if not self._warm:
            self._warm, self._origin = True, (now, done)
        return rate


def memory_mib(device: str) -> float:
    """Memory in MiB that this process has allocated on a GPU, or else holds of the machine."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device) / _MIB
    return float(psutil.Process().memory_info().rss) / _MIB
