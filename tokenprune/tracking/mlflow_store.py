"""One sweep in an MLflow store: flat runs, one per cell and one summary."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenprune.report import leaderboard, markdown_table, write_report
from tokenprune.report.reading import SweepData, read_sweep
from tokenprune.sweep.files import read_json, write_json
from tokenprune.sweep.ledger import Ledger
from tokenprune.sweep.runner import TRACKING_FILE
from tokenprune.tracking.facts import PREFIX
from tokenprune.tracking.mlflow_runs import Place, Runs, client_class
from tokenprune.tracking.views import links, note, summary_note, view_tags

_NOISY = ("mlflow", "alembic")


class MlflowStore:
    """The runs of one sweep directory, as a whole.

    Opening it creates the store (and migrates it) where it is not there. Everything is found again by the tags
    `tokenprune.sweep` and `tokenprune.cell_id`, so that logging twice changes nothing.

    Args:
        data: The sweep, as read from its directory.
    """

    def __init__(self, data: SweepData) -> None:
        self._data = data
        self._directory = data.ledger.directory
        make_client = client_class()  # it sets the levels of mlflow's loggers, so it comes before `_quiet`
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        uri = given or f"sqlite:///{self._directory / 'mlflow.db'}"
        with _quiet():
            self._client = make_client(tracking_uri=uri)
            self.place = self._experiment(uri, own=not given)
        self._runs = Runs(self._client, self.place, data.ledger, data.header.sweep_id, data.colours())

    def announce(self, summary_run: str = "") -> None:
        """Write where the runs are into the sweep directory: for the command line, for people, and for `cell_runs`."""
        command = f"mlflow ui --workers 1 --backend-store-uri {self.place.uri}" if self.place.own else ""
        write_json(
            self._directory / TRACKING_FILE,
            {
                "tracker": "mlflow",
                "uri": self.place.uri,
                "own": self.place.own,
                "experiment_id": self.place.experiment_id,
                "experiment": self.place.experiment,
                "summary_run_id": summary_run,
                "links": links(self.place.experiment_id),
                "command": command,
                "colours": self._data.colours(),
            },
        )

    def reconcile(self) -> list[str]:
        """Make the runs agree with the directory.

        Every finished cell without a run is logged (a killed process wrote the files, but not the run), a second run
        of a cell is deleted (a server that died in a request may have taken it), and so are runs of cells that are no
        longer planned (their files stay, so that planning them again brings them back).

        Returns:
            The ids of the cells that were logged now.
        """
        known: dict[str, list[Any]] = {}
        for run in self._runs.find("cell"):
            known.setdefault(run.data.tags[f"{PREFIX}.cell_id"], []).append(run)
        logged = []
        for entry in self._data.cells:
            runs = known.pop(entry.cell.id, [])
            if entry.state != "pending" and not self._runs.keep_one(runs, entry.state):
                self._runs.create_cell(entry)
                logged.append(entry.cell.id)
        for runs in known.values():
            for run in runs:
                self._client.delete_run(run.info.run_id)
        return logged

    def log_summary(self, status: str, seconds: float) -> str:
        """Replace the sweep's summary run: report, figures, tables, counts; and the experiment's note and views.

        Returns:
            The run's id.
        """
        data = self._data
        board = leaderboard(data)
        page = write_report(self._directory, board)
        table = markdown_table(board)
        for run in self._runs.find("summary"):
            self._client.delete_run(run.info.run_id)
        tags = {
            f"{PREFIX}.kind": "summary",
            f"{PREFIX}.sweep": data.header.sweep_id,
            f"{PREFIX}.status": status,
            "mlflow.note.content": summary_note(table),
        }
        run = self._client.create_run(self.place.experiment_id, run_name=f"summary of {data.header.name}", tags=tags)
        run_id = str(run.info.run_id)
        states = [entry.state for entry in data.cells]
        counts = {f"sweep/{state}": float(states.count(state)) for state in ("done", "failed", "refused", "pending")}
        params = {"models": ", ".join(data.header.config["models"]), "cells": str(len(states))}
        self._runs.log(run_id, params, {**counts, "sweep/seconds": seconds})
        self._client.log_artifacts(run_id, str(page.parent))
        for name in ("sweep.json", "env.json"):
            self._client.log_artifact(run_id, str(self._directory / name))
        self._client.set_terminated(run_id, "FAILED" if status == "interrupted" else "FINISHED")
        text = note(data.header.name, self.place.experiment_id, table, run_id)
        self._client.set_experiment_tag(self.place.experiment_id, "mlflow.note.content", text)
        self.announce(run_id)
        return run_id

    def _experiment(self, uri: str, *, own: bool) -> Place:
        """Find or create the sweep's experiment; artifacts of our own store lie beside it."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"tokenprune {self._data.header.name}"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = (self._directory / "mlflow-artifacts").as_uri() if own else None
            created = int(datetime.fromisoformat(self._data.header.created).timestamp() * 1000)
            experiment_id = str(self._client.create_experiment(name, artifact_location=location))
            for key, value in {**view_tags(created), "mlflow.experimentKind": "custom_model_development"}.items():
                self._client.set_experiment_tag(experiment_id, key, value)
        else:
            experiment_id = str(found.experiment_id)
        return Place(uri, experiment_id, name, own)


def open_store(directory: Path) -> MlflowStore:
    """The store of a sweep directory, which is read as a whole."""
    return MlflowStore(read_sweep(directory))


def cell_runs(directory: Path, sweep_id: str) -> Runs | None:
    """The runs of a sweep whose store was opened and announced before; reads one small file, however many cells.

    Returns:
        `None` where no store is announced.
    """
    facts: Mapping[str, Any] | None = read_json(directory / TRACKING_FILE)
    if facts is None:
        return None
    place = Place(facts["uri"], facts["experiment_id"], facts["experiment"], facts["own"])
    return Runs(client_class()(tracking_uri=place.uri), place, Ledger(directory), sweep_id, facts["colours"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what a first opening prints about every migration step."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
