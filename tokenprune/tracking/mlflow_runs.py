"""The runs of one sweep in an MLflow experiment: found, written, and made to be there once."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from tokenprune.report.render.kept_tokens import png_bytes, stored_overlay
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.store.sweep_data import CellRecord
from tokenprune.tracking.run_data import (
    PICTURES,
    PREFIX,
    RunStyle,
    curves_of,
    data_set_of,
    fingerprint,
    metrics_of,
    params_of,
    sample_table,
    tags_of,
)

TABLE_FILE = "samples.json"
_PARAMS, _METRICS = 90, 900
"""MLflow takes up to 100 params and 1,000 entries of all kinds per call."""


class RunWriter:
    """Writes runs; it keeps nothing of the sweep in memory, so a run costs the same however many there are.

    Args:
        client: An `MlflowClient`.
        experiment_id: The experiment.
        store: The sweep directory.
        sweep_id: The sweep's id.
        style: How the runs are shown.
    """

    def __init__(self, client: Any, experiment_id: str, store: SweepStore, sweep_id: str, style: RunStyle) -> None:
        self.client = client
        self._experiment_id = experiment_id
        self._store = store
        self._sweep_id = sweep_id
        self._style = style

    def find(self, kind: str, cell_id: str = "") -> list[Any]:
        """The sweep's runs of a kind (`cell`, `summary`), of one cell or of all."""
        query = f"tags.`{PREFIX}.kind` = '{kind}' and tags.`{PREFIX}.sweep` = '{self._sweep_id}'"
        if cell_id:
            query += f" and tags.`{PREFIX}.cell_id` = '{cell_id}'"
        return every(
            lambda token: self.client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
        )

    def keep_one(self, runs: Sequence[Any], entry: CellRecord) -> bool:
        """Delete all of a cell's runs but one that is complete and agrees with the directory; it gets the plan's tags.

        Returns:
            False if no run stays.
        """
        kept = False
        for run in runs:
            if not kept and _settled(run, entry):
                kept = True
                for name, value in self._style.tags(entry.cell).items():
                    if run.data.tags.get(name) != value:
                        self.client.set_tag(run.info.run_id, name, value)
            else:
                self.client.delete_run(run.info.run_id)
        return kept

    def log_cell(self, entry: CellRecord) -> None:
        """Log one finished cell; a run that already holds it stays, another one is replaced."""
        if not self.keep_one(self.find("cell", entry.cell.id), entry):
            self.create_cell(entry)

    def create_cell(self, entry: CellRecord) -> None:
        """Log one finished cell that has no run."""
        cell = entry.cell
        facts = entry.result or entry.error or {}
        started = _milliseconds(facts.get("started") or facts.get("ended"))
        rows = self._store.samples(cell.id) if entry.result else []
        tags = {**tags_of(cell, self._sweep_id, entry.state, facts), **self._style.tags(cell)}
        if rows:
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": TABLE_FILE, "type": "table"}])
        name = self._style.name(cell)
        run = self.client.create_run(self._experiment_id, start_time=started, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        self.log(
            run_id,
            params_of(cell),
            metrics_of(entry.result) if entry.result else {},
            curves_of(entry.result) if entry.result else {},
        )
        self._log_data_set(run_id, entry)
        self._log_files(run_id, entry, rows)
        ended = None if started is None else started + int(1000 * float(facts.get("seconds", 0.0)))
        self.client.set_terminated(run_id, "FINISHED" if entry.result else "FAILED", ended)

    def log(
        self,
        run_id: str,
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        curves: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Log params, metrics, and curves (whose steps are decoder layers) in as few calls as MLflow allows."""
        from mlflow.entities import Metric, Param

        now = int(datetime.now().timestamp() * 1000)
        entries = [Param(name, value) for name, value in params.items()]
        points = [Metric(name, value, now, 0) for name, value in metrics.items()]
        for name, values in (curves or {}).items():
            points += [Metric(name, float(value), now, layer) for layer, value in enumerate(values)]
        while entries or points:
            self.client.log_batch(run_id, metrics=points[:_METRICS], params=entries[:_PARAMS])
            entries, points = entries[_PARAMS:], points[_METRICS:]

    def _log_data_set(self, run_id: str, entry: CellRecord) -> None:
        """Log the data set of a cell, for the column *Dataset* and for filters."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        used = InputTag("mlflow.data.context", "evaluation")
        self.client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**data_set_of(entry.cell)), [used])])

    def _log_files(self, run_id: str, entry: CellRecord, rows: Sequence[Mapping[str, Any]]) -> None:
        """The cell's own file, its sample table and its pictures, all in one upload."""
        with tempfile.TemporaryDirectory() as folder:
            source = self._store.cell_directory(entry.cell.id)
            shutil.copyfile(source / ("result.json" if entry.result else "error.json"), Path(folder) / "cell.json")
            if rows:
                (Path(folder) / TABLE_FILE).write_text(json.dumps(sample_table(rows)), encoding="utf-8")
            for number, sample in enumerate(self._store.overlays(entry.cell.id)):
                picture = png_bytes(stored_overlay(self._store.directory, sample))
                (Path(folder) / f"kept-{number}.png").write_bytes(picture)
                if number == 0:  # the same one of every run, for the chart that sets them side by side
                    with Image.open(io.BytesIO(picture)) as shown:
                        self.client.log_image(run_id, shown, key=PICTURES, step=0, synchronous=True)
            self.client.log_artifacts(run_id, folder)


def every(search: Callable[[str | None], Any]) -> list[Any]:
    """All pages of a search, which gets the token of the page."""
    page = search(None)
    found = list(page)
    while page.token:
        page = search(page.token)
        found += page
    return found


def client_class() -> Callable[..., Any]:
    """Import mlflow, whose import takes a second, on first use."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow when it is imported
    from mlflow.tracking import MlflowClient

    return MlflowClient  # type: ignore[no-any-return]


def _settled(run: Any, entry: CellRecord) -> bool:
    """Whether a run is complete and was made of what the directory says."""
    made_of = run.data.tags.get(f"{PREFIX}.facts")
    return run.info.status in ("FINISHED", "FAILED") and made_of == fingerprint(entry.result or entry.error or {})


def _milliseconds(text: str | None) -> int | None:
    return None if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)
