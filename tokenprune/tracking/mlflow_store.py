"""One sweep in an MLflow store: flat runs, one per cell and one summary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenprune.cell import REFERENCE
from tokenprune.report import leaderboard, markdown_table
from tokenprune.report.figures.colours import sweep_colours
from tokenprune.report.render.page import FOLDER, PAGE
from tokenprune.sweep.store.atomic_io import read_json
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep
from tokenprune.tracking.database import ARTIFACTS, database_uri, prepare
from tokenprune.tracking.mlflow_note import Place, read_place
from tokenprune.tracking.mlflow_runs import Runs, client_class
from tokenprune.tracking.run_data import PREFIX, RunStyle, legal, metrics_of
from tokenprune.tracking.subsets import ANSWER_RUNS, subsets_of
from tokenprune.tracking.views import (
    artifact_link,
    compare_link,
    filter_of,
    links,
    note,
    own_tag,
    summary_note,
    view_tags,
    views_of,
)

_DELETED = "deleted"


class MlflowStore:
    """The runs of one sweep directory, as a whole.

    Opening it creates the store where it is not there, and replaces the directory's own one where that does not open.
    Everything is found again by the tags `tokenprune.sweep` and `tokenprune.cell_id`, so that logging twice changes
    nothing.

    Args:
        data: The sweep, as read from its directory.
    """

    def __init__(self, data: SweepData) -> None:
        self._data = data
        self._directory = data.store.directory
        self._report = self._directory / FOLDER
        make_client = client_class()
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        uri = given or database_uri(self._directory)
        cells = [entry.cell for entry in data.cells]
        self._subsets = subsets_of(cells)
        self._style = RunStyle(sweep_colours(data), self._subsets.all(), len({cell.model for cell in cells}) > 1)
        self.repaired = "" if given else prepare(self._directory, make_client)
        """What was wrong with the directory's own store; `reconcile` fills the new one."""
        self._client = make_client(tracking_uri=uri)
        experiment = self._experiment(own=not given)
        self._experiment_id = str(experiment.experiment_id)
        self._place = Place(uri, self._experiment_id, str(experiment.name), not given, self._style, {})
        self._runs = Runs(self._client, self._experiment_id, data.store, data.header.sweep_id, self._style)

    def announce(self, summary_run: str = "") -> Place:
        """Bring the preset views up to date, and note where the runs are, for people and for `cell_runs`."""
        place = replace(self._place, views=self._show_views(summary_run), summary_run_id=summary_run)
        place.leave(self._directory)
        return place

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
            if entry.state != "pending" and not self._runs.keep_one(runs, entry):
                self._runs.create_cell(entry)
                logged.append(entry.cell.id)
        for runs in known.values():
            for run in runs:
                self._client.delete_run(run.info.run_id)
        return logged

    def log_summary(self, status: str, seconds: float) -> Place:
        """Replace the sweep's summary run: report, figures, tables, counts; and the experiment's note and views.

        Returns:
            Where the runs are.
        """
        data = self._data
        table = markdown_table(leaderboard(data))
        for run in self._runs.find("summary"):
            self._client.delete_run(run.info.run_id)
        tags = {
            f"{PREFIX}.kind": "summary",
            f"{PREFIX}.sweep": data.header.sweep_id,
            f"{PREFIX}.status": status,
            "mlflow.note.content": summary_note(table),
        }
        run = self._client.create_run(self._experiment_id, run_name=f"summary of {data.header.name}", tags=tags)
        run_id = str(run.info.run_id)
        states = [entry.state for entry in data.cells]
        counts = {f"sweep/{state}": float(states.count(state)) for state in ("done", "failed", "refused", "pending")}
        params = {"models": ", ".join(data.header.config["models"]), "cells": str(len(states))}
        self._runs.log(run_id, params, {**counts, "sweep/seconds": seconds})
        if self._report.is_dir():
            self._client.log_artifacts(run_id, str(self._report))
        self._client.log_artifact(run_id, str(self._directory / "sweep.json"))
        self._client.set_terminated(run_id, "FAILED" if status == "interrupted" else "FINISHED")
        place = self.announce(run_id)
        text = note(data.header.name, place.views, table)
        self._client.set_experiment_tag(self._experiment_id, "mlflow.note.content", text)
        return place

    def _show_views(self, summary_run: str) -> dict[str, str]:
        """Write the experiment's view tags where they differ, and hand back the address of every view and page."""
        sweep_id, experiment_id = self._data.header.sweep_id, self._experiment_id
        results = [entry.result for entry in self._data.cells if entry.result is not None]
        families = dict.fromkeys(legal(name) for result in results for name in result["quality"]["families"])
        everywhere = set.intersection(*(set(metrics_of(result)) for result in results)) if results else None
        views = views_of(sweep_id, self._subsets, everywhere, list(families))
        created = int(datetime.fromisoformat(self._data.header.created).timestamp() * 1000)
        wanted = view_tags(views, sweep_id, created)
        there = self._client.get_experiment(experiment_id).tags
        for name, value in wanted.items():
            if there.get(name) != value:
                self._client.set_experiment_tag(experiment_id, name, value)
        for name in there:
            if own_tag(name, sweep_id) and name not in wanted:
                self._client.delete_experiment_tag(experiment_id, name)
        addresses = links(experiment_id, views)
        if summary_run:
            # the page's axes are params that differ and metrics that all have: so no failed runs, and one budget alone
            for part in self._subsets.answers[:1]:
                pruned = f"attributes.status = 'FINISHED' and tags.`{PREFIX}.pruner` != '{REFERENCE}'"
                query = f"{filter_of(part, sweep_id)} and {pruned}"
                found = self._client.search_runs([experiment_id], query, max_results=ANSWER_RUNS)
                if len(found) > 1:
                    run_ids = [str(run.info.run_id) for run in found]
                    addresses[f"Compare runs: {part.title}"] = compare_link(experiment_id, run_ids)
            if (self._report / PAGE).is_file():
                addresses["Report"] = artifact_link(experiment_id, summary_run, PAGE)
        return addresses

    def _experiment(self, *, own: bool) -> Any:
        """Find or create the sweep's experiment; the artifacts of the directory's own store lie beside it."""
        chosen = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
        name = chosen or f"tokenprune {self._data.header.name}"
        found = None
        if not chosen:
            found = self._only_one(name) if own else self._tagged()
        found = found or self._client.get_experiment_by_name(name)
        if found is None:
            location = (self._directory / ARTIFACTS).as_uri() if own else None
            experiment_id = str(self._client.create_experiment(name, artifact_location=location))
            self._client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
            found = self._client.get_experiment(experiment_id)
        experiment_id = str(found.experiment_id)
        if found.lifecycle_stage == _DELETED:  # on MLflow's page; the sweep is still wanted, or nobody would run it
            self._client.restore_experiment(experiment_id)
        if found.tags.get(self._tag) != str(self._directory):
            self._client.set_experiment_tag(experiment_id, self._tag, str(self._directory))
        return found

    @property
    def _tag(self) -> str:
        """Names the sweep in a tag of its experiment, which other sweeps may share; the value is the directory."""
        return f"{PREFIX}.sweep.{self._data.header.sweep_id}"

    def _only_one(self, name: str) -> Any | None:
        """The experiment of our own store, which holds one sweep; it gets the name of a directory that was renamed.

        An earlier version made a second experiment then: that one is deleted, as on MLflow's page.
        """
        ours = [found for found in self._experiments() if found.name.startswith(f"{PREFIX} ")]
        if not ours:
            return None
        kept = min(ours, key=lambda found: (found.lifecycle_stage == _DELETED, found.name != name))
        for other in ours:
            if other is not kept and other.lifecycle_stage != _DELETED:
                self._client.delete_experiment(other.experiment_id)
        if kept.lifecycle_stage != _DELETED and name not in [found.name for found in ours]:
            self._client.rename_experiment(kept.experiment_id, name)
            return self._client.get_experiment(kept.experiment_id)
        return kept

    def _tagged(self) -> Any | None:
        """The experiment in which a shared store has this sweep, but not that of a directory that this copies."""
        found = self._experiments(f"tags.`{self._tag}` LIKE '%'")
        mine = [one for one in found if one.tags[self._tag] == str(self._directory)]
        moved = [one for one in found if not self._is_there(Path(one.tags[self._tag]))]
        return min([*mine, *moved], key=lambda one: one.lifecycle_stage == _DELETED, default=None)

    def _is_there(self, directory: Path) -> bool:
        """Whether a directory holds this sweep."""
        header = read_json(directory / "sweep.json")
        return header is not None and header.get("sweep_id") == self._data.header.sweep_id

    def _experiments(self, query: str | None = None) -> Sequence[Any]:
        """All experiments that a search finds, also deleted ones."""
        from mlflow.entities import ViewType

        experiments: list[Any] = []
        token = None
        while True:
            page = self._client.search_experiments(ViewType.ALL, filter_string=query, page_token=token)
            experiments += page
            token = page.token
            if not token:
                return experiments


def open_store(directory: Path) -> MlflowStore:
    """The store of a sweep directory, which is read as a whole."""
    return MlflowStore(read_sweep(directory))


def cell_runs(directory: Path, sweep_id: str) -> Runs | None:
    """The runs of a sweep whose store was opened and announced before; reads one small file, however many cells.

    Returns:
        `None` where no store is announced.
    """
    place = read_place(directory)
    if place is None:
        return None
    client = client_class()(tracking_uri=place.uri)
    return Runs(client, place.experiment_id, SweepStore(directory), sweep_id, place.style)
