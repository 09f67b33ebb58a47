"""Where the MLflow runs of a sweep are."""

from __future__ import annotations

from tokenprune.sweep import SweepOutcome
from tokenprune.tracking.mlflow_note import Place, read_place


def place_of(outcome: SweepOutcome) -> Place:
    """The place that the tracker noted."""
    place = read_place(outcome.directory)
    assert place is not None
    return place
