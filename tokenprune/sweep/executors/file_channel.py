"""Orders and reports as lines of files on a shared file system, for workers that no pipe reaches.

    mail/<token>/pulse                     changes as long as the sender lives
    mail/<token>/<worker>/inbox.jsonl      one order per line
    mail/<token>/<worker>/outbox.jsonl     one report per line

Every file has one writer, exists before anybody reads it, and is opened anew for every look, as network file systems
want it. No clock is compared with another machine's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenprune.sweep.store.atomic_io import append_line, make_folder, storage_error, write_text

INBOX, OUTBOX, PULSE = "inbox.jsonl", "outbox.jsonl", "pulse"
STOP: Mapping[str, Any] = {"stop": True}
"""The last line of an inbox."""

BEAT_S = 5.0
SILENCE_S = 300.0
"""Seconds without a beat after which a worker takes the sender for dead."""


class Lines:
    """What others append to a file, line by line; a line that is not complete yet waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The lines since the last look."""
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Pulse:
    """A file that changes as long as its writer lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = ""
        self._since = time.monotonic()
        self._beats = 0

    def beat(self) -> None:
        """Change the file, if the last beat was long enough ago."""
        now = time.monotonic()
        if not self._beats or now - self._since >= BEAT_S:
            self._beats, self._since = self._beats + 1, now
            write_text(self._path, f"{self._beats}\n")

    def silent(self) -> bool:
        """True where it has not changed for long, by the reader's own clock."""
        now = time.monotonic()
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError:
            text = self._seen  # a sender that is done takes the folder away
        if text != self._seen:
            self._seen, self._since = text, now
        return now - self._since > SILENCE_S


def make_box(folder: Path) -> None:
    """Make an empty inbox and outbox."""
    make_folder(folder)
    for name in (INBOX, OUTBOX):
        write_text(folder / name, "")


def post(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line for the other side.

    Raises:
        StorageError: The disk does not take it.
    """
    try:
        append_line(path, json.dumps(line))
    except OSError as error:
        raise storage_error(error, path) from error
