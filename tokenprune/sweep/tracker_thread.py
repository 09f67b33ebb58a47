"""Gives the events of a sweep to trackers, in order and beside the work, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from queue import SimpleQueue

from tokenprune.cells.events import CellEnded, CellFailed, CellStarted, SweepEnded, SweepStarted, Tracked
from tokenprune.plugins import Host

_HOOKS: Mapping[type, str] = {
    SweepStarted: "on_sweep_start",
    CellStarted: "on_cell_start",
    CellEnded: "on_cell_end",
    CellFailed: "on_cell_error",
    SweepEnded: "on_sweep_end",
}


class TrackerThread:
    """Calls the life-cycle hooks of the trackers.

    A tracker that is slow, or whose server is away, delays no cell: workers start while it opens its store. The sweep
    waits for the last event only, so that a store is complete when it returns, and a moment before each measurement.

    Args:
        host: Plugins; `None` if no hook is to be called.
        trackers: Names of the trackers that get the events.
    """

    def __init__(self, host: Host | None, trackers: Sequence[str] = ()) -> None:
        self._host = host
        self.trackers = trackers
        self._events: SimpleQueue[tuple[Tracked | None, threading.Event]] = SimpleQueue()
        self._problems: list[str] = []
        self.seconds = 0.0
        """Time that the hooks took so far, most of it beside the work."""
        self.waited = 0.0
        """Time that the sweep waited for them, before measurements and at its end."""
        if host is not None:
            # a daemon: whoever interrupts the wait for a lost server leaves at once
            threading.Thread(target=self._run, args=(host,), name="tokenprune-trackers", daemon=True).start()

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong in plugins so far, one line each, every line once."""
        return tuple(dict.fromkeys(self._problems))

    def notify(self, event: Tracked) -> None:
        """Call the event's hook in every tracker; returns at once, except after the last event of a sweep."""
        self._put(event, None if isinstance(event, SweepEnded) else 0.0)

    def wait(self, seconds: float) -> None:
        """Wait until all events are handled, at most so long: otherwise the hooks would disturb a measurement."""
        self._put(None, seconds)

    def _put(self, event: Tracked | None, seconds: float | None) -> None:
        """Queue an event, or nothing, and wait so long until it is handled; `None` waits without end."""
        if self._host is None:
            return
        handled = threading.Event()
        began = time.perf_counter()
        self._events.put((event, handled))
        handled.wait(seconds)
        self.waited += time.perf_counter() - began

    def write_reports(self, event: SweepEnded) -> None:
        """Let every plugin write its report, in the caller's thread: trackers may still have cells to log."""
        if self._host is not None:
            self._problems += self._host.emit("write_report", event)

    def _run(self, host: Host) -> None:
        while True:
            event, handled = self._events.get()
            began = time.perf_counter()
            try:
                if event is not None:
                    self._problems += host.emit(_HOOKS[type(event)], event, self.trackers)
            finally:
                self.seconds += time.perf_counter() - began
                handled.set()
            if isinstance(event, SweepEnded):
                return
