"""Atomic files, JSON and JSON lines, and one error for a disk that does not take them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from errno import EDQUOT, EFBIG, EISDIR, ENOENT, ENOSPC, ENOTDIR, EROFS
from pathlib import Path
from typing import IO, Any, Literal

from tokenprune.errors import ConfigError, TokenPruneError

_FULL = frozenset({EDQUOT, EFBIG, ENOSPC, EROFS})
_NO_PLACE = frozenset({EISDIR, ENOENT, ENOTDIR})
_TEMPORARY = ".tmp"


class OutsideError(ConfigError):
    """A name that was read from a file leads out of its directory."""


class StorageError(TokenPruneError):
    """The sweep directory cannot be written: the disk is full, the folder is read-only, or the device fails."""


def storage_error(error: OSError, place: Path) -> StorageError:
    """The error to raise if a write below `place` failed; what is complete on disk stays valid."""
    mend = "make its folder, or name another place" if error.errno in _NO_PLACE else "make room or make it writable"
    return StorageError(
        f"cannot write `{place}`: {error.strerror or error}",
        hint=f"{mend}, then run the same command again: every finished cell is kept",
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk takes no more."""
    return isinstance(error, OSError) and error.errno in _FULL


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
        StorageError: The disk does not take it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def inside(directory: Path, *names: object) -> Path:
    """A file below a directory, by names that were read from a file of somebody else.

    Raises:
        OutsideError: A name has folders in it, or a link on the way leads out of the directory.
    """
    path = directory.joinpath(*(_plain(directory, name) for name in names))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):  # a loop of links raises nothing
        raise OutsideError(
            f"`{path}` is a link that leads out of the directory", hint="put the file itself there, or remove the link"
        )
    return path


def _plain(directory: Path, name: object) -> str:
    """The name, if it is the name of a file or folder and no path."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise OutsideError(
            f"{name!r} is not the name of a file in `{directory}`",
            hint="a file there was changed by hand, or comes from somebody whom you should not trust",
        )
    return name


def open_end(path: Path, mode: Literal["ab", "a+b"] = "ab") -> IO[bytes]:
    """Open a file at its end; a link is not followed.

    Raises:
        OSError: The disk does not take it, or it is a link.
    """
    no_follow = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag, and few links
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | no_follow, 0o666))


def open_log(path: Path) -> IO[bytes]:
    """Open the log file of a process at its end.

    Raises:
        StorageError: The disk does not take it.
    """
    try:
        return open_end(path)
    except OSError as error:
        raise storage_error(error, path) from error


Guard = Callable[[], None]
"""Raises if a file must not be written any more; called immediately before the rename."""


def write_json(path: Path, data: Mapping[str, Any], guard: Guard | None = None) -> None:
    """Write JSON atomically; a number that JSON cannot hold is an error here, not later."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n", guard)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]], guard: Guard | None = None) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows), guard)


def write_text(path: Path, text: str, guard: Guard | None = None) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode(), guard)


def write_bytes(path: Path, data: bytes, guard: Guard | None = None) -> None:
    """Write a file to a temporary name, sync, rename, and sync the folder.

    Raises:
        StorageError: The disk does not take it. An older file of that name stays as it was.
        Exception: What the guard raises. An older file of that name stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if guard is not None:
            guard()
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(error, path) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut (Windows cannot open a folder, and journals its names).

    Raises:
        OSError: The disk does not take it.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line, after cutting off the torn end that a killed writer left; for one writer at a time."""
    with open_end(path, "a+b") as stream:
        if stream.tell() and _last_byte(stream) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(line.encode() + b"\n")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder, while nobody writes there."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or `None` if the file is missing or damaged."""
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a torn last line (a killed writer) is left out, a missing file is empty.

    Raises:
        ConfigError: A line in the middle is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [json_object(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise ConfigError(
            f"`{path}` line {rows.index(None) + 1} is damaged",
            hint="run the sweep again, which evaluates a damaged cell anew; any other file of lines can be deleted",
        )
    return found


def json_object(line: str | bytes) -> dict[str, Any] | None:
    """A JSON object, or `None` for anything else."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _last_byte(stream: IO[bytes]) -> bytes:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1)
