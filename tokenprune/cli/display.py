"""How a running sweep is shown: live on a terminal, as plain lines elsewhere, or as JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tokenprune.cells.events import (
    CellEnded,
    CellEvaluated,
    CellFailed,
    CellProgress,
    CellStarted,
    Event,
    SweepEnded,
    SweepStarted,
)
from tokenprune.cli.options import ProgressForm
from tokenprune.cli.output import Output, error_line
from tokenprune.cli.sweep_progress import SweepProgress

if TYPE_CHECKING:
    from tokenprune.cells.cell import Cell
    from tokenprune.sweep.runner import Display

HEARTBEAT_S = 30.0
"""Seconds without a line after which the plain lines say what is running."""

_FAILURES_SHOWN = 3
_TITLE_WIDTH = 40
_COLUMN_WIDTH = 9
"""Characters of a column of accuracies, the gap included."""


@contextmanager
def sweep_display(output: Output, *, quiet: bool, form: ProgressForm = ProgressForm.AUTO) -> Iterator[Display | None]:
    """The display that the user chose, or the one that fits where stderr goes; `None` shows nothing."""
    if form is ProgressForm.AUTO:
        form = ProgressForm.LIVE if output.live else ProgressForm.LINES
    if quiet or form is ProgressForm.NONE:
        yield None
    elif form is ProgressForm.LIVE:
        with LiveDisplay(output) as live:
            yield live.take
    elif form is ProgressForm.JSON:
        yield JsonLines(output).take
    else:
        yield Lines(output).take


class LiveDisplay(Progress):
    """The state of a sweep in place: progress, workers, failures, and accuracies as far as the screen has room."""

    def __init__(self, output: Output) -> None:
        self.state = SweepProgress()
        self._console = output.talk  # the base class draws before it has its own
        super().__init__(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("cells "),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=output.talk,
            refresh_per_second=4,
            transient=True,  # the leaderboard takes its place
        )
        self.add_task("", total=None, left="")

    def take(self, event: Event) -> None:
        """Note what happened."""
        with self._lock:  # another thread draws
            self.state.take(event)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The parts from top to bottom."""
        with self._lock:
            state = self.state
            for task in self.task_ids:  # none yet if the constructor asks
                self.update(task, total=len(state.cells), completed=state.finished, left=state.time_left())
            height = self._console.size.height - 1
            top: list[RenderableType] = [*state.changes, self.make_tasks_table(self.tasks), _line(state.totals())]
            if state.running:
                top += ["", self._workers(max(3, height // 3))]
            if state.failures:
                top += ["", *map(_line, state.failures[-_FAILURES_SHOWN:])]
            room = height - sum(len(self._console.render_lines(part)) for part in top)
            return [*top, *self._accuracies(room - 1)]

    def _workers(self, most: int) -> Table:
        """One row per worker; the name of the cell is shortened in a narrow terminal."""
        workers = self.state.workers()
        table = _table("worker", "cell", "samples", "per s", "kept", "memory")
        table.columns[1].no_wrap, table.columns[1].justify = False, "left"
        for worker in workers[:most]:
            beside = f" +{len(worker.cells) - 1}" if len(worker.cells) > 1 else ""
            table.add_row(Text(worker.name), CellName(worker.title, beside), *worker.numbers())
        if len(workers) > most:
            table.add_row("", f"and {len(workers) - most} more")
        return table

    def _accuracies(self, height: int) -> list[RenderableType]:
        """Pruners down and budgets across; if not all fit, those of the latest events."""
        cells, touched = self.state.cells, self.state.touched
        several = len({(cell.model, cell.task) for cell in cells}) > 1
        rows: dict[str, dict[str, Cell]] = {}
        columns: dict[str, list[Cell]] = {}
        for cell in cells:
            title = f"{cell.label} {cell.model}/{cell.task}" if several else cell.label
            rows.setdefault(title + (f" seed {cell.seed}" if cell.seed else ""), {})[cell.budget_label] = cell
            columns.setdefault(cell.budget_label, []).append(cell)

        def latest(groups: Mapping[str, Iterable[Cell]], most: int) -> list[str]:
            moments = {name: max(touched.get(cell.id, 0) for cell in group) for name, group in groups.items()}
            chosen = sorted(moments, key=lambda name: -moments[name])[: max(0, most)]
            return [name for name in groups if name in chosen]

        title_width = min(_TITLE_WIDTH, max(map(len, ["accuracy", *rows])))
        budgets = latest(columns, max(1, (self._console.width - title_width) // _COLUMN_WIDTH))
        lines = height - 2  # without the heading and its rule
        titles = latest(
            {title: row.values() for title, row in rows.items()}, lines if len(rows) <= lines else lines - 1
        )
        if not titles:
            return []
        table = _table("accuracy", *budgets)
        table.columns[0].max_width = title_width
        for title in titles:
            marks = [self.state.mark(rows[title][budget]) if budget in rows[title] else "" for budget in budgets]
            table.add_row(Text(title), *marks)
        hidden = {"pruners": len(rows) - len(titles), "budgets": len(columns) - len(budgets)}
        more = ", ".join(f"{count} more {what}" for what, count in hidden.items() if count)
        return ["", table, *([f"and {more}"] if more else [])]


@dataclass(frozen=True, slots=True)
class CellName:
    """A cell's name that loses its middle if there is too little room: the end says the task and the budget."""

    name: str
    suffix: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Any width from some characters to the whole."""
        whole = len(self.name) + len(self.suffix)
        return Measurement(min(12, whole), whole)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The name in this width."""
        room = options.max_width - len(self.suffix)
        end = min(len(self.name.rpartition("/")[2]) + 1, room // 2)
        short = self.name if len(self.name) <= room else f"{self.name[: room - end - 1]}…{self.name[-end:]}"
        yield Text(short + self.suffix, no_wrap=True)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


@dataclass
class Lines:
    """One line per finished cell, for logs; and one per busy worker after a while without a line."""

    output: Output
    state: SweepProgress = field(default_factory=SweepProgress)
    _last: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        """Print what happened."""
        self.state.take(event)
        if isinstance(event, SweepStarted):
            finished = len(event.finished)
            self._print(
                f"sweep `{event.name}`: {len(event.cells)} cells, {finished} finished before, "
                f"{len(event.cells) - finished} to run",
                *event.changes,
            )
        elif isinstance(event, CellStarted) and event.attempt > 1:
            self._print(f"again (attempt {event.attempt}), after its worker died: {event.cell.name}")
        elif isinstance(event, CellProgress):
            if time.monotonic() - self._last >= HEARTBEAT_S:
                self._print(*self._heartbeat())
        elif isinstance(event, CellEnded):
            result = event.result
            self._print(
                f"{_count(event)} ok       {event.cell.name}  accuracy {result['quality']['accuracy']:.3f}  "
                f"tokens {result['tokens']['layer_average']:.1f}  {result['seconds']:.1f} s"
            )
        elif isinstance(event, CellFailed):
            self._print(f"{_count(event)} {event.outcome:<8} {event.cell.name}  {error_line(event.error)}")

    def _heartbeat(self) -> Iterator[str]:
        yield "  ".join(filter(None, [self.state.totals(), self.state.time_left()]))
        for worker in self.state.workers():
            samples, rate, kept, memory = worker.numbers()
            numbers = f"{samples} samples  {rate}/s  kept {kept}  {memory}" if worker.report is not None else samples
            beside = f" and {len(worker.cells) - 1} beside it" if len(worker.cells) > 1 else ""
            yield f"  {worker.name}  {worker.title}{beside}  {numbers}"

    def _print(self, *lines: str) -> None:
        self._last = time.monotonic()
        for line in lines:
            self.output.say(line)


def _count(event: CellEnded | CellFailed) -> str:
    return f"[{event.done:>{len(str(event.total))}}/{event.total}]"


@dataclass
class JsonLines:
    """One JSON object per event, for programs that watch."""

    output: Output
    state: SweepProgress = field(default_factory=SweepProgress)

    def take(self, event: Event) -> None:
        """Print what happened."""
        self.state.take(event)
        word, *fields = _JSON_FIELDS[type(event)]
        line: dict[str, Any] = {"event": word}
        if not isinstance(event, SweepStarted | SweepEnded):
            line |= {"cell": event.cell.id, "name": event.cell.name}
        line |= {name: getattr(event, name) for name in fields} | _json_extras(event)
        line["seconds_left"] = None if isinstance(event, SweepEnded) else self.state.seconds_left()
        self.output.talk.out(json.dumps(line, allow_nan=False), highlight=False)


_JSON_FIELDS: Mapping[type, tuple[str, ...]] = {
    SweepStarted: ("sweep_started", "name", "changes"),
    CellStarted: ("cell_started", "worker", "attempt", "part", "done", "total"),
    CellEvaluated: ("cell_answered",),
    CellProgress: (
        *("cell_progress", "worker", "samples_done", "samples"),
        *("kept_tokens", "samples_per_s", "memory_mib"),
    ),
    CellEnded: ("cell_ended", "done", "total"),
    CellFailed: ("cell_failed", "done", "total", "outcome"),
    SweepEnded: ("sweep_ended", "status", "done", "failed", "refused", "pending", "seconds", "tracking_s"),
}
"""The `event` of a line, and the fields of the event that it repeats."""


def _json_extras(event: Event) -> dict[str, Any]:
    if isinstance(event, SweepStarted):
        return {"cells": len(event.cells), "done": len(event.finished)}
    if isinstance(event, CellFailed):
        return {"reason": error_line(event.error)}
    if isinstance(event, CellEnded):
        result = event.result
        accuracy, kept = result["quality"]["accuracy"], result["tokens"]["layer_average"]
        return {"accuracy": accuracy, "kept_tokens": kept, "seconds": result["seconds"]}
    return {}
