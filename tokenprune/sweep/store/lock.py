"""Who may write to a sweep directory: one invocation at a time, with its workers.

A worker may outlive the process that started it, so there are three guards:

- A lock on the file `lock`, which dies with its last holder. Worker processes of the same machine inherit it, so the
  directory stays locked until the last of them is gone, also after `kill -9` of their parent. (On Windows nothing
  inherits it; no executor there has worker processes.)
- A lock on the file `owner.lock`, which only the invocation itself holds. If it is free and `lock` is not, only workers
  are left; they end within moments, because nobody gives them work. Process ids are not used: another process may have
  the same one by now.
- A token in the file `lease`, new in every invocation. A worker on another machine (a cluster node that was cut off,
  for example) checks it before it writes, and stops if the token is no longer its own.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.sweep.store.atomic_io import StorageError, make_folder, storage_error, write_text

LOCK_FILE, OWNER_LOCK_FILE, OWNER_FILE, TOKEN_FILE = "lock", "owner.lock", "owner", "lease"

ORPHANS_S = 30.0
"""Seconds to wait for the workers of a process that was killed: they notice within moments."""

_POLL_S = 0.1
_PROBES, _PROBE_S = 3, 0.02
"""How often, and after how many seconds, `owner` tries a lock again: another `owner` holds it for a moment, too."""


class TakenOverError(TokenPruneError):
    """Another invocation has taken the sweep directory over; this worker must not write any more."""


@dataclass(frozen=True, slots=True)
class WriteRight:
    """The right to write to a sweep directory.

    Args:
        token: What the file `lease` holds as long as the right is valid.
        descriptor: The locked file; a child process that inherits it holds the lock, too.
    """

    token: str
    descriptor: int


@contextmanager
def hold(directory: Path) -> Iterator[WriteRight]:
    """Take a sweep directory, which is made if it is not there.

    Raises:
        ConfigError: Another process runs a sweep there, or workers of a killed one do.
        StorageError: The directory cannot be written, or its file system has no locks.
    """
    make_folder(directory)
    with _opened(directory / LOCK_FILE) as lock, _opened(directory / OWNER_LOCK_FILE) as owner_lock:
        if not _taken(owner_lock, directory):
            raise ConfigError(
                f"another process ({_named(directory)}) runs a sweep in `{directory}`",
                hint="wait for it, or use another directory",
            )
        deadline = time.monotonic() + ORPHANS_S
        while not _taken(lock, directory):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"workers of another process ({_named(directory)}), which ended, still run in `{directory}`",
                    hint="end them, or use another directory",
                )
            time.sleep(_POLL_S)
        write_text(directory / OWNER_FILE, f"pid {os.getpid()} on {platform.node()}\n")
        token = uuid.uuid4().hex
        write_text(directory / TOKEN_FILE, token + "\n")
        yield WriteRight(token, lock)


def check(directory: Path, token: str) -> None:
    """Make sure that a token is still valid.

    Raises:
        TakenOverError: Another invocation has taken the directory over.
        StorageError: The file with the token is gone.
    """
    path = directory / TOKEN_FILE
    try:
        current = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise StorageError(
            f"`{path}` is gone, so nobody can tell who may write there",
            hint="somebody removed it; run the same command again: every finished cell is kept",
        ) from None
    if current != token:
        raise TakenOverError(
            f"another process has taken over the sweep in `{directory}`", hint="wait for it, or use another directory"
        )


def owner(directory: Path) -> str:
    """Who holds a sweep directory now (`pid 12 on node`), or an empty text.

    If its lock cannot be asked (a read-only network disk), the last owner is named with `perhaps`.
    """
    path = directory / LOCK_FILE
    if not path.is_file():
        return ""
    try:
        descriptor = _open(path)
    except OSError:
        return f"perhaps {_named(directory)}"
    try:
        for _ in range(_PROBES):
            if filelock.lock_descriptor(descriptor, blocking=False):
                return ""
            time.sleep(_PROBE_S)
    except OSError:
        return f"perhaps {_named(directory)}"
    finally:
        os.close(descriptor)
    return _named(directory)


def _named(directory: Path) -> str:
    """What the last owner says of itself."""
    try:
        return (directory / OWNER_FILE).read_text(encoding="utf-8").strip() or "unknown"
    except OSError:
        return "unknown"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a file to lock, made if it is not there; closed, and so unlocked, at the end.

    Raises:
        StorageError: It cannot be opened for writing.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """The descriptor of a lock file, which may be on a read-only disk."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _taken(descriptor: int, directory: Path) -> bool:
    """Lock a file if nobody else has.

    Raises:
        StorageError: Its file system has no locks.
    """
    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        raise StorageError(
            f"cannot lock `{directory}`: {error.strerror}",
            hint="its file system has no file locks; use a directory on another one",
        ) from error
