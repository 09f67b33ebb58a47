"""Trackers hear of a sweep beside the work: in one thread of their own, one event after the other, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from queue import SimpleQueue

from tokenprune.events import CellEnded, CellFailed, CellStarted, SweepEnded, SweepStarted, Tracked
from tokenprune.plugins import Host

_HOOKS: Mapping[type, str] = {
    SweepStarted: "on_sweep_start",
    CellStarted: "on_cell_start",
    CellEnded: "on_cell_end",
    CellFailed: "on_cell_error",
    SweepEnded: "on_sweep_end",
}


class Listeners:
    """Calls the life-cycle hooks of the trackers.

    A tracker that is slow, or whose server is away, holds up no cell: workers start while it opens its store. Only the
    last event is waited for, so that a store is complete before the sweep returns; and a moment before a measurement.

    Args:
        host: Plugins.
        trackers: Names of those that hear of the sweep.
    """

    def __init__(self, host: Host, trackers: Sequence[str]) -> None:
        self._host = host
        self.trackers = trackers
        self._events: SimpleQueue[tuple[Tracked | None, threading.Event]] = SimpleQueue()
        self._problems: list[str] = []
        self.seconds = 0.0
        """Time that went into the hooks so far, most of it beside the work."""
        self.waited = 0.0
        """Time that the sweep waited for them, before measurements and at its end."""
        # a daemon: whoever interrupts the wait for a lost server leaves at once
        threading.Thread(target=self._serve, name="tokenprune-listeners", daemon=True).start()

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong in plugins so far, one line each, every line once."""
        return tuple(dict.fromkeys(self._problems))

    def tell(self, event: Tracked) -> None:
        """Call the event's hook in every tracker; returns at once, but for the last event of a sweep."""
        self._put(event, None if isinstance(event, SweepEnded) else 0.0)

    def settle(self, seconds: float) -> None:
        """Wait until all that was told is done, at most so long: what trackers do would be in a measurement."""
        self._put(None, seconds)

    def _put(self, event: Tracked | None, seconds: float | None) -> None:
        """Hand an event over, or nothing, and wait so long until it is through; `None` waits without end."""
        told = threading.Event()
        began = time.perf_counter()
        self._events.put((event, told))
        told.wait(seconds)
        self.waited += time.perf_counter() - began

    def write_reports(self, event: SweepEnded) -> None:
        """Let every plugin write its report, in the caller's thread: trackers may still have cells to log."""
        self._problems += self._host.emit("write_report", event)

    def _serve(self) -> None:
        while True:
            event, told = self._events.get()
            if event is None:
                told.set()
                continue
            began = time.perf_counter()
            try:
                self._problems += self._host.emit(_HOOKS[type(event)], event, self.trackers)
            finally:
                self.seconds += time.perf_counter() - began
                told.set()
            if isinstance(event, SweepEnded):
                return
