"""Where the MLflow runs of a sweep are: what the tracker leaves about it in the sweep directory."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenprune.sweep.store.tracker_notes import Link, TrackerNote, leave_note, read_notes
from tokenprune.tracking.run_data import RunStyle

TRACKER = "mlflow"
HOST = "127.0.0.1"
PORT = 5000

_KINDS = ("Trade-off", "Per task", "All axes", "Compare answers", "Kept tokens", "Compare runs", "Report")
"""The views and pages that are named first, in this order."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sweep's runs are.

    Args:
        uri: Address of the tracking store, a server's or a database's.
        experiment_id: The experiment.
        experiment: Its name.
        own: Whether the store is the database in the sweep directory.
        style: How the runs are shown.
        views: Every view and page, with addresses relative to the MLflow page.
        summary_run_id: The summary run; empty before there is one.
    """

    uri: str
    experiment_id: str
    experiment: str
    own: bool
    style: RunStyle
    views: tuple[Link, ...] = ()
    summary_run_id: str = ""

    @property
    def server(self) -> str:
        """Address of the server that holds the runs; empty if they are in a database."""
        return self.uri.rstrip("/") if self.uri.startswith(("http://", "https://")) else ""

    def note(self, directory: Path) -> TrackerNote:
        """How to open the page, the first view of each kind, and all of this for later."""
        if self.own:
            opens = f"tokenprune ui {shlex.quote(str(directory))}"
        else:
            opens = self.server or f"mlflow ui --workers 1 --backend-store-uri {shlex.quote(self.uri)}"
        links = main_links(self.views, self.server or f"http://{HOST}:{PORT}")
        return TrackerNote(f"dashboard: {opens}", links, details=asdict(self))

    def leave(self, directory: Path) -> None:
        """Leave the note in the sweep directory."""
        leave_note(directory, TRACKER, self.note(directory))


def read_place(directory: Path) -> Place | None:
    """Where the runs of a sweep directory are; `None` if no store is noted there."""
    note = read_notes(directory).get(TRACKER)
    if note is None:
        return None
    views = tuple(Link(**link) for link in note.details["views"])
    return Place(**{**note.details, "style": RunStyle.from_json(note.details["style"]), "views": views})


def main_links(views: Sequence[Link], base: str) -> tuple[Link, ...]:
    """The first view of each kind; a kind of several says how many there are.

    Args:
        views: Views and pages, with addresses relative to the MLflow page.
        base: Address of the page.
    """
    links = []
    for kind in _KINDS:
        found = [view for view in views if view.label.partition(":")[0] == kind]
        if found:
            # the kind names a single view; of several, the label says which one this is
            label = kind if len(found) == 1 else f"{found[0].label} (1 of {len(found)})"
            links.append(Link(label, f"{base.rstrip('/')}/{found[0].url}"))
    return tuple(links)
