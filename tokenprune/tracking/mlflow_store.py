"""One sweep in an MLflow store: flat runs, one per cell and one summary."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenprune.cell import REFERENCE
from tokenprune.report import leaderboard, markdown_table
from tokenprune.report.figures.colours import sweep_colours
from tokenprune.report.render.page import FOLDER, PAGE
from tokenprune.sweep.runner import TRACKING_FILE
from tokenprune.sweep.store.atomic_io import read_json, write_json
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.store.sweep_data import SweepData, read_sweep
from tokenprune.tracking.facts import PREFIX, Look, legal, metrics_of
from tokenprune.tracking.mlflow_runs import Place, Runs, client_class
from tokenprune.tracking.own_store import ARTIFACTS, own_uri, prepare
from tokenprune.tracking.slices import ANSWER_RUNS, slices_of
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
        uri = given or own_uri(self._directory)
        cells = [entry.cell for entry in data.cells]
        self._slices = slices_of(cells)
        self._look = Look(sweep_colours(data), self._slices.all(), len({cell.model for cell in cells}) > 1)
        self.repaired = "" if given else prepare(self._directory, make_client)
        """What was wrong with the directory's own store; `reconcile` fills the new one."""
        self._client = make_client(tracking_uri=uri)
        self.place = self._experiment(uri, own=not given)
        self._runs = Runs(self._client, self.place, data.store, data.header.sweep_id, self._look)

    def announce(self, summary_run: str = "") -> None:
        """Bring the preset views up to date, and write where the runs are into the sweep directory.

        The file is for the command line, for people, and for `cell_runs`.
        """
        command = f"tokenprune ui {shlex.quote(str(self._directory))}" if self.place.own else ""
        write_json(
            self._directory / TRACKING_FILE,
            {
                "tracker": "mlflow",
                "uri": self.place.uri,
                "own": self.place.own,
                "experiment_id": self.place.experiment_id,
                "experiment": self.place.experiment,
                "summary_run_id": summary_run,
                "links": [
                    {"name": name, "address": address} for name, address in self._show_views(summary_run).items()
                ],
                "command": command,
                "look": self._look.to_json(),
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
            if entry.state != "pending" and not self._runs.keep_one(runs, entry):
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
        table = markdown_table(leaderboard(data))
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
        if self._report.is_dir():
            self._client.log_artifacts(run_id, str(self._report))
        self._client.log_artifact(run_id, str(self._directory / "sweep.json"))
        self._client.set_terminated(run_id, "FAILED" if status == "interrupted" else "FINISHED")
        text = note(data.header.name, self._show_views(run_id), table)
        self._client.set_experiment_tag(self.place.experiment_id, "mlflow.note.content", text)
        self.announce(run_id)
        return run_id

    def _show_views(self, summary_run: str) -> dict[str, str]:
        """Write the experiment's view tags where they differ, and hand back the address of every view and page."""
        sweep_id, experiment_id = self._data.header.sweep_id, self.place.experiment_id
        results = [entry.result for entry in self._data.cells if entry.result is not None]
        families = dict.fromkeys(legal(name) for result in results for name in result["quality"]["families"])
        everywhere = set.intersection(*(set(metrics_of(result)) for result in results)) if results else None
        views = views_of(sweep_id, self._slices, everywhere, list(families))
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
            for part in self._slices.answers[:1]:
                pruned = f"attributes.status = 'FINISHED' and tags.`{PREFIX}.pruner` != '{REFERENCE}'"
                query = f"{filter_of(part, sweep_id)} and {pruned}"
                found = self._client.search_runs([experiment_id], query, max_results=ANSWER_RUNS)
                if len(found) > 1:
                    run_ids = [str(run.info.run_id) for run in found]
                    addresses[f"Compare runs: {part.title}"] = compare_link(experiment_id, run_ids)
            if (self._report / PAGE).is_file():
                addresses["Report"] = artifact_link(experiment_id, summary_run, PAGE)
        return addresses

    def _experiment(self, uri: str, *, own: bool) -> Place:
        """Find or create the sweep's experiment; artifacts of our own store lie beside it."""
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
        return Place(uri, experiment_id, str(found.name), own)

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
    facts: Mapping[str, Any] | None = read_json(directory / TRACKING_FILE)
    if facts is None:
        return None
    place = Place(facts["uri"], facts["experiment_id"], facts["experiment"], facts["own"])
    return Runs(
        client_class()(tracking_uri=place.uri), place, SweepStore(directory), sweep_id, Look.from_json(facts["look"])
    )
