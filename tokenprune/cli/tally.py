"""What is known of a running sweep, from its events: who runs what, how many ended how, and how long it will take."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenprune.events import (
    CellEnded,
    CellEvaluated,
    CellFailed,
    CellProgress,
    CellStarted,
    Event,
    SweepEnded,
    SweepStarted,
)

if TYPE_CHECKING:
    from tokenprune.cell import Cell, Phase

OUTCOMES = ("done", "failed", "refused")

ANSWERS_SHARE = 0.8
"""Of a cell's time, what its samples are taken to need; the rest is for what is measured when they are through."""


@dataclass(frozen=True, slots=True)
class Running:
    """A cell that a worker has."""

    cell: Cell
    worker: str
    attempt: int = 1
    part: Phase = "answers"

    @property
    def title(self) -> str:
        """The cell, whether it is being measured, and which attempt it is where it is not the first."""
        notes = ["cost"] * (self.part == "cost") + [f"attempt {self.attempt}"] * (self.attempt > 1)
        return self.cell.name + (f" ({', '.join(notes)})" if notes else "")


@dataclass(frozen=True, slots=True)
class Busy:
    """A worker, the cells that it runs together, and what it said last of one of them."""

    name: str
    cells: tuple[Running, ...]
    progress: CellProgress | None

    @property
    def shown(self) -> Running:
        """The cell that it is with."""
        return next((each for each in self.cells if self.progress and each.cell == self.progress.cell), self.cells[0])

    @property
    def fraction(self) -> float:
        """Share of the work that is behind, alike for all its cells."""
        if self.cells[0].part == "cost":
            return ANSWERS_SHARE
        if self.progress is None:
            return 0.0
        return ANSWERS_SHARE * self.progress.samples_done / max(1, self.progress.samples)


@dataclass
class Tally:
    """Follows a sweep; `take` every event."""

    started: float = field(default_factory=time.monotonic)
    cells: tuple[Cell, ...] = ()
    changes: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)
    """The accuracy of a finished cell, or how it ended otherwise; for cells of an earlier invocation their state."""
    running: dict[str, Running] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    """Cells whose questions were asked, and whose cost nobody measures yet."""
    progress: dict[str, CellProgress] = field(default_factory=dict)
    """What each worker said last."""
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    touched: dict[str, int] = field(default_factory=dict)
    """When something last happened to a cell, as the number of the event."""
    _times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Seconds of the cells that ended well in this invocation, by model and task."""
    _events: int = 0

    def take(self, event: Event) -> None:
        """Note what happened."""
        self._events += 1
        if isinstance(event, SweepStarted):
            self.started = time.monotonic()
            self.cells, self.changes = event.cells, event.changes
            self.marks = dict(event.finished)
            self.outcomes = Counter(event.finished.values())
        elif isinstance(event, CellStarted):
            self.answered.discard(event.cell.id)
            self.running[event.cell.id] = Running(event.cell, event.worker, event.attempt, event.phase)
            self.touched[event.cell.id] = self._events
        elif isinstance(event, CellEvaluated):
            self.running.pop(event.cell.id, None)
            self.answered.add(event.cell.id)
        elif isinstance(event, CellProgress):
            self.progress[event.worker] = event
        elif isinstance(event, CellEnded):
            self._times.setdefault((event.cell.model, event.cell.task), []).append(float(event.result["seconds"]))
            self._finish(event.cell, f"{event.result['quality']['accuracy']:.3f}", "done")
        elif isinstance(event, CellFailed):
            self._finish(event.cell, event.outcome, event.outcome)
            self.failures.append(f"{event.outcome}: {event.cell.name}: {reason(event)}")
        elif isinstance(event, SweepEnded):
            self.running.clear()

    def _finish(self, cell: Cell, mark: str, outcome: str) -> None:
        self.running.pop(cell.id, None)
        self.marks[cell.id] = mark
        self.outcomes[outcome] += 1
        self.touched[cell.id] = self._events

    def workers(self) -> list[Busy]:
        """The workers that have cells, in the order in which they got them."""
        cells: dict[str, list[Running]] = {}
        for running in self.running.values():
            cells.setdefault(running.worker, []).append(running)
        return [Busy(name, tuple(theirs), self._latest(name)) for name, theirs in cells.items()]

    def _latest(self, worker: str) -> CellProgress | None:
        """What a worker said last, where it is about a cell that it still has."""
        said = self.progress.get(worker)
        running = self.running.get(said.cell.id) if said is not None else None
        about = running is not None and running.worker == worker and running.part == "answers"
        return said if about else None

    @property
    def finished(self) -> int:
        """Cells of the plan that need no more work."""
        return self.outcomes.total()

    def totals(self) -> str:
        """How many cells ended how, as far as any did."""
        going = {"running": len(self.running), "to be measured": len(self.answered)}
        left = len(self.cells) - self.finished - sum(going.values())
        counts = {**{name: self.outcomes[name] for name in OUTCOMES}, **going, "waiting": left}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "done")

    def elapsed(self) -> float:
        """Seconds since this invocation began."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """Seconds that the rest will take; `None` before the first cell of this invocation has a result.

        A cell takes as long as the finished ones of its model and task did on average, or as all of them. How the sum
        of those times became time on the clock so far (several workers, shared work, a slow start) holds for the rest.
        """
        means = {kind: sum(times) / len(times) for kind, times in self._times.items()}
        if not means:
            return None
        behind = sum(sum(times) for times in self._times.values())
        usual = behind / sum(len(times) for times in self._times.values())
        through = dict.fromkeys(self.answered, ANSWERS_SHARE)
        through |= {each.cell.id: busy.fraction for busy in self.workers() for each in busy.cells}
        ahead = 0.0
        for cell in self.cells:
            if cell.id not in self.marks:
                seconds = means.get((cell.model, cell.task), usual)
                fraction = through.get(cell.id, 0.0)
                behind += seconds * fraction
                ahead += seconds * (1.0 - fraction)
        return self.elapsed() * ahead / behind if behind else None

    def time_left(self) -> str:
        """`seconds_left` for people; empty where nothing is left."""
        if self.finished >= len(self.cells):
            return ""
        seconds = self.seconds_left()
        return "estimating time left" if seconds is None else f"about {clock(seconds)} left"


def reason(event: CellFailed) -> str:
    """Why a cell failed, in a line."""
    lines = str(event.error.get("message", "")).splitlines()
    return f"{event.error.get('type', 'error')}: {lines[0] if lines else ''}"


def clock(seconds: float) -> str:
    """`4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def figures(busy: Busy) -> tuple[str, str, str, str]:
    """Samples, samples per second, mean kept tokens and the worker's memory; dashes for what is not known."""
    progress = busy.progress
    if busy.shown.part == "cost":
        return ("", "", "", "")
    if progress is None:
        return ("begins", "", "", "")
    return (
        f"{progress.samples_done}/{progress.samples}",
        f"{progress.samples_per_s:.1f}" if progress.samples_per_s is not None else "-",
        f"{progress.kept_tokens:.1f}" if progress.kept_tokens is not None else "-",
        _memory(progress.memory_mib),
    )


def _memory(mib: float | None) -> str:
    if mib is None:
        return "-"
    return f"{mib:.0f} MiB" if mib < 10_000 else f"{mib / 1024:.1f} GiB"
