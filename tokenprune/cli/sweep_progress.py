"""What the events of a running sweep say: who runs what, how many cells ended how, how long the rest will take."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenprune.cells.events import (
    CellEnded,
    CellEvaluated,
    CellFailed,
    CellProgress,
    CellStarted,
    Event,
    SweepStarted,
)
from tokenprune.cli.output import error_line

if TYPE_CHECKING:
    from tokenprune.cells.cell import Cell

EVALUATION_SHARE = 0.8
"""Share of a cell's time that its samples take, by assumption; its cost is measured in the rest."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker, the cells that it runs together, and its latest report on one of them."""

    name: str
    cells: tuple[CellStarted, ...]
    report: CellProgress | None

    @property
    def shown(self) -> CellStarted:
        """The cell of the report, or else the first one."""
        reported = self.report.cell if self.report is not None else None
        return next((started for started in self.cells if started.cell == reported), self.cells[0])

    @property
    def title(self) -> str:
        """The shown cell, whether its cost is measured, and its attempt if it is not the first."""
        shown = self.shown
        notes = ["cost"] * (shown.phase == "cost") + [f"attempt {shown.attempt}"] * (shown.attempt > 1)
        return shown.cell.name + (f" ({', '.join(notes)})" if notes else "")

    @property
    def fraction(self) -> float:
        """Share of the work that is done, alike for all its cells."""
        if self.shown.phase == "cost":
            return EVALUATION_SHARE
        if self.report is None:
            return 0.0
        return EVALUATION_SHARE * self.report.samples_done / max(1, self.report.samples)

    def numbers(self) -> tuple[str, str, str, str]:
        """Samples, samples per second, mean kept tokens, memory; `-` for what is unknown."""
        report = self.report
        if report is None:
            return ("" if self.shown.phase == "cost" else "begins", "", "", "")
        return (
            f"{report.samples_done}/{report.samples}",
            "-" if report.samples_per_s is None else f"{report.samples_per_s:.1f}",
            "-" if report.kept_tokens is None else f"{report.kept_tokens:.1f}",
            _memory(report.memory_mib),
        )


@dataclass
class SweepProgress:
    """Follows a sweep; call `take` with every event."""

    started: float = field(default_factory=time.monotonic)
    cells: tuple[Cell, ...] = ()
    changes: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)
    """Accuracy or outcome of every finished cell; of those of an earlier command, the outcome."""
    running: dict[str, CellStarted] = field(default_factory=dict)
    evaluated: set[str] = field(default_factory=set)
    """Cells that wait for the measurement of their cost."""
    reports: dict[str, CellProgress] = field(default_factory=dict)
    """The latest report of each worker."""
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    touched: dict[str, int] = field(default_factory=dict)
    """Number of the latest event about a cell."""
    _seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Seconds of the cells with a result of this command, by model and task."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def take(self, event: Event) -> None:
        """Note what happened."""
        if isinstance(event, SweepStarted):
            self.started = time.monotonic()
            self.cells, self.changes = event.cells, event.changes
            self.marks, self.outcomes = dict(event.finished), Counter(event.finished.values())
        elif isinstance(event, CellStarted):
            self.evaluated.discard(event.cell.id)
            self.running[event.cell.id] = event
            self.touched[event.cell.id] = next(self._numbers)
        elif isinstance(event, CellEvaluated):
            self.running.pop(event.cell.id, None)
            self.evaluated.add(event.cell.id)
        elif isinstance(event, CellProgress):
            self.reports[event.worker] = event
        elif isinstance(event, CellEnded):
            self._seconds.setdefault((event.cell.model, event.cell.task), []).append(float(event.result["seconds"]))
            self._finish(event.cell, f"{event.result['quality']['accuracy']:.3f}", "done")
        elif isinstance(event, CellFailed):
            self._finish(event.cell, event.outcome, event.outcome)
            self.failures.append(f"{event.outcome}: {event.cell.name}: {error_line(event.error)}")
        else:
            self.running.clear()

    def _finish(self, cell: Cell, mark: str, outcome: str) -> None:
        self.running.pop(cell.id, None)
        self.marks[cell.id] = mark
        self.outcomes[outcome] += 1
        self.touched[cell.id] = next(self._numbers)

    def mark(self, cell: Cell) -> str:
        """The accuracy of a cell, or its outcome, or what happens to it now."""
        now = "running" if cell.id in self.running else "scored" if cell.id in self.evaluated else "."
        return self.marks.get(cell.id, now)

    def workers(self) -> list[WorkerState]:
        """The workers that have cells, in the order in which they got them."""
        cells: dict[str, list[CellStarted]] = {}
        for started in self.running.values():
            cells.setdefault(started.worker, []).append(started)
        return [WorkerState(name, tuple(theirs), self._report(name)) for name, theirs in cells.items()]

    def _report(self, worker: str) -> CellProgress | None:
        """The latest report of a worker, if it still evaluates that cell."""
        report = self.reports.get(worker)
        started = self.running.get(report.cell.id) if report is not None else None
        return report if started is not None and (started.worker, started.phase) == (worker, "answers") else None

    @property
    def finished(self) -> int:
        """Cells of the plan that need no more work."""
        return self.outcomes.total()

    def totals(self) -> str:
        """How many cells ended how, run, and wait; `0 done` is said, other zeros are not."""
        counts = {name: self.outcomes[name] for name in ("done", "failed", "refused")}
        counts |= {"running": len(self.running), "to be measured": len(self.evaluated)}
        counts["waiting"] = len(self.cells) - sum(counts.values())
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "done")

    def seconds_left(self) -> float | None:
        """Seconds that the rest will take; `None` before the first cell of this command has a result.

        A cell takes as long as the finished cells of its model and task did on average, or as all of them did. The
        time on the clock per such second (several workers, shared work, a slow start) stays what it was so far.
        """
        means = {kind: sum(times) / len(times) for kind, times in self._seconds.items()}
        if not means:
            return None
        every = [seconds for times in self._seconds.values() for seconds in times]
        done, left = sum(every), 0.0
        fractions = dict.fromkeys(self.evaluated, EVALUATION_SHARE)
        fractions |= {started.cell.id: worker.fraction for worker in self.workers() for started in worker.cells}
        for cell in self.cells:
            if cell.id not in self.marks:
                seconds = means.get((cell.model, cell.task), sum(every) / len(every))
                done += seconds * fractions.get(cell.id, 0.0)
                left += seconds * (1.0 - fractions.get(cell.id, 0.0))
        return (time.monotonic() - self.started) * left / done if done else None

    def time_left(self) -> str:
        """`seconds_left` for people; empty if nothing is left."""
        if self.finished >= len(self.cells):
            return ""
        seconds = self.seconds_left()
        return "estimating time left" if seconds is None else f"about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """`4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _memory(mib: float | None) -> str:
    if mib is None:
        return "-"
    return f"{mib:.0f} MiB" if mib < 10_000 else f"{mib / 1024:.1f} GiB"
