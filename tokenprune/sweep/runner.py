"""`run_sweep`: plans the cells, locks the directory, gives open cells to an executor, and reports what happens."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from tokenprune.cells.cell import Cell, Outcome
from tokenprune.cells.events import (
    CellEnded,
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
from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import Host, default_host
from tokenprune.registry import load_target
from tokenprune.sweep.config.executor_options import parse_options
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.executor import Executor
from tokenprune.sweep.messages import CellFinished, ExecutorEvent
from tokenprune.sweep.plan.cells import plan_cells
from tokenprune.sweep.plan.plan_diff import Survey, survey
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.result_store import Header, SweepStore
from tokenprune.sweep.store.tracker_notes import TrackerNote, mark_behind, read_notes
from tokenprune.sweep.tracker_thread import TrackerThread

TRACKER_WAIT_S = 5.0
"""Seconds that a measurement waits for trackers at most, so that their work does not disturb it."""

Display = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class SweepOutcome(SweepEnded):
    """How a sweep ended, for the caller of `run_sweep`; counts are of the whole plan.

    Args:
        skipped: Cells that were finished before this invocation.
        tracking_wait_s: Time that the sweep waited for trackers, before measurements and at its end.
        tracking: What each tracker left: a line, and links to its view of the sweep.
        problems: What went wrong in trackers and other plugins, one line each.
        changes: Why cells that were planned before are new ones now, and which were run with other versions, a
            sentence each.
    """

    skipped: int = 0
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
        lists = {"problems": list(self.problems), "changes": list(self.changes)}
        return {"schema": 1, **asdict(self), "directory": str(self.directory), **lists}


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
    """Run a sweep, or continue the one that the directory holds.

    Args:
        config: The checked sweep file.
        directory: The sweep directory, made if it is not there.
        host: Plugins; loaded if not given. Worker processes always load the installed ones themselves.
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
        made = make(store, config, host) if todo else None  # a missing extra changes nothing in the directory
        header = store.open_sweep(config.to_json(), cells)
        for cell in found.asked_again:
            store.begin_cell(cell)
        for cell in found.measured_again:
            store.forget_cost(cell)
        if todo:
            mark_behind(store.directory, trackers)
        tracking = TrackerThread(host if track else None, trackers)
        return _Run(store, header, cells, found, display, tracking).go(made, todo)


def _trackers(config: SweepConfig, host: Host) -> tuple[str, ...]:
    """Names of the trackers of a sweep; one that is not installed is an error before the directory is made."""
    if config.trackers is None:
        return host.trackers.names()
    return tuple(host.trackers.get(name).name for name in config.trackers)


def _executor(name: str, host: Host, options: Mapping[str, Any]) -> Callable[..., Executor]:
    """The executor's class with its options, checked before anything starts."""
    make = load_target(host.executors.get(name).target)
    checked = parse_options(name, make, options)
    return functools.partial(make, options=checked) if hasattr(make, "Options") else cast(Any, make)


class _Run:
    """One invocation of `run_sweep` on a locked directory."""

    def __init__(
        self,
        store: SweepStore,
        header: Header,
        cells: tuple[Cell, ...],
        found: Survey,
        display: Display | None,
        tracking: TrackerThread,
    ) -> None:
        self._store = store
        self._header = header
        self._cells = cells
        self._changes = found.changes
        self._states: dict[str, str] = dict(found.states)
        self._display = display
        self._tracking = tracking

    def go(self, executor: Executor | None, todo: Sequence[Cell]) -> SweepOutcome:
        """Run the open cells, write the reports, and say how the sweep ended."""
        started = time.perf_counter()
        self._states |= {cell.id: "pending" for cell in todo}
        stopped: BaseException | None = None
        try:
            self._emit(self._start())
            if executor is not None:
                self._work(executor, todo)
        except (KeyboardInterrupt, StorageError, PrerequisiteError) as error:
            stopped = error
            self._collect(todo)
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
            tracking_s=self._tracking.seconds,
        )
        self._tracking.write_reports(ended)
        self._emit(ended)
        if stopped is not None and not isinstance(stopped, KeyboardInterrupt):
            raise stopped
        return SweepOutcome(
            **{**asdict(ended), "seconds": time.perf_counter() - started, "tracking_s": self._tracking.seconds},
            skipped=len(self._cells) - len(todo),
            tracking_wait_s=self._tracking.waited,
            tracking=self._tracked(),
            problems=self._tracking.problems,
            changes=self._changes,
        )

    def _start(self) -> SweepStarted:
        return SweepStarted(
            directory=self._store.directory,
            sweep_id=self._header.sweep_id,
            name=self._header.name,
            config=self._header.config,
            cells=self._cells,
            finished={key: state for key, state in self._states.items() if state != "pending"},
            changes=self._changes,
        )

    def _work(self, executor: Executor, todo: Sequence[Cell]) -> None:
        with closing(cast(Any, executor.run(todo))) as events:
            for event in events:
                self._handle(event)
                if _may_precede_measurement(event):
                    self._tracking.wait(TRACKER_WAIT_S)

    def _handle(self, event: ExecutorEvent) -> None:
        """Pass an event of the executor on."""
        if isinstance(event, CellFinished):
            self._finish(event.cell, event.outcome)
        elif isinstance(event, CellStarted):
            self._store.check_token()  # otherwise every worker would die at its first write
            self._emit(self._located(event))
        else:
            self._show(self._located(event))

    def _located(self, event: Any) -> Any:
        """The event with the directory, the id and the progress of the sweep."""
        done = sum(state != "pending" for state in self._states.values())
        where = {"directory": self._store.directory, "sweep_id": self._header.sweep_id}
        return replace(event, **where, done=done, total=len(self._cells))

    def _finish(self, cell: Cell, reported: Outcome) -> None:
        """Take the outcome of a cell from the directory: what is not there does not count, whatever the worker says."""
        # it may have been written on another machine, whose files show up here a little later
        expected = self._store.result if reported == "done" else self._store.error
        self._store.awaited(cell.id, lambda: expected(cell.id))
        result, error = self._store.result(cell.id), self._store.error(cell.id)
        if result is not None:
            self._states[cell.id] = "done"
            self._emit(self._located(CellEnded(cell, result)))
            return
        if error is None:
            error = {
                "outcome": "failed",
                "type": "LostResult",
                "message": f"the worker reported `{reported}`, but there is no result on disk",
                "hint": "",
                "traceback": "",
            }
            self._store.write_error(cell, error)
        outcome: FailedOutcome = "refused" if error.get("outcome") == "refused" else "failed"
        self._states[cell.id] = outcome
        self._emit(self._located(CellFailed(cell, outcome, error)))

    def _collect(self, todo: Sequence[Cell]) -> None:
        """Count what workers completed while the sweep was being stopped."""
        for cell in todo:
            if self._states[cell.id] == "pending" and self._store.result(cell.id) is not None:
                self._finish(cell, "done")

    def _show(self, event: Event) -> None:
        """Give an event to the display only."""
        if self._display is not None:
            self._display(event)

    def _emit(self, event: Tracked) -> None:
        """Give an event to the display, which the user sees, and then to the trackers."""
        self._show(event)
        self._tracking.notify(event)

    def _tracked(self) -> dict[str, TrackerNote]:
        """The notes of this invocation's trackers; those that are switched off may have left others earlier."""
        notes = read_notes(self._store.directory)
        return {name: note for name, note in notes.items() if name in self._tracking.trackers}


def _may_precede_measurement(event: ExecutorEvent) -> bool:
    """Whether the executor may measure a cost next: after a cell is evaluated, or after its cost."""
    if isinstance(event, CellStarted):
        return event.phase == "cost"
    return bool(event.cell.efficiency) and not isinstance(event, CellProgress)
