"""Assignments and messages as lines of files on a shared file system, for workers on other machines.

    mail/<token>/heartbeat                 changes as long as the scheduler lives
    mail/<token>/<worker>/inbox.jsonl      one assignment per line
    mail/<token>/<worker>/outbox.jsonl     one message per line

Every file has one writer and exists before it is read. It is opened anew for every read, because network file systems
show new lines only then. No clock is compared with the clock of another machine.
"""

from __future__ import annotations

import json
import shutil
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenprune.cells.cell import Cell
from tokenprune.sweep.executors.worker_pool import Worker, WorkerPool
from tokenprune.sweep.messages import Assignment, WorkerMessage, message_from_json, message_to_json
from tokenprune.sweep.store.atomic_io import append_line, make_folder, storage_error, write_text
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.worker_main import WorkerSettings, run_worker

INBOX, OUTBOX, HEARTBEAT = "inbox.jsonl", "outbox.jsonl", "heartbeat"
STOP: Mapping[str, Any] = {"stop": True}
"""The last line of an inbox."""

PAUSE_S = 0.2
BEAT_S = 5.0
SILENCE_S = 300.0
"""Seconds without a heartbeat after which a worker takes the scheduler for dead."""


class LineReader:
    """Reads what another process appends to a file; an incomplete last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Heartbeat:
    """A file that changes as long as its writer lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = ""
        self._since = time.monotonic()
        self._beats = 0

    def beat(self) -> None:
        """Change the file if the last beat was long enough ago."""
        now = time.monotonic()
        if not self._beats or now - self._since >= BEAT_S:
            self._beats, self._since = self._beats + 1, now
            write_text(self._path, f"{self._beats}\n")

    def silent(self) -> bool:
        """Whether the file has not changed for long, by the reader's own clock."""
        now = time.monotonic()
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError:
            text = self._seen  # a scheduler that is done removes the folder
        if text != self._seen:
            self._seen, self._since = text, now
        return now - self._since > SILENCE_S


def make_mailbox(folder: Path) -> None:
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


def serve_mailbox(folder: Path, settings: WorkerSettings) -> None:
    """Run a worker until its inbox says `STOP`, the scheduler is silent, or the folder is gone."""
    inbox, heartbeat = LineReader(folder / INBOX), Heartbeat(folder.parent / HEARTBEAT)

    def receive() -> Assignment | None:
        while not heartbeat.silent():
            try:
                lines = inbox.new()
            except FileNotFoundError:
                return None
            if lines:  # one assignment, or the end: a worker gets no assignment before it is ready
                return None if STOP in lines else Assignment.from_json(lines[0])
            time.sleep(PAUSE_S)
        return None

    run_worker(settings, receive, lambda message: post(folder / OUTBOX, message_to_json(message)))


class MailboxWorker(Worker):
    """A worker that is reached through its mailbox."""

    def __init__(self, name: str, mailbox: Path) -> None:
        self.name = name
        self._inbox, self._outbox = mailbox / INBOX, LineReader(mailbox / OUTBOX)
        self._cells: dict[str, Cell] = {}

    def submit(self, assignment: Assignment) -> None:
        """Put the assignment into the inbox."""
        self._cells = {cell.id: cell for cell in assignment.cells}
        post(self._inbox, assignment.to_json())

    def messages(self) -> Sequence[WorkerMessage]:
        """What is new in the outbox."""
        return [message_from_json(line, self._cells) for line in self._outbox.new()]

    def stop(self) -> None:
        """Put the end into the inbox."""
        with suppress(OSError):
            post(self._inbox, STOP)


class MailboxPool(WorkerPool):
    """Workers with a mailbox each, and the heartbeat that they follow."""

    pause_s = PAUSE_S
    grace_s = 10.0

    def __init__(self, store: SweepStore) -> None:
        super().__init__()
        self._mail = store.directory / "mail" / store.token
        self._heartbeat = Heartbeat(self._mail / HEARTBEAT)
        self._launched = 0

    @abstractmethod
    def launch_with_mailbox(self, slot: str, mailbox: Path) -> Worker:
        """Start a worker that serves a mailbox."""

    def launch(self, slot: str) -> Worker:
        """Make a mailbox and start its worker."""
        if not self._launched:  # workers that a killed process left behind end with their mail
            shutil.rmtree(self._mail.parent, ignore_errors=True)
        self._launched += 1
        mailbox = self._mail / f"{slot}-{self._launched}"
        make_mailbox(mailbox)
        self._heartbeat.beat()
        return self.launch_with_mailbox(slot, mailbox)

    def poll(self) -> Sequence[tuple[str, Any]]:
        """Beat, and read all outboxes."""
        self._heartbeat.beat()
        return super().poll()

    def shutdown(self) -> None:
        """Stop all workers and remove the mail."""
        super().shutdown()
        shutil.rmtree(self._mail, ignore_errors=True)
