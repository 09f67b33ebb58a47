"""The live board of a running sweep: progress, workers, failures, and the accuracies as they fill in."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokenprune.cli.tally import Tally, clock, figures
from tokenprune.events import Event

_BAR_WIDTH = 24
_FAILURES_SHOWN = 3
_HEADINGS = ("worker", "cell", "samples", "per s", "kept", "memory")
_LEAST_NAME = 12
_MARK_WIDTH = 7
_TITLE_WIDTH = 40
_GAP = 2


@dataclass
class Board:
    """Shows the present state whenever it is drawn; fits the console's width and height, workers before accuracies."""

    tally: Tally = field(default_factory=Tally)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, event: Event) -> None:
        """Note what happened."""
        with self._lock:  # it is drawn in another thread
            self.tally.take(event)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The picture of this moment."""
        with self._lock:
            parts = list(self._parts(console, options))
        yield from parts

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        height = console.size.height - 1
        top: list[RenderableType] = [Text(change) for change in self.tally.changes]
        top += [self._progress(), Text(self.tally.totals(), no_wrap=True, overflow="ellipsis")]
        if self.tally.running:
            top += [Text(), self._workers(options.max_width, max(3, height // 3))]
        if self.tally.failures:
            top += [Text()]
        top += [Text(text, no_wrap=True, overflow="ellipsis") for text in self.tally.failures[-_FAILURES_SHOWN:]]
        yield from top
        room = height - sum(len(console.render_lines(part, options)) for part in top)
        yield from self._accuracies(options.max_width, room - 1)

    def _progress(self) -> RenderableType:
        tally = self.tally
        row = Table.grid(padding=(0, _GAP))
        bar = ProgressBar(total=max(1, len(tally.cells)), completed=tally.finished, width=_BAR_WIDTH)
        facts = [f"{tally.finished}/{len(tally.cells)} cells", clock(tally.elapsed()), tally.time_left()]
        row.add_row(bar, Text("  ".join(filter(None, facts)), no_wrap=True))
        return row

    def _workers(self, width: int, most: int) -> RenderableType:
        """One row per worker; the name of the cell is what gives way in a narrow terminal."""
        everyone = self.tally.workers()
        rows = [[busy.name, busy.shown.title, *figures(busy)] for busy in everyone[:most]]
        widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
        room = max(_LEAST_NAME, width - sum(widths) + widths[1] - _GAP * (len(widths) - 1))
        built = _table()
        for place, heading in enumerate(_HEADINGS):
            least = widths[place] if heading != "cell" else None
            built.add_column(heading, justify="right" if place > 1 else "left", no_wrap=True, min_width=least)
        for busy, (worker, title, *numbers) in zip(everyone, rows, strict=False):
            beside = f" +{len(busy.cells) - 1}" if len(busy.cells) > 1 else ""
            built.add_row(worker, Text(_shortened(title, room - len(beside)) + beside), *numbers)
        if len(everyone) > most:
            built.add_row("", f"and {len(everyone) - most} more")
        return built

    def _accuracies(self, width: int, height: int) -> Iterator[RenderableType]:
        """Pruners down and budgets across; where not all fit, those where something happened last."""
        tally = self.tally
        several = len({(cell.model, cell.task) for cell in tally.cells}) > 1
        rows: dict[str, dict[str, str]] = {}
        latest_row: dict[str, int] = {}
        latest_column: dict[str, int] = {}
        for cell in tally.cells:
            title = f"{cell.label} {cell.model}/{cell.task}" if several else cell.label
            title += f" seed {cell.seed}" if cell.seed else ""
            doing = "running" if cell.id in tally.running else "asked" if cell.id in tally.answered else "."
            mark = tally.marks.get(cell.id, doing)
            rows.setdefault(title, {})[cell.budget_label] = mark
            when = tally.touched.get(cell.id, 0)
            latest_row[title] = max(when, latest_row.get(title, 0))
            latest_column[cell.budget_label] = max(when, latest_column.get(cell.budget_label, 0))
        title_width = min(_TITLE_WIDTH, max(map(len, ["accuracy", *rows])))
        fitting = max(1, (width - title_width) // (_MARK_WIDTH + _GAP))
        columns = _latest(latest_column, fitting)
        titles = _latest(latest_row, height - 2 if len(rows) + 2 <= height else height - 3)
        if not titles:
            return
        built = _table()
        built.add_column("accuracy", no_wrap=True, max_width=title_width)
        for column in columns:
            built.add_column(column, justify="right", no_wrap=True)
        for title in titles:
            built.add_row(Text(title), *(rows[title].get(column, "") for column in columns))
        yield Text()
        yield built
        left_out = {"pruners": len(rows) - len(titles), "budgets": len(latest_column) - len(columns)}
        if any(left_out.values()):
            yield Text("and " + ", ".join(f"{count} more {what}" for what, count in left_out.items() if count))


def _latest(moments: dict[str, int], most: int) -> Sequence[str]:
    """The names of the latest moments, in the order that they have."""
    chosen = set(sorted(moments, key=lambda name: -moments[name])[: max(0, most)])
    return [name for name in moments if name in chosen]


def _shortened(name: str, room: int) -> str:
    """A cell's name without its middle, where it is too long: the end tells task and budget."""
    if len(name) <= room:
        return name
    end = min(len(name.rpartition("/")[2]) + 1, room // 2)
    return f"{name[: room - end - 1]}…{name[-end:]}"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
