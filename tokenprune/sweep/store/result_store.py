"""The sweep directory: the truth about a sweep, written so that a kill at any time loses at most a running batch.

    sweep.json      the resolved sweep file and the sweep's id
    plan.jsonl      every planned cell
    cells/<id>/     samples.jsonl, first_token.npz, overlays.json, and `result.json`, written last; or `error.json`;
                    until its cost is measured, `answers.json` in place of the result; during the evaluation,
                    `partial.jsonl` with the samples so far
    lock, owner.lock, owner, lease      who may write; see `tokenprune.sweep.store.lock`
    pictures/       the few pictures that overlays are drawn on
    logs/           what each worker printed

`result.json` is written to a temporary name, synced and renamed: if it is there, the cell is complete.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tokenprune.cells.cell import Cell
from tokenprune.errors import ConfigError
from tokenprune.sweep.store import lock
from tokenprune.sweep.store.atomic_io import (
    StorageError,
    inside,
    make_folder,
    read_json,
    read_jsonl,
    remove_temporaries,
    storage_error,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)
from tokenprune.sweep.store.predictions import FILE as PARTIAL_FILE
from tokenprune.sweep.store.predictions import Begun, Partial, read_partial

if TYPE_CHECKING:
    from tokenprune.metrics.distribution import FirstToken

__all__ = [
    "SCHEMA",
    "CellState",
    "Header",
    "StorageError",
    "SweepStore",
    "read_jsonl",
    "write_bytes",
    "write_json",
    "write_jsonl",
    "write_text",
]

SCHEMA = 1

VISIBLE_S = 30.0
"""Seconds that a file gets to show up that another machine says it has written: a network file system remembers for so
long that it was not there."""

_LOOK_S = 0.25

SWEEP_FILE, PLAN_FILE = "sweep.json", "plan.jsonl"
RESULT_FILE, ANSWERS_FILE, ERROR_FILE = "result.json", "answers.json", "error.json"
SAMPLES_FILE, FIRST_TOKEN_FILE, OVERLAYS_FILE = "samples.jsonl", "first_token.npz", "overlays.json"

CellState = Literal["pending", "done", "failed", "refused"]
_T = TypeVar("_T")
_HEADER = {"sweep_id": str, "name": str, "created": str, "config": dict}


@dataclass(frozen=True, slots=True)
class Header:
    """What `sweep.json` holds."""

    sweep_id: str
    name: str
    created: str
    config: Mapping[str, Any]


class SweepStore:
    """Reads and writes one sweep directory.

    Args:
        directory: The sweep directory; it need not exist.
        token: For a worker in another process: the token under which it writes; every write checks it.
    """

    def __init__(self, directory: str | Path, *, token: str = "") -> None:
        self.directory = Path(directory).resolve()
        self.token = token
        self.lock_descriptor: int | None = None
        """The locked file while this process holds the directory, for child processes to inherit."""

    def exists(self) -> bool:
        """True if a sweep was begun here."""
        return (self.directory / SWEEP_FILE).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory against other processes; see `tokenprune.sweep.store.lock`.

        Raises:
            ConfigError: Another process runs a sweep here.
            StorageError: The directory cannot be written.
        """
        with lock.hold(self.directory) as held:
            self.token, self.lock_descriptor = held.token, held.descriptor
            try:
                yield
            finally:
                self.token, self.lock_descriptor = "", None

    def owner(self) -> str:
        """Who runs a sweep here now (`pid 12 on node`), or an empty text."""
        return lock.owner(self.directory)

    def open_sweep(self, config: Mapping[str, Any], cells: Iterable[Cell], name: str = "") -> Header:
        """Begin a sweep or continue it: the id stays, the config and the plan become the given ones."""
        make_folder(self.directory)
        remove_temporaries(self.directory)
        header = self.header() if self.exists() else None
        fresh = Header(
            sweep_id=header.sweep_id if header else uuid.uuid4().hex,
            name=name or self.directory.name,
            created=header.created if header else datetime.now(UTC).isoformat(timespec="seconds"),
            config=dict(config),
        )
        write_jsonl(self.directory / PLAN_FILE, (cell.to_json() for cell in cells))
        write_json(self.directory / SWEEP_FILE, {"schema": SCHEMA, **asdict(fresh)})
        return fresh

    def header(self) -> Header:
        """What `sweep.json` holds.

        Raises:
            ConfigError: There is no sweep here, or its file is damaged or of another version.
        """
        path = self.directory / SWEEP_FILE
        if not path.is_file():
            raise ConfigError(f"`{self.directory}` is not a sweep directory", hint="it has no sweep.json")
        data = read_json(path) or {}
        whole = all(isinstance(data.get(key), kind) for key, kind in _HEADER.items())
        if not whole or data.get("schema") != SCHEMA:
            raise ConfigError(f"`{path}` is damaged or of another version", hint="use a new sweep directory")
        return Header(**{key: data[key] for key in _HEADER})

    def plan(self) -> tuple[Cell, ...]:
        """The planned cells.

        Raises:
            ConfigError: There is no plan, or it is damaged.
        """
        path = self.directory / PLAN_FILE
        if not path.is_file():
            raise ConfigError(f"`{self.directory}` has no plan", hint="run the sweep again")
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("not every line is a cell")
            return tuple(map(Cell.from_json, rows))
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"`{path}` is damaged: {error}", hint="run the sweep again") from error

    def planned_rows(self) -> list[dict[str, Any]]:
        """The planned cells as stored, whichever version wrote them; empty if there is no readable plan."""
        try:
            return read_jsonl(self.directory / PLAN_FILE)
        except ConfigError:
            return []

    def cell_directory(self, cell_id: str) -> Path:
        """Folder of one cell.

        Raises:
            OutsideError: The id, which may come from a file, is not the name of a folder.
        """
        return inside(self.directory, "cells", cell_id)

    # --- reading --------------------------------------------------------------------------------------------------

    def state(self, cell_id: str) -> CellState:
        """What is known about a cell; a damaged result counts as none."""
        if self.result(cell_id) is not None:
            return "done"
        error = self.error(cell_id)
        if error is None:
            return "pending"
        return "refused" if error.get("outcome") == "refused" else "failed"

    def result(self, cell_id: str) -> dict[str, Any] | None:
        """The cell's result, or `None`."""
        return self._read_result(cell_id, RESULT_FILE)

    def answers(self, cell_id: str) -> dict[str, Any] | None:
        """The result, still without its `cost`, of a cell whose cost is not measured yet, or `None`."""
        return self._read_result(cell_id, ANSWERS_FILE)

    def settled(self, cell_id: str) -> dict[str, Any] | None:
        """The cell's result, with or without its cost, or `None`."""
        return self.result(cell_id) or self.answers(cell_id)

    def error(self, cell_id: str) -> dict[str, Any] | None:
        """The cell's error, or `None`."""
        return read_json(self.cell_directory(cell_id) / ERROR_FILE)

    def samples(self, cell_id: str) -> list[dict[str, Any]]:
        """The rows of the cell's samples in task order; empty if there are none."""
        return read_jsonl(self.cell_directory(cell_id) / SAMPLES_FILE)

    def first_token(self, cell_id: str) -> FirstToken:
        """First-token distributions of an unpruned cell.

        Raises:
            ConfigError: They are not there, or damaged.
        """
        from tokenprune.metrics.distribution import FirstToken

        path = self.cell_directory(cell_id) / FIRST_TOKEN_FILE
        try:
            return FirstToken.from_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"`{path}` cannot be read: {error}",
                hint="run the sweep again with failed cells retried: the unpruned cell is asked anew",
            ) from error

    def overlays(self, cell_id: str) -> list[dict[str, Any]]:
        """The kept tokens of the cell's first few samples; empty if they were not stored."""
        data = read_json(self.cell_directory(cell_id) / OVERLAYS_FILE) or {}
        return list(data.get("samples", ()))

    def partial(self, cell_id: str) -> Begun | None:
        """The samples so far of a cell whose evaluation was begun, or `None`."""
        return read_partial(self.cell_directory(cell_id) / PARTIAL_FILE)

    def damaged(self, cell: Cell) -> bool:
        """Whether an evaluated cell has files that cannot be read, as after a power cut.

        It reads every line, so it is called once, when a sweep is opened.
        """
        if self.settled(cell.id) is None:
            return False
        try:
            rows = self.samples(cell.id)
            stored = len(self.first_token(cell.id).ids) if cell.reference is None else cell.samples
        except ConfigError:
            return True
        return stored != cell.samples or [row.get("index") for row in rows] != list(range(cell.samples))

    def measured_otherwise(self, cell: Cell) -> bool:
        """Whether the cost of a cell was measured with other settings than the plan has now."""
        result = self.result(cell.id)
        if result is None or not cell.efficiency:
            return False
        return bool(result["cell"].get("efficiency") != dict(cell.efficiency))

    def awaited(self, cell_id: str, look: Callable[[], _T | None]) -> _T | None:
        """Wait for what a worker, perhaps on another machine, says it has written.

        Args:
            cell_id: The cell.
            look: Reads it; called again for `VISIBLE_S` while it finds nothing.

        Returns:
            What it found, or `None`.
        """
        deadline = time.monotonic() + VISIBLE_S
        while (found := look()) is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            with suppress(OSError):  # to list the folder makes a network file system ask its server
                list(self.cell_directory(cell_id).iterdir())
        return found

    # --- writing --------------------------------------------------------------------------------------------------

    def begin_cell(self, cell: Cell) -> Path:
        """Make the cell's folder and remove what an earlier attempt left; returns the folder.

        Raises:
            TakenOverError: Another invocation has taken the directory over.
            StorageError: The disk does not take it.
        """
        self.check_token()
        folder = self.cell_directory(cell.id)
        make_folder(folder)
        for name in (RESULT_FILE, ANSWERS_FILE, ERROR_FILE):
            _remove(folder / name)
        remove_temporaries(folder)
        return folder

    def open_partial(self, cell: Cell, begun: Begun) -> Partial:
        """A file for the samples of a cell during its evaluation, with nothing in it but `begun`."""
        return Partial(self.cell_directory(cell.id) / PARTIAL_FILE, begun, self.check_token)

    def forget_partial(self, cell: Cell) -> None:
        """Remove the samples that a cell has so far."""
        self.check_token()
        _remove(self.cell_directory(cell.id) / PARTIAL_FILE)

    def write_samples(self, cell: Cell, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store the rows of the samples; before the result, which builds on them."""
        write_jsonl(self.cell_directory(cell.id) / SAMPLES_FILE, rows, self.check_token)

    def write_first_token(self, cell: Cell, first: FirstToken) -> None:
        """Store the first-token distributions of an unpruned cell; before the result, too."""
        write_bytes(self.cell_directory(cell.id) / FIRST_TOKEN_FILE, first.to_bytes(), self.check_token)

    def write_overlays(self, cell: Cell, overlays: Mapping[str, Any]) -> None:
        """Store the kept tokens of the first few samples."""
        write_json(self.cell_directory(cell.id) / OVERLAYS_FILE, overlays, self.check_token)

    def write_answers(self, cell: Cell, answers: Mapping[str, Any]) -> None:
        """Store a result whose cost is still to be measured."""
        self._write(cell, ANSWERS_FILE, answers)
        _remove(self.cell_directory(cell.id) / PARTIAL_FILE)

    def write_result(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Complete a cell: this file is written last."""
        self._write(cell, RESULT_FILE, result)
        for name in (ANSWERS_FILE, PARTIAL_FILE):
            _remove(self.cell_directory(cell.id) / name)

    def write_error(self, cell: Cell, error: Mapping[str, Any]) -> None:
        """Store why a cell has no result."""
        self.check_token()
        make_folder(self.cell_directory(cell.id))
        self._write(cell, ERROR_FILE, error)

    def forget_cost(self, cell: Cell) -> None:
        """Take the cost out of a result, to be measured anew."""
        self.write_answers(cell, {**(self.result(cell.id) or {}), "cost": None})
        _remove(self.cell_directory(cell.id) / RESULT_FILE)

    def check_token(self) -> None:
        """Make sure that this process may still write here; every write does so immediately before its rename.

        Raises:
            TakenOverError: Another invocation has taken the directory over.
            StorageError: The file with the token is gone.
        """
        if self.token:
            lock.check(self.directory, self.token)

    def _read_result(self, cell_id: str, name: str) -> dict[str, Any] | None:
        """A result, if the file is whole, of this version, and of this cell."""
        data = read_json(self.cell_directory(cell_id) / name)
        if data is None or data.get("schema") != SCHEMA or data.get("id") != cell_id:
            return None
        return data if isinstance(data.get("cell"), dict) and isinstance(data.get("quality"), dict) else None

    def _write(self, cell: Cell, name: str, facts: Mapping[str, Any]) -> None:
        """Write facts together with the version, the id and the cell that they belong to."""
        stamp = {"schema": SCHEMA, "id": cell.id, "cell": cell.to_json()}
        data = {**stamp, **{name: value for name, value in facts.items() if name not in stamp}}
        write_json(self.cell_directory(cell.id) / name, data, self.check_token)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path.parent) from error
