"""Where trackers show a sweep: each may leave a line and links in `tracking.json`, and nobody reads more of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenprune.sweep.store.atomic_io import read_json, write_json

TRACKING_FILE = "tracking.json"


@dataclass(frozen=True, slots=True)
class Link:
    """A page that shows the sweep, or a part of it."""

    label: str
    url: str


@dataclass(frozen=True, slots=True)
class TrackerNote:
    """What a tracker leaves about a sweep.

    Args:
        note: One line for people, for example how to open the page; may be empty.
        links: Pages, the most useful one first.
        behind: Cells were run later while the tracker was switched off. A tracker that catches up leaves a new note.
        details: Facts that only the tracker itself reads, plain JSON types.
    """

    note: str = ""
    links: tuple[Link, ...] = ()
    behind: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def leave_note(directory: Path, tracker: str, note: TrackerNote) -> None:
    """Leave a tracker's note in a sweep directory, in place of its earlier one.

    Raises:
        StorageError: The file cannot be written.
    """
    _write(directory, {**read_notes(directory), tracker: note})


def remove_note(directory: Path, tracker: str) -> None:
    """Take a tracker's note away, if there is one."""
    notes = read_notes(directory)
    if notes.pop(tracker, None) is not None or not notes:
        _write(directory, notes)


def mark_behind(directory: Path, trackers: Collection[str]) -> None:
    """Say in the notes of all other trackers that they do not get the cells that are run now."""
    notes = read_notes(directory)
    if not notes.keys() <= set(trackers):
        behind = {name: note if name in trackers else replace(note, behind=True) for name, note in notes.items()}
        _write(directory, behind)


def read_notes(directory: Path) -> dict[str, TrackerNote]:
    """The notes of a sweep directory by tracker; none if an earlier version wrote the file."""
    found: Mapping[str, Any] = (read_json(directory / TRACKING_FILE) or {}).get("trackers", {})
    return {
        name: TrackerNote(
            note["note"], tuple(Link(**link) for link in note["links"]), note["behind"], note.get("details", {})
        )
        for name, note in found.items()
    }


def _write(directory: Path, notes: Mapping[str, TrackerNote]) -> None:
    if notes:
        write_json(directory / TRACKING_FILE, {"trackers": {name: note.to_json() for name, note in notes.items()}})
    else:
        (directory / TRACKING_FILE).unlink(missing_ok=True)
