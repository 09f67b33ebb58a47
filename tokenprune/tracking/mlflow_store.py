"""One sweep in an MLflow store: flat runs, one per cell and one summary."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenprune.cells.cell import REFERENCE
from tokenprune.report import leaderboard, markdown_table
from tokenprune.report.render.page import FOLDER, PAGE
from tokenprune.report.render.plots import sweep_colours
from tokenprune.sweep.store.atomic_io import read_json
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep
from tokenprune.sweep.store.tracker_notes import Link
from tokenprune.tracking.database import ARTIFACTS, database_uri, prepare
from tokenprune.tracking.mlflow_note import Place, read_place
from tokenprune.tracking.mlflow_runs import RunWriter, client_class, every
from tokenprune.tracking.run_data import PREFIX, RunStyle, legal, metrics_of
from tokenprune.tracking.subsets import ANSWER_RUNS, subsets_of
from tokenprune.tracking.views import (
    artifact_link,
    compare_link,
    filter_of,
    note,
    own_tag,
    summary_note,
    view_addresses,
    view_tags,
    views_of,
)

_DELETED = "deleted"


class MlflowStore:
    """The runs of one sweep directory, as a whole.

    Opening it creates the store if there is none, and replaces the directory's own store if that does not open or came
    from another place. Runs are found by the tags `tokenprune.sweep` and `tokenprune.cell_id`, so logging twice changes
    nothing.

    Args:
        data: The sweep, as read from its directory.
    """

    def __init__(self, data: SweepData) -> None:
        self._data = data
        self._sweep_id = data.header.sweep_id
        self._directory = data.store.directory
        self._report = self._directory / FOLDER
        make_client = client_class()
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        uri = given or database_uri(self._directory)
        cells = [entry.cell for entry in data.cells]
        self._subsets = subsets_of(cells)
        style = RunStyle(sweep_colours(data), self._subsets.all(), len({cell.model for cell in cells}) > 1)
        self.repaired = "" if given else prepare(self._directory, make_client)
        """What was wrong with the directory's own store; `reconcile` fills the new one."""
        self._client = make_client(tracking_uri=uri)
        experiment = self._experiment(own=not given)
        self._experiment_id = str(experiment.experiment_id)
        self._place = Place(uri, self._experiment_id, str(experiment.name), not given, style)
        self._runs = RunWriter(self._client, self._experiment_id, data.store, self._sweep_id, style)

    def announce(self, summary_run: str = "") -> Place:
        """Bring the preset views up to date, and note where the runs are, for people and for `run_writer`."""
        views = {**self._preset_views(), **(self._pages(summary_run) if summary_run else {})}
        links = tuple(Link(label, url) for label, url in views.items())
        place = replace(self._place, views=links, summary_run_id=summary_run)
        place.leave(self._directory)
        return place

    def reconcile(self) -> list[str]:
        """Make the runs agree with the directory.

        A finished cell without a run is logged: a killed process wrote the files, but not the run. A second run of a
        cell is deleted: a server that died in a request may have taken the request. So are the runs of cells that are
        not planned any more; their files stay, so planning them again brings them back.

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
        for run in itertools.chain.from_iterable(known.values()):
            self._client.delete_run(run.info.run_id)
        return logged

    def log_summary(self, status: str, seconds: float) -> Place:
        """Replace the sweep's summary run (report, figures, tables, counts), the experiment's note and its views.

        Returns:
            Where the runs are.
        """
        data = self._data
        table = markdown_table(leaderboard(data))
        for run in self._runs.find("summary"):
            self._client.delete_run(run.info.run_id)
        tags = {
            f"{PREFIX}.kind": "summary",
            f"{PREFIX}.sweep": self._sweep_id,
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
        text = note(data.header.name, {view.label: view.url for view in place.views}, table)
        self._client.set_experiment_tag(self._experiment_id, "mlflow.note.content", text)
        return place

    def _preset_views(self) -> dict[str, str]:
        """Write the view tags of the experiment that differ, and return the address of every view."""
        results = [entry.result for entry in self._data.cells if entry.result is not None]
        families = dict.fromkeys(legal(name) for result in results for name in result["quality"]["families"])
        everywhere = set.intersection(*(set(metrics_of(result)) for result in results)) if results else None
        views = views_of(self._sweep_id, self._subsets, everywhere, list(families))
        created = int(datetime.fromisoformat(self._data.header.created).timestamp() * 1000)
        wanted = view_tags(views, self._sweep_id, created)
        tags = self._client.get_experiment(self._experiment_id).tags
        for name, value in wanted.items():
            if tags.get(name) != value:
                self._client.set_experiment_tag(self._experiment_id, name, value)
        for name in tags:
            if own_tag(name, self._sweep_id) and name not in wanted:
                self._client.delete_experiment_tag(self._experiment_id, name)
        return view_addresses(self._experiment_id, views)

    def _pages(self, summary_run: str) -> dict[str, str]:
        """The addresses of MLflow's comparison of runs, and of the report in the summary run."""
        pages = {}
        # the comparison has params that differ and metrics that all have as axes: so no failed runs, and one budget
        for subset in self._subsets.answers[:1]:
            pruned = f"attributes.status = 'FINISHED' and tags.`{PREFIX}.pruner` != '{REFERENCE}'"
            query = f"{filter_of(subset, self._sweep_id)} and {pruned}"
            runs = self._client.search_runs([self._experiment_id], query, max_results=ANSWER_RUNS)
            if len(runs) > 1:
                compared = compare_link(self._experiment_id, [str(run.info.run_id) for run in runs])
                pages[f"Compare runs: {subset.title}"] = compared
        if (self._report / PAGE).is_file():
            pages["Report"] = artifact_link(self._experiment_id, summary_run, PAGE)
        return pages

    def _experiment(self, *, own: bool) -> Any:
        """Find or create the sweep's experiment; the artifacts of the directory's own store lie beside it."""
        chosen = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
        name = chosen or f"{PREFIX} {self._data.header.name}"
        if own and not chosen:
            self._delete_others(name)
        found = None if own or chosen else self._tagged()
        found = found or self._client.get_experiment_by_name(name)
        if found is None:
            location = (self._directory / ARTIFACTS).as_uri() if own else None
            experiment_id = str(self._client.create_experiment(name, artifact_location=location))
            self._client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
            found = self._client.get_experiment(experiment_id)
        if found.lifecycle_stage == _DELETED:  # on MLflow's page; the sweep is still wanted, or nobody would run it
            self._client.restore_experiment(found.experiment_id)
        if found.tags.get(self._tag) != str(self._directory):
            self._client.set_experiment_tag(found.experiment_id, self._tag, str(self._directory))
        return found

    @property
    def _tag(self) -> str:
        """Tag of the sweep's experiment, which other sweeps may share; its value is the directory."""
        return f"{PREFIX}.sweep.{self._sweep_id}"

    def _delete_others(self, name: str) -> None:
        """Delete, as on MLflow's page, experiments of other names in the directory's store, which holds one sweep."""
        for other in self._experiments():
            named = other.name.startswith(f"{PREFIX} ") and other.name != name
            if named and other.lifecycle_stage != _DELETED:
                self._client.delete_experiment(other.experiment_id)

    def _tagged(self) -> Any | None:
        """The experiment in which a shared store has this sweep, but not that of a directory that this one copies."""
        found = self._experiments(f"tags.`{self._tag}` LIKE '%'")
        mine = [one for one in found if one.tags[self._tag] == str(self._directory)]
        moved = [one for one in found if not self._is_there(Path(one.tags[self._tag]))]
        return min([*mine, *moved], key=lambda one: one.lifecycle_stage == _DELETED, default=None)

    def _is_there(self, directory: Path) -> bool:
        """Whether a directory holds this sweep."""
        header = read_json(directory / "sweep.json")
        return header is not None and header.get("sweep_id") == self._sweep_id

    def _experiments(self, query: str | None = None) -> list[Any]:
        """All experiments that a search finds, also deleted ones."""
        from mlflow.entities import ViewType

        return every(lambda token: self._client.search_experiments(ViewType.ALL, filter_string=query, page_token=token))


def open_store(directory: Path) -> MlflowStore:
    """The store of a sweep directory, which is read as a whole."""
    return MlflowStore(read_sweep(directory))


def run_writer(directory: Path, sweep_id: str) -> RunWriter | None:
    """Writes the runs of a sweep whose store was announced before; reads one small file, however many cells there are.

    Returns:
        `None` if no store is announced.
    """
    place = read_place(directory)
    if place is None:
        return None
    client = client_class()(tracking_uri=place.uri)
    return RunWriter(client, place.experiment_id, SweepStore(directory), sweep_id, place.style)
