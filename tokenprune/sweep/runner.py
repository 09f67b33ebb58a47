"""`run_sweep`: plan, lock, hand the open cells to an executor, and tell the trackers what happens."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tokenprune.cell import Cell
from tokenprune.errors import PrerequisiteError
from tokenprune.events import (
    CellEnded,
    CellEvaluated,
    CellFailed,
    CellProgress,
    CellStarted,
    Event,
    FailedOutcome,
    SweepEnded,
    SweepStarted,
    SweepStatus,
    Tracked,
)
from tokenprune.plugins import Host, default_host
from tokenprune.registry import load_target
from tokenprune.sweep.config.executor_options import check_option
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.executor import Executor
from tokenprune.sweep.messages import Answered, Began, Ended, Progress, Report
from tokenprune.sweep.plan.cells import plan_cells
from tokenprune.sweep.plan.plan_diff import Survey, survey
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.result_store import Header, SweepStore
from tokenprune.sweep.store.tracker_notes import TrackerNote, mark_behind, read_notes
from tokenprune.sweep.tracker_thread import Listeners

SETTLE_S = 5.0
"""Seconds that a measurement waits for trackers at most, so that they are not in it."""

Display = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """How a sweep ended.

    Args:
        directory: The sweep directory.
        sweep_id: The sweep's id.
        status: `complete`, `failures` or `interrupted`.
        done: Cells with a result, of the whole plan.
        failed: Cells that failed.
        refused: Cells that their pruner refused (impossible budget, unfit model), with the reason on disk.
        pending: Cells that were not begun or not finished (only after an interruption).
        skipped: Cells that were finished before this invocation.
        seconds: Wall time of this invocation.
        tracking_s: Time that trackers took, most of it in a thread beside the work.
        tracking_wait_s: Time that the sweep waited for trackers, before measurements and at its end.
        tracking: What each tracker left: a line, and links to its view of the sweep.
        problems: What went wrong in trackers and other plugins, one line each.
        changes: Why cells that were planned before are new ones now, and which were run with other versions, a
            sentence each.
    """

    directory: Path
    sweep_id: str
    status: SweepStatus
    done: int
    failed: int
    refused: int
    pending: int
    skipped: int
    seconds: float
    tracking_s: float = 0.0
    tracking_wait_s: float = 0.0
    tracking: Mapping[str, TrackerNote] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        """True after Ctrl-C."""
        return self.status == "interrupted"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": 1,
            "directory": str(self.directory),
            "sweep_id": self.sweep_id,
            "status": self.status,
            "done": self.done,
            "failed": self.failed,
            "refused": self.refused,
            "pending": self.pending,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "tracking_s": self.tracking_s,
            "tracking_wait_s": self.tracking_wait_s,
            "tracking": {name: note.to_json() for name, note in self.tracking.items()},
            "problems": list(self.problems),
            "changes": list(self.changes),
        }


def run_sweep(
    config: SweepConfig,
    *,
    directory: str | Path,
    host: Host | None = None,
    display: Display | None = None,
    executor: str | None = None,
    executor_options: Mapping[str, Any] | None = None,
    retry_failed: bool = False,
    retry_refused: bool = False,
    rerun: bool = False,
    track: bool = True,
) -> SweepOutcome:
    """Run a sweep, or continue it where the directory holds one.

    Args:
        config: The checked sweep file.
        directory: The sweep directory, made where it is not there.
        host: Plugins; loaded where not given. Worker processes always load the installed ones themselves.
        display: Called with every event, in this process.
        executor: Name of an executor, in place of the config's.
        executor_options: Options of the executor, over those that the config has for it.
        retry_failed: Run cells again that failed before.
        retry_refused: Run cells again that their pruner refused before.
        rerun: Run cells again that were run with other versions (of torch, transformers, tokenprune, a plugin, ...)
            than those that are installed, and measure costs again that were measured with others.
        track: Call the life-cycle hooks of the config's trackers, and write the report.

    Raises:
        TakenOverError: Another process has taken the directory over.
        ConfigError: Another process runs a sweep there, the directory is of another version, or an option of the
            executor is not known.
        UnknownNameError: A name is not installed.
        PrerequisiteError: A model or data set is not on this machine, an extra is not installed, or no worker starts.
        StorageError: The directory cannot be written; what is finished is kept.

    Example:
        >>> from tokenprune import run_sweep
        >>> from tokenprune.sweep import default_config, with_changes
        >>> small = {"pruners": ["none", "grid"], "budgets": ["25%"], "limit": 2, "efficiency": {"enabled": False}}
        >>> config = with_changes(default_config(), small)
        >>> outcome = run_sweep(config, directory="runs/small", executor="inline", track=False)
        >>> outcome.status, outcome.done
        ('complete', 2)
    """
    host = host or default_host()
    trackers = _trackers(config, host) if track else ()
    name = executor or config.executor.name
    options = {**(config.executor.options if name == config.executor.name else {}), **(executor_options or {})}
    redo = {"pending"} | ({"failed"} if retry_failed else set()) | ({"refused"} if retry_refused else set())
    # a mistake in the file or the options makes no directory
    make = _executor(name, host, options)
    cells = plan_cells(config, host)
    store = SweepStore(directory)
    with store.lock():
        found = survey(store, cells, rerun=rerun)
        todo = [cell for cell in cells if found.states[cell.id] in redo]
        # nor does a missing extra, or an option out of range, change anything in it
        made = make(store, config, host) if todo else None
        header = store.open_sweep(config.to_json(), cells)
        for cell in found.asked_again:
            store.begin_cell(cell)
        for cell in found.measured_again:
            store.forget_cost(cell)
        if todo:
            mark_behind(store.directory, trackers)
        listeners = Listeners(host, trackers) if track else None
        return _Run(store, header, cells, found, display, listeners).go(made, todo)


def _trackers(config: SweepConfig, host: Host) -> tuple[str, ...]:
    """Names of the trackers that hear of a sweep; one that is not installed makes no directory."""
    if config.trackers is None:
        return host.trackers.names()
    return tuple(host.trackers.get(name).name for name in config.trackers)


def _executor(name: str, host: Host, options: Mapping[str, Any]) -> Callable[[SweepStore, SweepConfig, Host], Executor]:
    """The executor's class with its options, checked before anything starts."""
    make = load_target(host.executors.get(name).target)
    for option, value in options.items():
        check_option(name, make, option, value)
    return functools.partial(make, **options)


class _Run:
    """One invocation of `run_sweep` on a locked directory."""

    def __init__(
        self,
        store: SweepStore,
        header: Header,
        cells: tuple[Cell, ...],
        found: Survey,
        display: Display | None,
        listeners: Listeners | None,
    ) -> None:
        self._store = store
        self._header = header
        self._cells = {cell.id: cell for cell in cells}
        self._display = display
        self._listeners = listeners
        self._changes = found.changes
        self._states: dict[str, str] = dict(found.states)
        self._open: set[str] = set()

    def go(self, executor: Executor | None, todo: Sequence[Cell]) -> SweepOutcome:
        started = time.perf_counter()
        for cell in todo:
            self._states[cell.id] = "pending"
        self._open = {cell.id for cell in todo}
        stopped: BaseException | None = None
        try:
            self._emit(self._start())
            if executor is not None:
                self._work(executor, todo)
        except (KeyboardInterrupt, StorageError, PrerequisiteError) as error:
            stopped = error
            self._collect()
        count = Counter(self._states.values())
        status: SweepStatus = "failures" if count["failed"] else "complete"
        ended = SweepEnded(
            directory=self._store.directory,
            sweep_id=self._header.sweep_id,
            status=status if stopped is None else "interrupted",
            done=count["done"],
            failed=count["failed"],
            refused=count["refused"],
            pending=count["pending"],
            seconds=time.perf_counter() - started,
            tracking_s=self._listeners.seconds if self._listeners is not None else 0.0,
        )
        if self._listeners is not None:
            self._listeners.write_reports(ended)
        self._emit(ended)
        if stopped is not None and not isinstance(stopped, KeyboardInterrupt):
            raise stopped
        return SweepOutcome(
            directory=self._store.directory,
            sweep_id=self._header.sweep_id,
            status=ended.status,
            done=ended.done,
            failed=ended.failed,
            refused=ended.refused,
            pending=ended.pending,
            skipped=len(self._cells) - len(todo),
            seconds=time.perf_counter() - started,
            tracking_s=self._listeners.seconds if self._listeners is not None else 0.0,
            tracking_wait_s=self._listeners.waited if self._listeners is not None else 0.0,
            tracking=self._tracking(),
            problems=self._listeners.problems if self._listeners is not None else (),
            changes=self._changes,
        )

    def _start(self) -> SweepStarted:
        return SweepStarted(
            directory=self._store.directory,
            sweep_id=self._header.sweep_id,
            name=self._header.name,
            config=self._header.config,
            cells=tuple(self._cells.values()),
            finished={key: state for key, state in self._states.items() if state != "pending"},
            changes=self._changes,
        )

    def _work(self, executor: Executor, todo: Sequence[Cell]) -> None:
        with closing(cast(Any, executor.run(todo))) as reports:
            for report in reports:
                cell = self._cells[report.cell_id]
                self._take(cell, report)
                if self._listeners is not None and _before_a_cost(cell, report):
                    self._listeners.settle(SETTLE_S)

    def _take(self, cell: Cell, report: Report) -> None:
        """Tell what an executor reported."""
        if isinstance(report, Began):
            self._store.check_token()  # without it every worker dies at its first write
            self._emit(CellStarted(cell, report.worker, report.attempt, report.part, **self._where()))
        elif isinstance(report, Answered):
            self._show(CellEvaluated(cell, **self._where()))
        elif isinstance(report, Progress):
            figures = (report.done, report.total, report.kept, report.samples_per_s, report.memory_mib)
            self._show(CellProgress(cell, report.worker, *figures, **self._where()))
        else:
            self._end(cell, report)

    def _where(self) -> dict[str, Any]:
        """What an event says of the sweep."""
        return {
            "directory": self._store.directory,
            "sweep_id": self._header.sweep_id,
            "done": len(self._cells) - len(self._open),
            "total": len(self._cells),
        }

    def _show(self, event: Event) -> None:
        """Tell the display alone: trackers record what happened, not what goes on."""
        if self._display is not None:
            self._display(event)

    def _end(self, cell: Cell, report: Ended) -> None:
        """Take a finished cell from disk: what is not there does not count, whatever the worker says."""
        # it may have been written on another machine, whose files show up here a little later
        look = self._store.result if report.outcome == "done" else self._store.error
        self._store.awaited(cell.id, lambda: look(cell.id))
        result = self._store.result(cell.id)
        error = None if result is not None else self._store.error(cell.id)
        if result is None and error is None:
            error = {
                "outcome": "failed",
                "type": "LostResult",
                "message": f"the worker reported `{report.outcome}`, but there is no result on disk",
                "hint": "",
                "traceback": "",
            }
            self._store.write_error(cell, error)
        self._open.discard(cell.id)
        if result is not None:
            self._states[cell.id] = "done"
            self._emit(CellEnded(cell, result, **self._where()))
        else:
            assert error is not None  # noqa: S101 - one of the two is there
            outcome: FailedOutcome = "refused" if error.get("outcome") == "refused" else "failed"
            self._states[cell.id] = outcome
            self._emit(CellFailed(cell, outcome, error, **self._where()))

    def _collect(self) -> None:
        """Take from disk what workers completed while the sweep was being stopped."""
        for cell in self._cells.values():
            if cell.id in self._open and self._store.result(cell.id) is not None:
                self._end(cell, Ended(cell.id, "done"))

    def _emit(self, event: Tracked) -> None:
        """Tell the display first (it is what the user sees), then the trackers."""
        self._show(event)
        if self._listeners is not None:
            self._listeners.tell(event)

    def _tracking(self) -> dict[str, TrackerNote]:
        """The notes of this invocation's trackers; those that are switched off may have left others earlier."""
        trackers = self._listeners.trackers if self._listeners is not None else ()
        return {name: note for name, note in read_notes(self._store.directory).items() if name in trackers}


def _before_a_cost(cell: Cell, report: Report) -> bool:
    """Whether the next thing that an executor does may be to measure: after a cell's questions, or after its cost."""
    if isinstance(report, Began):
        return report.part == "cost"
    return bool(cell.efficiency) and not isinstance(report, Progress)
