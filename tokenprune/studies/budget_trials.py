"""Runs of one pruner at the ratios that a search asks for, kept in a sweep directory like any other cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenprune.cells.cell import Cell
from tokenprune.errors import ConfigError, PrerequisiteError, TokenPruneError
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.plugins import Host
from tokenprune.report.stats.intervals import Interval
from tokenprune.report.stats.scores import Scores, read_scores
from tokenprune.studies.bisection import Trial
from tokenprune.sweep.config.schema import BudgetEntry, SweepConfig
from tokenprune.sweep.plan.cells import plan_cells
from tokenprune.sweep.store.result_store import Header, SweepStore
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData
from tokenprune.sweep.worker.cell_runner import CellRunner


class Trials:
    """Runs ratios on demand; what is finished in the directory is not run again.

    Args:
        config: A sweep of one model, one task and one pruner; its budgets are replaced.
        store: The directory, locked by the caller.
        steps: Steps from no token to all of them: step `k` keeps the ratio `k / steps`.

    Raises:
        UnknownNameError: A name is not installed.
        PrerequisiteError: The model or the data set is not on this machine.
    """

    def __init__(self, config: SweepConfig, store: SweepStore, host: Host, steps: int) -> None:
        self.steps = steps
        self.runs = 0
        """Cells that were run now, the unpruned one among them."""
        budgets = tuple(BudgetEntry(ratio=step / steps) for step in range(1, steps))
        self._config = config.model_copy(update={"budgets": budgets})
        reference, *cells = plan_cells(self._config, host)
        self._reference, self._cells = reference, dict(enumerate(cells, start=1))
        self._store = store
        self._runner = CellRunner(store, ModelCache(host, config.device[0]))
        # runs at other ratios, of a search with another precision, stay in the plan
        subject = _without_budget(self._cells[1])
        earlier = [cell for cell in (store.plan() if store.exists() else ()) if _without_budget(cell) == subject]
        self._asked: dict[str, Cell] = {cell.id: cell for cell in (self._reference, *earlier)}
        self._header: Header | None = None
        self._scores: dict[int, Scores] = {}

    def __call__(self, step: int) -> Trial:
        """Run one ratio; it must lie above 0 and below 1.

        Raises:
            PrerequisiteError: The unpruned model failed or answers nothing right, so nothing can be retained.
        """
        base = self._base
        entry = self._finish(self._cells[step])
        if entry.state == "refused":
            return Trial(step, None, "refused", _reason(entry))
        scores = read_scores(self._data(entry), [entry], base)
        if scores is None:
            raise TokenPruneError(f"cell `{entry.cell.name}` did not end", hint="run the same command again")
        self._scores[step] = scores
        retention = self._retention(scores)
        return Trial(step, retention.mean, "done" if entry.state == "done" else "failed", _reason(entry))

    def accuracy(self, step: int) -> Interval:
        """Accuracy at a ratio that was run and not refused, with its interval."""
        return self._scores[step].accuracy()

    def retention(self, step: int) -> Interval:
        """Retention at such a ratio, with its interval."""
        return self._retention(self._scores[step])

    def _retention(self, scores: Scores) -> Interval:
        ours, unpruned = scores.paired_with(self._base)
        found = ours.divided_by(unpruned)
        assert found is not None  # noqa: S101 - the unpruned model answers something right
        return found

    @property
    def questions(self) -> int:
        """How many questions each run asks."""
        return self._reference.samples

    @property
    def unpruned(self) -> Interval:
        """Accuracy of the unpruned model.

        Raises:
            PrerequisiteError: It failed or answers nothing right.
        """
        return self._base.accuracy()

    @cached_property
    def _base(self) -> Scores:
        entry = self._finish(self._reference)
        base = read_scores(self._data(entry), [entry], None)
        if base is None:
            raise PrerequisiteError(
                f"the unpruned model failed: {_reason(entry)}", hint="mend that first; there is nothing to retain"
            )
        if not base.values.sum() > 0.0:
            raise PrerequisiteError(
                "the unpruned model answers no question right, so there is nothing to retain",
                hint="raise --limit, or take another task",
            )
        return base

    def _finish(self, cell: Cell) -> CellRecord:
        """The cell with its result, run where the directory does not hold it; what failed before is tried again."""
        self._asked[cell.id] = cell
        self._header = self._store.open_sweep(self._config.to_json(), self._asked.values())
        state = self._store.state(cell.id)
        if state in ("pending", "failed") or self._store.damaged(cell):
            self.runs += 1
            state = self._runner.run_cell(cell)
        return CellRecord(cell, state, self._store.result(cell.id), self._store.error(cell.id))

    def _data(self, entry: CellRecord) -> SweepData:
        assert self._header is not None  # noqa: S101 - set before any cell is looked at
        return SweepData(self._store, self._header, (entry,))


@contextlib.contextmanager
def open_trials(config: SweepConfig, directory: Path, host: Host, steps: int) -> Iterator[Trials]:
    """Hold a directory for a search.

    Raises:
        ConfigError: Another process works there, or it holds a sweep of another version, one that is no search, or a
            search of something else: its plan would be lost.
        StorageError: It cannot be written.
    """
    store = SweepStore(directory)
    with store.lock():
        if store.exists():
            _check_subject(config, store.header().config, directory)
        yield Trials(config, store, host, steps)


_OF_THE_RUN = frozenset({"budgets", "device"})
"""Keys of the config that another search of the same subject may have otherwise."""


def _check_subject(config: SweepConfig, recorded: Mapping[str, Any], directory: Path) -> None:
    """Refuse a directory whose plan another search would replace."""
    other = directory.with_name(f"{directory.name}-2")
    hint = f"name another directory, for example `--out {other}`"
    wanted = config.to_json()
    known = [key for key in wanted if key in recorded and key not in _OF_THE_RUN]  # an older version has fewer keys
    differing = [key for key in known if wanted[key] != recorded[key]]
    ratios = [entry.get("ratio") for entry in recorded.get("budgets", ())]
    if ratios != [step / (len(ratios) + 1) for step in range(1, len(ratios) + 1)]:
        raise ConfigError(f"`{directory}` holds a sweep that is no search for a budget", hint=hint)
    if differing:
        facts = ", ".join(f"{key} {_said(recorded[key])}, not {_said(wanted[key])}" for key in differing)
        raise ConfigError(f"`{directory}` holds another search: {facts}", hint=hint)


def _said(value: Any) -> str:
    """A value of the config in few words."""
    if isinstance(value, Mapping) and "name" in value:
        options = ",".join(f"{key}={option}" for key, option in (value.get("options") or {}).items())
        return f"{value['name']}[{options}]" if options else str(value["name"])
    if isinstance(value, list):
        return " ".join(map(_said, value))
    return str(value)


def _without_budget(cell: Cell) -> Cell:
    """The cell with nothing to tell it from the same at another budget."""
    return replace(cell, budget_ratio=None, budget_tokens=None)


def _reason(entry: CellRecord) -> str:
    return str(entry.error.get("message", "")) if entry.error else ""
