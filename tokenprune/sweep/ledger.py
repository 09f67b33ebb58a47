"""The sweep directory: the truth about a sweep, written so that a kill at any time loses at most a running cell.

    sweep.json      the resolved sweep file and the sweep's id      env.json   versions and machine
    plan.jsonl      every cell, planned                             lock       held by the running process
    cells/<id>/     samples.jsonl, first_token.npz, overlays.json, and `result.json`, written last; or `error.json`
    pictures/       the few pictures that overlays are drawn on
    logs/           what each worker printed

`result.json` is written to a temporary name, synced and renamed: its presence *is* completion.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tokenprune.errors import ConfigError
from tokenprune.sweep.plan import Cell

SCHEMA = 1
CellState = Literal["pending", "done", "failed", "refused"]
_PACKAGES = ("tokenprune-vlm", "torch", "transformers", "numpy", "pillow", "mlflow")


@dataclass(frozen=True, slots=True)
class Header:
    """What `sweep.json` holds."""

    sweep_id: str
    name: str
    created: str
    config: Mapping[str, Any]


class Ledger:
    """Reads and writes one sweep directory.

    Args:
        directory: The sweep directory; it need not exist.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).resolve()

    def exists(self) -> bool:
        """True where a sweep was begun here."""
        return (self.directory / "sweep.json").is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory against a second process; the lock dies with the process.

        Raises:
            ConfigError: Another process runs a sweep here.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                owner = stream.read().strip() or "unknown"
                raise ConfigError(
                    f"another process ({owner}) runs a sweep in `{self.directory}`",
                    hint="wait for it, or use another directory",
                ) from None
            stream.truncate(0)
            stream.write(f"pid {os.getpid()} on {platform.node()}")
            stream.flush()
            yield

    def open_sweep(self, config: Mapping[str, Any], cells: Iterable[Cell], name: str = "") -> Header:
        """Begin a sweep or continue it: the id stays, the config and the plan become the given ones."""
        self.directory.mkdir(parents=True, exist_ok=True)
        header = self.header() if self.exists() else None
        created = header.created if header else datetime.now(UTC).isoformat(timespec="seconds")
        fresh = Header(
            sweep_id=header.sweep_id if header else uuid.uuid4().hex,
            name=name or self.directory.name,
            created=created,
            config=config,
        )
        write_text(self.directory / "plan.jsonl", _lines(cell.to_json() for cell in cells))
        write_json(self.directory / "env.json", environment())
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
        data = _read_json(path)
        if data is None or data.get("schema") != SCHEMA:
            raise ConfigError(f"`{path}` is damaged or of another version", hint="use a new sweep directory")
        return Header(data["sweep_id"], data["name"], data["created"], data["config"])

    def plan(self) -> tuple[Cell, ...]:
        """The planned cells.

        Raises:
            ConfigError: There is no plan, or it is damaged.
        """
        path = self.directory / "plan.jsonl"
        if not path.is_file():
            raise ConfigError(f"`{self.directory}` has no plan", hint="run the sweep again")
        try:
            return tuple(Cell.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"`{path}` is damaged: {error}", hint="run the sweep again") from error

    def cell_directory(self, cell_id: str) -> Path:
        """Folder of one cell."""
        return self.directory / "cells" / cell_id

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
        data = _read_json(self.cell_directory(cell_id) / "result.json")
        return data if data is not None and data.get("schema") == SCHEMA and data.get("id") == cell_id else None

    def error(self, cell_id: str) -> dict[str, Any] | None:
        """The cell's error, or `None`."""
        return _read_json(self.cell_directory(cell_id) / "error.json")

    def samples(self, cell_id: str) -> list[dict[str, Any]]:
        """The cell's samples in task order; empty where there are none."""
        return read_jsonl(self.cell_directory(cell_id) / "samples.jsonl")

    def overlays(self, cell_id: str) -> list[dict[str, Any]]:
        """What the cell kept of its first few samples; empty where that was not stored."""
        data = _read_json(self.cell_directory(cell_id) / "overlays.json")
        return list(data["samples"]) if data is not None else []

    def begin_cell(self, cell: Cell) -> Path:
        """Make the cell's folder and forget an earlier failure; returns the folder."""
        folder = self.cell_directory(cell.id)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "error.json"):
            (folder / name).unlink(missing_ok=True)
        return folder

    def write_result(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Complete a cell: this file is written last."""
        data = {"schema": SCHEMA, "id": cell.id, "cell": cell.to_json(), **result}
        write_json(self.cell_directory(cell.id) / "result.json", data)

    def write_error(self, cell: Cell, error: Mapping[str, Any]) -> None:
        """Record why a cell has no result."""
        folder = self.cell_directory(cell.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "error.json", {"schema": SCHEMA, "id": cell.id, "cell": cell.to_json(), **error})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON atomically; a number that JSON cannot hold is an error here, not later."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_text(path, _lines(rows))


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there either as a whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file to a temporary name, sync, rename, and sync the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a torn last line (a killed writer) is left out, a missing file is empty."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for index, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if index < len(lines) - 1:
                raise ConfigError(f"`{path}` line {index + 1} is damaged", hint="delete the file and rerun") from error
    return rows


def environment() -> dict[str, Any]:
    """Versions and machine, for `env.json`."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = ""
    return {
        "schema": SCHEMA,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def _processor() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or `None` where the file is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
