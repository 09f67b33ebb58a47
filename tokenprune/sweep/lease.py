"""Who may write to a sweep directory: one invocation at a time, its workers included.

Two guards, because a worker may outlive the process that started it:

- A lock on the file `lock`, which dies with its last holder. Worker processes of the same machine inherit it, so that
  the directory stays locked until the last of them is gone, also after `kill -9` of their parent.
- A token in the file `lease`, new in every invocation. A worker elsewhere (a cluster node that was cut off, say) looks
  at it before it writes, and leaves where it is not its own any more.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EAGAIN, EWOULDBLOCK
from pathlib import Path
from typing import IO

from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.sweep.files import StorageError, make_folder, storage_error, write_text

LOCK_FILE, LEASE_FILE = "lock", "lease"

ORPHANS_S = 30.0
"""Seconds to wait for the workers of a process that was killed: they notice within moments."""

_POLL_S = 0.1
_OWNER = re.compile(r"pid (\d+) on (.*)")


class LeaseLostError(TokenPruneError):
    """Another invocation has taken the sweep directory over; this worker must not write any more."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a sweep directory.

    Args:
        token: What the file `lease` holds as long as this is valid.
        descriptor: The locked file; a child process that inherits it holds the lock too.
    """

    token: str
    descriptor: int


@contextmanager
def hold(directory: Path) -> Iterator[Lease]:
    """Take a sweep directory; made where it is not there.

    Raises:
        ConfigError: Another process runs a sweep there.
        StorageError: The directory cannot be written, or its file system has no locks.
    """
    make_folder(directory)
    path = directory / LOCK_FILE
    try:
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise storage_error(error, path) from error
    with stream:
        _lock(stream, directory)
        token = uuid.uuid4().hex
        try:
            stream.truncate(0)
            stream.write(_me())
            stream.flush()
        except OSError as error:
            raise storage_error(error, path) from error
        write_text(directory / LEASE_FILE, token + "\n")
        yield Lease(token, stream.fileno())


def check(directory: Path, token: str) -> None:
    """Make sure that a lease is still valid.

    Raises:
        LeaseLostError: Another invocation has taken the directory.
    """
    try:
        current = (directory / LEASE_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        current = ""
    if current != token:
        raise LeaseLostError(f"another process has taken over the sweep in `{directory}`")


def owner(directory: Path) -> str:
    """Who holds a sweep directory now (`pid 12 on node`), or an empty text."""
    path = directory / LOCK_FILE
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return stream.read().strip() or "unknown"
    return ""


def _lock(stream: IO[str], directory: Path) -> None:
    """Take the lock at once, or after the orphans of a dead owner have left."""
    deadline = time.monotonic() + ORPHANS_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (EAGAIN, EWOULDBLOCK):
                raise StorageError(
                    f"cannot lock `{directory}`: {error.strerror}",
                    hint="its file system has no file locks; use a directory on another one",
                ) from error
        stream.seek(0)
        holder = stream.read().strip()
        if not _is_dead(holder) or time.monotonic() > deadline:
            raise ConfigError(
                f"another process ({holder or 'unknown'}) runs a sweep in `{directory}`",
                hint="wait for it, or use another directory",
            ) from None
        time.sleep(_POLL_S)


def _me() -> str:
    return f"pid {os.getpid()} on {platform.node()}"


def _is_dead(holder: str) -> bool:
    """True for a process of this machine that is gone."""
    found = _OWNER.fullmatch(holder)
    if found is None or found[2] != platform.node():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(int(found[1]))


def _is_zombie(pid: int) -> bool:
    """True for a dead process that its parent has not waited for yet; `False` where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["Z"]
