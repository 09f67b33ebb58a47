"""The lines that show where a sweep can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenprune.sweep.store.tracker_notes import Link, TrackerNote


def note_lines(note: TrackerNote) -> Iterator[str]:
    """What a tracker left: its line, and a line per link."""
    if note.note:
        yield note.note
    yield from link_lines(note.links)


def link_lines(links: Sequence[Link]) -> Iterator[str]:
    """One line per link: its label and its address."""
    width = max((len(link.label) for link in links), default=0)
    return (f"  {link.label:<{width}}  {link.url}" for link in links)
