"""The sweep directory: the truth about a sweep, written so that a kill at any time loses at most a running batch.

    sweep.json      the resolved sweep file and the sweep's id      lock       held by the running processes
    plan.jsonl      every cell, planned
    cells/<id>/     samples.jsonl, first_token.npz, overlays.json, and `result.json`, written last; or `error.json`;
                    until its cost is measured, `answers.json` in place of the result; while it is asked,
                    `partial.jsonl` with the answers so far
    lease           the token of the invocation that may write
    owner           who that is; `owner.lock` is held by it alone, and not by its workers
    pictures/       the few pictures that overlays are drawn on
    logs/           what each worker printed

`result.json` is written to a temporary name, synced and renamed: its presence *is* completion.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tokenprune.cell import Cell
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
        token: Of a worker in another process: the lease that it writes under, looked at before every write.
    """

    def __init__(self, directory: str | Path, *, token: str = "") -> None:
        self.directory = Path(directory).resolve()
        self.token = token
        self.lock_descriptor: int | None = None
        """The locked file while this process holds the directory, for child processes to inherit."""

    def exists(self) -> bool:
        """True where a sweep was begun here."""
        return (self.directory / "sweep.json").is_file()

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
        created = header.created if header else datetime.now(UTC).isoformat(timespec="seconds")
        fresh = Header(
            sweep_id=header.sweep_id if header else uuid.uuid4().hex,
            name=name or self.directory.name,
            created=created,
            config=config,
        )
        write_jsonl(self.directory / "plan.jsonl", (cell.to_json() for cell in cells))
        write_json(
            self.directory / "sweep.json",
            {
                "schema": SCHEMA,
                "sweep_id": fresh.sweep_id,
                "name": fresh.name,
                "created": created,
                "config": dict(config),
            },
        )
        return fresh

    def header(self) -> Header:
        """What `sweep.json` holds.

        Raises:
            ConfigError: There is no sweep here, or its file is damaged or of another version.
        """
        path = self.directory / "sweep.json"
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
        path = self.directory / "plan.jsonl"
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
        """The planned cells as they are stored, whichever version wrote them; empty where there is no readable plan."""
        try:
            return [row for row in read_jsonl(self.directory / "plan.jsonl") if isinstance(row, dict)]
        except ConfigError:
            return []

    def cell_directory(self, cell_id: str) -> Path:
        """Folder of one cell.

        Raises:
            OutsideError: The id, which may come from a file, is not the name of a folder.
        """
        return inside(self.directory, "cells", cell_id)

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
        data = read_json(self.cell_directory(cell_id) / "result.json")
        return data if _is_of(data, cell_id) else None

    def error(self, cell_id: str) -> dict[str, Any] | None:
        """The cell's error, or `None`."""
        return read_json(self.cell_directory(cell_id) / "error.json")

    def samples(self, cell_id: str) -> list[dict[str, Any]]:
        """The cell's samples in task order; empty where there are none."""
        return read_jsonl(self.cell_directory(cell_id) / "samples.jsonl")

    def first_token(self, cell_id: str) -> FirstToken:
        """First-token distributions of an unpruned cell.

        Raises:
            ConfigError: They are not there, or damaged.
        """
        from tokenprune.metrics.distribution import FirstToken

        path = self.cell_directory(cell_id) / "first_token.npz"
        try:
            return FirstToken.from_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"`{path}` cannot be read: {error}",
                hint="run the sweep again with failed cells retried: the unpruned cell is asked anew",
            ) from error

    def overlays(self, cell_id: str) -> list[dict[str, Any]]:
        """What the cell kept of its first few samples; empty where that was not stored."""
        data = read_json(self.cell_directory(cell_id) / "overlays.json") or {}
        return list(data.get("samples", ()))

    def damaged(self, cell: Cell) -> bool:
        """Whether a cell was answered and what others build on it cannot be read: a power cut can do that.

        It reads every line, so it is asked once, when a sweep is opened.
        """
        if self.settled(cell.id) is None:
            return False
        try:
            rows = self.samples(cell.id)
            stored = len(self.first_token(cell.id).ids) if cell.reference is None else cell.samples
        except ConfigError:
            return True
        return stored != cell.samples or [row.get("index") for row in rows] != list(range(cell.samples))

    def awaited(self, cell_id: str, look: Callable[[], _T | None]) -> _T | None:
        """What a look finds of a cell that a worker says it has written, perhaps on another machine.

        Args:
            cell_id: The cell.
            look: Looks for it; asked again for `VISIBLE_S` where it finds nothing.

        Returns:
            What it found, or `None` where it is not there.
        """
        deadline = time.monotonic() + VISIBLE_S
        while (found := look()) is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            with suppress(OSError):  # to list the folder makes a network file system ask its server
                list(self.cell_directory(cell_id).iterdir())
        return found

    def begin_cell(self, cell: Cell) -> Path:
        """Make the cell's folder and forget an earlier attempt; returns the folder.

        Raises:
            TakenOverError: Another invocation has taken the directory over.
            StorageError: The disk does not take it.
        """
        self.check_token()
        folder = self.cell_directory(cell.id)
        make_folder(folder)
        for name in ("result.json", "answers.json", "error.json"):
            _remove(folder / name)
        remove_temporaries(folder)
        return folder

    def answers(self, cell_id: str) -> dict[str, Any] | None:
        """What the questions of a cell gave whose cost is still to be measured, or `None`; a result without `cost`."""
        data = read_json(self.cell_directory(cell_id) / "answers.json")
        return data if _is_of(data, cell_id) else None

    def settled(self, cell_id: str) -> dict[str, Any] | None:
        """The cell's result, or its answers where its cost is still to be measured, or `None`."""
        return self.result(cell_id) or self.answers(cell_id)

    def write_answers(self, cell: Cell, answers: Mapping[str, Any]) -> None:
        """Keep what the questions gave until the cost is measured."""
        folder = self.cell_directory(cell.id)
        write_json(folder / "answers.json", _stamped(cell, answers), self.check_token)
        _remove(folder / PARTIAL_FILE)

    def write_samples(self, cell: Cell, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep what every question gave; before the answers or the result, like all that these build on."""
        write_jsonl(self.cell_directory(cell.id) / "samples.jsonl", rows, self.check_token)

    def write_first_token(self, cell: Cell, first: FirstToken) -> None:
        """Keep the first-token distributions of an unpruned cell."""
        write_bytes(self.cell_directory(cell.id) / "first_token.npz", first.to_bytes(), self.check_token)

    def write_overlays(self, cell: Cell, overlays: Mapping[str, Any]) -> None:
        """Keep what stayed of the first few samples."""
        write_json(self.cell_directory(cell.id) / "overlays.json", overlays, self.check_token)

    def measured_otherwise(self, cell: Cell) -> bool:
        """Whether a cell has a result whose cost was not measured as the plan says now."""
        result = self.result(cell.id)
        if result is None or not cell.efficiency:
            return False
        return bool(result["cell"].get("efficiency") != dict(cell.efficiency))

    def forget_cost(self, cell: Cell) -> None:
        """Make the result of a cell answers again, to be measured in another way."""
        self.write_answers(cell, {**(self.result(cell.id) or {}), "cost": None})
        _remove(self.cell_directory(cell.id) / "result.json")

    def write_result(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Complete a cell: this file is written last."""
        folder = self.cell_directory(cell.id)
        write_json(folder / "result.json", _stamped(cell, result), self.check_token)
        _remove(folder / "answers.json")
        _remove(folder / PARTIAL_FILE)

    def write_error(self, cell: Cell, error: Mapping[str, Any]) -> None:
        """Record why a cell has no result."""
        self.check_token()
        folder = self.cell_directory(cell.id)
        make_folder(folder)
        write_json(folder / "error.json", _stamped(cell, error), self.check_token)

    def partial(self, cell_id: str) -> Begun | None:
        """The answers that a cell has so far, or `None`."""
        return read_partial(self.cell_directory(cell_id) / PARTIAL_FILE)

    def open_partial(self, cell: Cell, begun: Begun) -> Partial:
        """A file for the answers of a cell that is asked; what it held before and is not in `begun` is forgotten."""
        return Partial(self.cell_directory(cell.id) / PARTIAL_FILE, begun, self.check_token)

    def forget_partial(self, cell: Cell) -> None:
        """Remove the answers that a cell has so far."""
        self.check_token()
        _remove(self.cell_directory(cell.id) / PARTIAL_FILE)

    def check_token(self) -> None:
        """Make sure that this process may still write here; every write does so last, before it shows.

        Raises:
            TakenOverError: Another invocation has taken the directory over.
            StorageError: Nobody can tell, because the lease is gone.
        """
        if not self.token:
            return
        try:
            lock.check(self.directory, self.token)
        except lock.TakenOverError as error:
            path = self.directory / lock.TOKEN_FILE
            if not path.is_file():
                raise StorageError(
                    f"`{path}` is gone, so nobody can tell who may write there",
                    hint="somebody removed it; run the same command again: every finished cell is kept",
                ) from error
            raise lock.TakenOverError(error.message, hint="wait for it, or use another directory") from None


def _stamped(cell: Cell, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts under the version, the id and the cell that they are of."""
    stamp = {"schema": SCHEMA, "id": cell.id, "cell": cell.to_json()}
    return {**stamp, **{name: value for name, value in facts.items() if name not in stamp}}


def _is_of(data: Mapping[str, Any] | None, cell_id: str) -> bool:
    """Whether a file is whole, of this version, and of this cell."""
    if data is None or data.get("schema") != SCHEMA or data.get("id") != cell_id:
        return False
    return isinstance(data.get("cell"), dict) and isinstance(data.get("quality"), dict)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path.parent) from error
