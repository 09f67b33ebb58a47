"""How a running sweep is shown: a live board on a terminal, plain lines elsewhere, or JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.live import Live

from tokenprune.cli.board import Board
from tokenprune.cli.options import ProgressForm
from tokenprune.cli.output import Output
from tokenprune.cli.tally import Tally, figures, reason
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
    from tokenprune.sweep.runner import Display

_REFRESHES_PER_SECOND = 4

HEARTBEAT_S = 30.0
"""Seconds after which plain lines say what is running, where nothing else was said."""


@contextmanager
def sweep_display(output: Output, *, quiet: bool, form: ProgressForm = ProgressForm.AUTO) -> Iterator[Display | None]:
    """The display that was asked for, or that fits where stderr goes; `None` where nothing shall be said."""
    if form is ProgressForm.AUTO:
        form = ProgressForm.LIVE if output.live else ProgressForm.LINES
    if quiet or form is ProgressForm.NONE:
        yield None
    elif form is ProgressForm.LIVE:
        board = Board()
        # transient: the final table takes its place
        with Live(board, console=output.talk, refresh_per_second=_REFRESHES_PER_SECOND, transient=True):
            yield board.take
    elif form is ProgressForm.JSON:
        yield JsonLines(output).take
    else:
        yield Lines(output).take


@dataclass
class Lines:
    """One line per finished cell, for logs; and one per busy worker where nothing was said for a while."""

    output: Output
    tally: Tally = field(default_factory=Tally)
    _spoke: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        """Say what happened."""
        self.tally.take(event)
        if isinstance(event, SweepStarted):
            waiting = len(event.cells) - len(event.finished)
            self._say(
                f"sweep `{event.name}`: {len(event.cells)} cells, {len(event.finished)} finished before, "
                f"{waiting} to run"
            )
            for change in event.changes:
                self._say(change)
        elif isinstance(event, CellStarted) and event.attempt > 1:
            self._say(f"again (attempt {event.attempt}), after its worker died: {event.cell.name}")
        elif isinstance(event, CellProgress):
            if time.monotonic() - self._spoke >= HEARTBEAT_S:
                self._heartbeat()
        elif isinstance(event, CellEnded):
            tokens = event.result["tokens"]["layer_average"]
            self._say(
                f"{_count(event)} ok       {event.cell.name}  accuracy {event.result['quality']['accuracy']:.3f}  "
                f"tokens {tokens:.1f}  {event.result['seconds']:.1f} s"
            )
        elif isinstance(event, CellFailed):
            self._say(f"{_count(event)} {event.outcome:<8} {event.cell.name}  {reason(event)}")

    def _heartbeat(self) -> None:
        self._say("  ".join(filter(None, [self.tally.totals(), self.tally.time_left()])))
        for busy in self.tally.workers():
            samples, rate, kept, memory = figures(busy)
            told = f"{samples} samples  {rate}/s  kept {kept}  {memory}" if busy.progress is not None else samples
            beside = f" and {len(busy.cells) - 1} beside it" if len(busy.cells) > 1 else ""
            self._say(f"  {busy.name}  {busy.shown.title}{beside}  {told}")

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        self.output.say(text)


@dataclass
class JsonLines:
    """One JSON object per event, for programs that watch."""

    output: Output
    tally: Tally = field(default_factory=Tally)

    def take(self, event: Event) -> None:
        """Say what happened."""
        self.tally.take(event)
        left = None if isinstance(event, SweepEnded) else self.tally.seconds_left()
        line = {"event": _WORDS[type(event)], **_facts(event), "seconds_left": left}
        self.output.talk.out(json.dumps(line, allow_nan=False), highlight=False)


_WORDS: Mapping[type, str] = {
    SweepStarted: "sweep_started",
    CellStarted: "cell_started",
    CellEvaluated: "cell_answered",
    CellProgress: "cell_progress",
    CellEnded: "cell_ended",
    CellFailed: "cell_failed",
    SweepEnded: "sweep_ended",
}


def _facts(event: Event) -> dict[str, Any]:
    if isinstance(event, SweepStarted):
        return {"name": event.name, "cells": len(event.cells), "done": len(event.finished), "changes": event.changes}
    if isinstance(event, SweepEnded):
        return _fields(event, "status", "done", "failed", "refused", "pending", "seconds", "tracking_s")
    facts: dict[str, Any] = {"cell": event.cell.id, "name": event.cell.name}
    if isinstance(event, CellStarted):
        return {**facts, **_fields(event, "worker", "attempt", "part", "done", "total")}
    if isinstance(event, CellEvaluated):
        return facts
    if isinstance(event, CellProgress):
        figures = ("samples_done", "samples", "kept_tokens", "samples_per_s", "memory_mib")
        return {**facts, **_fields(event, "worker", *figures)}
    facts |= _fields(event, "done", "total")
    if isinstance(event, CellFailed):
        return {**facts, "outcome": event.outcome, "reason": reason(event)}
    result = event.result
    return {
        **facts,
        "accuracy": result["quality"]["accuracy"],
        "kept_tokens": result["tokens"]["layer_average"],
        "seconds": result["seconds"],
    }


def _fields(event: Event, *names: str) -> dict[str, Any]:
    return {name: getattr(event, name) for name in names}


def _count(event: CellEnded | CellFailed) -> str:
    width = len(str(event.total))
    return f"[{event.done:>{width}}/{event.total}]"
