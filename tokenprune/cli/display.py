"""How a running sweep is shown: a live table on a terminal, one line per finished cell everywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokenprune.cli.output import Output
from tokenprune.sweep.events import CellEnded, CellFailed, CellStarted, Event, SweepEnded, SweepStarted

if TYPE_CHECKING:
    from tokenprune.sweep import Cell
    from tokenprune.sweep.runner import Display

_REFRESHES_PER_SECOND = 4
_BAR_WIDTH = 24
_FAILURES_SHOWN = 3


@contextmanager
def sweep_display(output: Output, *, quiet: bool) -> Iterator[Display | None]:
    """The display that fits where stderr goes; `None` where nothing shall be said."""
    if quiet:
        yield None
    elif output.live:
        board = Board()
        with Live(
            get_renderable=board.render,
            console=output.talk,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,  # the final table takes its place
        ):
            yield board.take
    else:
        yield Lines(output).take


@dataclass
class Lines:
    """One line per finished cell, for logs."""

    output: Output

    def take(self, event: Event) -> None:
        """Say what happened."""
        if isinstance(event, SweepStarted):
            waiting = len(event.cells) - len(event.finished)
            self.output.say(
                f"sweep `{event.name}`: {len(event.cells)} cells, {len(event.finished)} finished before, "
                f"{waiting} to run"
            )
            for change in event.changes:
                self.output.say(change)
        elif isinstance(event, CellStarted) and event.attempt > 1:
            self.output.say(f"again (attempt {event.attempt}), after its worker died: {event.cell.name}")
        elif isinstance(event, CellEnded):
            tokens = event.result["tokens"]["layer_average"]
            self.output.say(
                f"{_count(event)} ok       {event.cell.name}  accuracy {event.result['quality']['accuracy']:.3f}  "
                f"tokens {tokens:.1f}  {event.result['seconds']:.1f} s"
            )
        elif isinstance(event, CellFailed):
            self.output.say(f"{_count(event)} {event.outcome:<8} {event.cell.name}  {_reason(event)}")


@dataclass
class Board:
    """Accuracies that fill in, pruners down and budgets across, over a progress bar and the running cells."""

    started: float = field(default_factory=time.monotonic)
    cells: tuple[Cell, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    changes: tuple[str, ...] = ()
    finished: int = 0
    finished_here: int = 0

    def take(self, event: Event) -> None:
        """Note what happened."""
        if isinstance(event, SweepStarted):
            self.started = time.monotonic()
            self.cells = event.cells
            self.marks = dict(event.finished)
            self.finished = len(event.finished)
            self.changes = event.changes
        elif isinstance(event, CellStarted):
            self.running[event.cell.id] = f"{event.worker}  {event.cell.name}"
        elif isinstance(event, CellEnded):
            self._finish(event.cell, f"{event.result['quality']['accuracy']:.3f}", event.done)
        elif isinstance(event, CellFailed):
            self._finish(event.cell, event.outcome, event.done)
            self.failures.append(f"{event.outcome}: {event.cell.name}: {_reason(event)}")
        elif isinstance(event, SweepEnded):
            self.running.clear()

    def _finish(self, cell: Cell, mark: str, done: int) -> None:
        self.running.pop(cell.id, None)
        self.marks[cell.id] = mark
        self.finished = done
        self.finished_here += 1

    def render(self) -> RenderableType:
        """The picture of this moment."""
        lines: list[RenderableType] = [Text(change) for change in self.changes]
        lines += [self._progress(), self._accuracies()]
        lines += [Text(f"running  {text}", no_wrap=True, overflow="ellipsis") for text in self.running.values()]
        lines += [Text(text, no_wrap=True, overflow="ellipsis") for text in self.failures[-_FAILURES_SHOWN:]]
        return Group(*lines)

    def _progress(self) -> RenderableType:
        seconds = time.monotonic() - self.started
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, len(self.cells)), completed=self.finished, width=_BAR_WIDTH)
        text = f"{self.finished}/{len(self.cells)} cells  {_clock(seconds)}"
        left = len(self.cells) - self.finished
        if self.finished_here and left:
            text += f"  about {_clock(seconds / self.finished_here * left)} left"
        row.add_row(bar, Text(text, no_wrap=True))
        return row

    def _accuracies(self) -> RenderableType:
        several = len({(cell.model, cell.task) for cell in self.cells}) > 1
        columns = list(dict.fromkeys(cell.budget_label for cell in self.cells))
        rows: dict[str, dict[str, str]] = {}
        for cell in self.cells:
            title = f"{cell.label} {cell.model}/{cell.task}" if several else cell.label
            title += f" seed {cell.seed}" if cell.seed else ""
            rows.setdefault(title, {})[cell.budget_label] = self.marks.get(
                cell.id, "running" if cell.id in self.running else "."
            )
        built = Table("accuracy", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in columns:
            built.add_column(column, justify="right")
        for title, marks in rows.items():
            built.add_row(Text(title), *(marks.get(column, "") for column in columns))
        return built


def _count(event: CellEnded | CellFailed) -> str:
    width = len(str(event.total))
    return f"[{event.done:>{width}}/{event.total}]"


def _reason(event: CellFailed) -> str:
    lines = str(event.error.get("message", "")).splitlines()
    return f"{event.error.get('type', 'error')}: {lines[0] if lines else ''}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
