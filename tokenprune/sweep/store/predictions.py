"""The file `partial.jsonl`: the samples of a cell during its evaluation, so that a kill loses one batch at most.

The first line says under which conditions the batches are evaluated; every further line holds a batch. The system gets
a line as soon as its batch is evaluated, and then the line outlives the process. It is synced to the disk at most every
`SYNC_S` seconds, so a power cut may cost the batches of the last seconds, too. The file is removed when the cell has
its result.

A worker that continues takes over whole batches of the very same conditions; otherwise its predictions would not be
those of a cell that was never stopped. It writes the file anew. An earlier worker that is still alive has the old file
open, and nobody reads what it appends there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenprune.evaluation.environment import facts_of
from tokenprune.sweep.store.atomic_io import Guard, json_object, storage_error, write_bytes

FILE = "partial.jsonl"
SCHEMA = 1

SYNC_S = 5.0
"""Seconds between two syncs of one file: on a network file system a sync may take as long as a batch."""


_NAMES = {
    "cell_id": "cell",
    "environment": "environment",
    "batch_size": "batch size",
    "keep": "number of overlays",
    "reference": "unpruned cell",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """The conditions of a cell's evaluation; only batches of the very same conditions are taken over.

    Args:
        cell_id: The cell.
        environment: Versions, device and settings, as results hold them.
        batch_size: Samples per batch; another size pads and rounds differently.
        keep: Samples whose kept tokens are stored.
        reference: Digest of the tokens whose probabilities are stored; empty for the unpruned cell, which chooses them.
    """

    cell_id: str
    environment: Mapping[str, Any]
    batch_size: int
    keep: int
    reference: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def differs_from(self, other: Mapping[str, Any]) -> str:
        """Why batches of other conditions cannot be taken over, in words; empty if they can."""
        ours = self.to_json()
        if other == ours:
            return ""
        here, there = facts_of(self.environment), facts_of(other.get("environment"))
        facts = [
            f"{name} {there.get(name, '(none)')}" for name in {**here, **there} if here.get(name) != there.get(name)
        ]
        if facts:
            return f"they were answered with {', '.join(facts)}"
        return f"they have another {', '.join(_NAMES[name] for name in ours if other.get(name) != ours[name])}"


@dataclass(frozen=True, slots=True)
class Begun:
    """The content of a file.

    Args:
        origin: The conditions (see `Origin`).
        started: When the cell was begun, ISO 8601.
        attempt: Which attempt it was.
        batches: The predictions of each batch, see `tokenprune.evaluation.predictions`.
    """

    origin: Mapping[str, Any]
    started: str
    attempt: int
    batches: tuple[Mapping[str, Any], ...] = ()

    @property
    def questions(self) -> int:
        """Number of samples."""
        return sum(len(batch["rows"]) for batch in self.batches)

    def to_json(self) -> dict[str, Any]:
        """The first line."""
        facts = {"started": self.started, "attempt": self.attempt}
        return {"schema": SCHEMA, "origin": dict(self.origin), **facts}


def read_partial(path: Path) -> Begun | None:
    """The whole batches of a file, up to the first line that is torn or damaged; `None` if there is nothing."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last end of line is torn
    except OSError:
        return None
    objects = (json_object(line) for line in lines)
    head = next(objects, None)
    kinds = {"origin": dict, "started": str, "attempt": int}
    if head is None or head.get("schema") != SCHEMA or not all(isinstance(head.get(k), v) for k, v in kinds.items()):
        return None
    batches: list[Mapping[str, Any]] = []
    questions = 0
    for batch in objects:
        if batch is None or not _follows(batch, questions):
            break
        batches.append(batch)
        questions += len(batch["rows"])
    return Begun(head["origin"], head["started"], head["attempt"], tuple(batches))


class Partial:
    """The file of a cell during its evaluation, open for further batches.

    Args:
        path: The file.
        begun: What it holds from the start; nothing else is left in it.
        guard: Raises if this process may not write any more.

    Raises:
        StorageError: The disk does not take it.
    """

    def __init__(self, path: Path, begun: Begun, guard: Guard) -> None:
        self._path = path
        self._guard = guard
        lines = [begun.to_json(), *begun.batches]
        write_bytes(path, b"".join(map(_line, lines)), guard)
        self._synced = time.monotonic()
        try:
            self._stream = path.open("ab")
        except OSError as error:
            raise storage_error(error, path) from error

    def append(self, batch: Mapping[str, Any]) -> None:
        """Add the predictions of a batch.

        Raises:
            StorageError: The disk does not take it.
            TakenOverError: Another invocation has taken the directory over.
        """
        self._guard()
        try:
            self._stream.write(_line(batch))
            self._stream.flush()
            if time.monotonic() - self._synced >= SYNC_S:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise storage_error(error, self._path) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a write that failed was reported when it was appended
            self._stream.close()


def _follows(batch: Mapping[str, Any], questions: int) -> bool:
    """Whether a batch is whole and begins with the sample after so many."""
    rows, found = batch.get("rows"), batch.get("log_probs")
    if not isinstance(rows, list) or not isinstance(found, list) or not rows or len(found) != len(rows):
        return False
    places = [row.get("index") if isinstance(row, dict) else None for row in rows]
    return places == list(range(questions, questions + len(rows)))


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True).encode() + b"\n"
