"""One sweep in an MLflow store: flat runs, one per cell and one summary; the only module that imports mlflow."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenprune.report import markdown_table, write_report
from tokenprune.report.overlays import png_bytes, stored_overlay
from tokenprune.report.reading import Finished, SweepData, read_sweep
from tokenprune.sweep.ledger import write_json
from tokenprune.sweep.runner import TRACKING_FILE
from tokenprune.tracking.facts import PREFIX, curves_of, metrics_of, params_of, sample_table, tags_of
from tokenprune.tracking.views import links, note, view_tags

TABLE_FILE = "samples.json"
_BATCH = 90
"""MLflow takes up to 100 params and tags and 1,000 metrics per call."""
_NOISY = ("mlflow", "alembic")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sweep's runs are."""

    uri: str
    experiment_id: str
    experiment: str


class MlflowStore:
    """The runs of one sweep directory.

    Opening it creates the store (and migrates it) where it is not there. Everything is found again by the tags
    `tokenprune.sweep` and `tokenprune.cell_id`, so that logging twice changes nothing.

    Args:
        data: The sweep, as read from its directory.
    """

    def __init__(self, data: SweepData) -> None:
        self._data = data
        self._directory = data.ledger.directory
        self._sweep_id = data.header.sweep_id
        make_client = _load_client()
        with _quiet():
            self._client, uri, self._own = _open(make_client, self._directory)
            self.place = self._experiment(uri)
        self._colours = data.colours()

    def announce(self, summary_run: str = "") -> None:
        """Write where the runs are into the sweep directory, for the command line and for people."""
        command = f"mlflow ui --workers 1 --backend-store-uri {self.place.uri}" if self._own else ""
        write_json(
            self._directory / TRACKING_FILE,
            {
                "tracker": "mlflow",
                "uri": self.place.uri,
                "experiment_id": self.place.experiment_id,
                "experiment": self.place.experiment,
                "summary_run_id": summary_run,
                "links": links(self.place.experiment_id),
                "command": command,
            },
        )

    def reconcile(self) -> list[str]:
        """Make the runs agree with the directory.

        Every finished cell without a run is logged (a killed process wrote the files, but not the run), and runs of
        cells that are no longer planned are deleted (their files stay, so that planning them again brings them back).

        Returns:
            The ids of the cells that were logged now.
        """
        known = {run.data.tags[f"{PREFIX}.cell_id"]: run for run in self._runs("cell")}
        for cell_id in known.keys() - {entry.cell.id for entry in self._data.cells}:
            self._client.delete_run(known[cell_id].info.run_id)
        logged = []
        for entry in self._data.cells:
            run = known.get(entry.cell.id)
            if entry.state != "pending" and (run is None or not _settled(run, entry.state)):
                self.log_cell(entry)
                logged.append(entry.cell.id)
        return logged

    def log_cell(self, entry: Finished) -> str:
        """Log one finished cell; a run that already holds it is kept, an older one is replaced.

        Returns:
            The run's id.
        """
        cell = entry.cell
        for run in self._runs("cell", cell.id):
            if _settled(run, entry.state):
                return str(run.info.run_id)
            self._client.delete_run(run.info.run_id)
        facts = entry.result or entry.error or {}
        started = _milliseconds(facts.get("started") or facts.get("ended"))
        run = self._client.create_run(
            self.place.experiment_id,
            start_time=started,
            run_name=cell.name,
            tags=tags_of(cell, self._sweep_id, entry.state, self._colours[cell.label]),
        )
        run_id = str(run.info.run_id)
        self._log(run_id, params_of(cell), metrics_of(entry.result) if entry.result else {})
        if entry.result:
            self._log_curves(run_id, curves_of(entry.result))
        self._log_files(run_id, entry)
        ended = None if started is None else started + int(1000 * float(facts.get("seconds", 0.0)))
        self._client.set_terminated(run_id, "FINISHED" if entry.result else "FAILED", ended)
        return run_id

    def log_summary(self, status: str, seconds: float) -> str:
        """Replace the sweep's summary run: report, figures, tables, counts; and the experiment's note and views.

        Returns:
            The run's id.
        """
        data = self._data
        page = write_report(self._directory)
        for run in self._runs("summary"):
            self._client.delete_run(run.info.run_id)
        tags = {
            f"{PREFIX}.kind": "summary",
            f"{PREFIX}.sweep": self._sweep_id,
            f"{PREFIX}.status": status,
            "mlflow.note.content": markdown_table(data),
        }
        run = self._client.create_run(self.place.experiment_id, run_name=f"summary of {data.header.name}", tags=tags)
        run_id = str(run.info.run_id)
        states = [entry.state for entry in data.cells]
        counts = {f"sweep/{state}": float(states.count(state)) for state in ("done", "failed", "refused", "pending")}
        params = {"models": ", ".join(data.header.config["models"]), "cells": str(len(states))}
        self._log(run_id, params, {**counts, "sweep/seconds": seconds})
        self._client.log_artifacts(run_id, str(page.parent))
        for name in ("sweep.json", "env.json"):
            self._client.log_artifact(run_id, str(self._directory / name))
        self._client.set_terminated(run_id, "FAILED" if status == "interrupted" else "FINISHED")
        text = note(data.header.name, self.place.experiment_id, markdown_table(data), run_id)
        self._client.set_experiment_tag(self.place.experiment_id, "mlflow.note.content", text)
        self.announce(run_id)
        return run_id

    # --- parts ----------------------------------------------------------------------------------------------------

    def _experiment(self, uri: str) -> Place:
        """Find or create the sweep's experiment; artifacts of our own store lie beside it."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"tokenprune {self._data.header.name}"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = (self._directory / "mlflow-artifacts").as_uri() if self._own else None
            created = int(datetime.fromisoformat(self._data.header.created).timestamp() * 1000)
            experiment_id = str(self._client.create_experiment(name, artifact_location=location))
            for key, value in {**view_tags(created), "mlflow.experimentKind": "custom_model_development"}.items():
                self._client.set_experiment_tag(experiment_id, key, value)
        else:
            experiment_id = str(found.experiment_id)
        return Place(uri, experiment_id, name)

    def _runs(self, kind: str, cell_id: str = "") -> list[Any]:
        query = f"tags.`{PREFIX}.kind` = '{kind}' and tags.`{PREFIX}.sweep` = '{self._sweep_id}'"
        if cell_id:
            query += f" and tags.`{PREFIX}.cell_id` = '{cell_id}'"
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self.place.experiment_id], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _log(self, run_id: str, params: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, Param

        now = _now()
        entries = [Param(name, value) for name, value in params.items()]
        points = [Metric(name, value, now, 0) for name, value in metrics.items()]
        self._client.log_batch(run_id, metrics=points, params=entries[:_BATCH])
        for start in range(_BATCH, len(entries), _BATCH):
            self._client.log_batch(run_id, params=entries[start : start + _BATCH])

    def _log_curves(self, run_id: str, curves: Mapping[str, Sequence[float]]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, float(value), _now(), layer)
            for name, values in curves.items()
            for layer, value in enumerate(values)
        ]
        for start in range(0, len(points), 1000):
            self._client.log_batch(run_id, metrics=points[start : start + 1000])

    def _log_files(self, run_id: str, entry: Finished) -> None:
        """The cell's own file, its sample table and its pictures, all in one upload."""
        with tempfile.TemporaryDirectory() as folder:
            source = self._data.ledger.cell_directory(entry.cell.id)
            name = "result.json" if entry.result else "error.json"
            shutil.copyfile(source / name, Path(folder) / "cell.json")
            rows = self._data.samples(entry.cell) if entry.result else []
            if rows:
                (Path(folder) / TABLE_FILE).write_text(json.dumps(sample_table(rows)), encoding="utf-8")
            for number, sample in enumerate(self._data.ledger.overlays(entry.cell.id)):
                (Path(folder) / f"kept-{number}.png").write_bytes(png_bytes(stored_overlay(self._directory, sample)))
            self._client.log_artifacts(run_id, folder)
        if rows:
            table = json.dumps([{"path": TABLE_FILE, "type": "table"}])
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", table)


def open_store(directory: Path) -> MlflowStore:
    """The store of a sweep directory."""
    return MlflowStore(read_sweep(directory))


def _load_client() -> Callable[..., Any]:
    """Import mlflow; this also sets the levels of its loggers, so it comes before `_quiet`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow when it is imported
    from mlflow.tracking import MlflowClient

    return MlflowClient  # type: ignore[no-any-return]


def _open(make_client: Callable[..., Any], directory: Path) -> tuple[Any, str, bool]:
    """A client, its address, and whether the store is the sweep's own (as opposed to `MLFLOW_TRACKING_URI`)."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = given or f"sqlite:///{directory / 'mlflow.db'}"
    return make_client(tracking_uri=uri), uri, not given


def _settled(run: Any, state: str) -> bool:
    """True where a run is complete and says what the directory says."""
    return run.info.status in ("FINISHED", "FAILED") and run.data.tags.get(f"{PREFIX}.outcome") == state


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


def _milliseconds(text: str | None) -> int | None:
    return None if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)


def _now() -> int:
    return int(datetime.now().timestamp() * 1000)
