"""The dashboard of a directory: found, refused with a reason, served."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweep.fixtures import FinishedSweep
from tests.tracking.places import place_of
from tokenprune.errors import ConfigError, PrerequisiteError
from tokenprune.sweep.store.atomic_io import write_json
from tokenprune.sweep.store.tracker_notes import TRACKING_FILE, Link
from tokenprune.tracking.mlflow_note import HOST, PORT, main_links
from tokenprune.tracking.server import Dashboard, choose_port, find_dashboard, serving
from tokenprune.tracking.subsets import subsets_of
from tokenprune.tracking.views import filter_of, note, view_tags, views_of


def test_a_directory_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a sweep directory"):
        find_dashboard(tmp_path)


def test_a_sweep_without_a_store(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    with pytest.raises(PrerequisiteError, match="has no MLflow store") as caught:
        find_dashboard(copy)
    assert f"tokenprune runs replay {copy}" in caught.value.hint


def test_a_store_of_an_earlier_version(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    write_json(copy / TRACKING_FILE, {"tracker": "mlflow", "uri": "sqlite:///x", "links": {"Trade-off": "#/"}})
    with pytest.raises(PrerequisiteError, match="of an earlier version"):
        find_dashboard(copy)


def test_a_store_that_is_gone(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    shutil.copyfile(finished.directory / TRACKING_FILE, copy / TRACKING_FILE)
    with pytest.raises(PrerequisiteError, match="is gone"):
        find_dashboard(copy)


def test_a_directory_that_was_moved(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for name in ("mlflow.db", TRACKING_FILE):
        (copy / name).write_bytes((finished.directory / name).read_bytes())
    assert find_dashboard(copy).moved
    assert find_dashboard(copy).place.uri == f"sqlite:///{copy / 'mlflow.db'}"
    assert not find_dashboard(finished.directory).moved


def test_runs_on_a_server(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    replace(place_of(finished.outcome), uri="http://host:5000/", own=False).leave(copy)
    assert find_dashboard(copy).place.server == "http://host:5000"
    assert find_dashboard(finished.directory).place.server == ""


def test_links_come_in_order_and_say_how_many_there_are() -> None:
    labels = {"Table": "#/t", "Compare answers: 4": "#/a", "Compare answers: 50%": "#/b", "Trade-off": "#/x"}
    assert main_links([Link(*pair) for pair in labels.items()], "http://h:1/") == (
        Link("Trade-off", "http://h:1/#/x"),
        Link("Compare answers: 4 (1 of 2)", "http://h:1/#/a"),
    )


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PrerequisiteError, match=f"port {port} of {HOST} is taken"):
            choose_port(port)
    assert choose_port(port) == port
    assert 0 < choose_port(None) <= 65535


def test_a_taken_default_port_gives_another_one() -> None:
    with socket.socket() as taken:
        try:
            taken.bind((HOST, PORT))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is the same case
        assert choose_port(None) != PORT


def test_the_server_answers_and_ends(finished: FinishedSweep) -> None:
    dashboard = find_dashboard(finished.directory)
    port = _free_port()
    with serving(dashboard, port) as process:
        request = urllib.request.Request(
            f"http://{HOST}:{port}/ajax-api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 10}',
            headers={"Content-Type": "application/json"},
        )
        found = json.load(urllib.request.urlopen(request, timeout=60))
        assert place_of(finished.outcome).experiment in [one["name"] for one in found["experiments"]]
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left behind


def test_a_store_that_does_not_open(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    (copy / "mlflow.db").write_bytes(b"this is no database" * 100)
    shutil.copyfile(finished.directory / TRACKING_FILE, copy / TRACKING_FILE)
    with pytest.raises(PrerequisiteError, match="does not open") as caught:
        find_dashboard(copy)
    assert f"tokenprune runs replay {copy}" in caught.value.hint


def test_a_store_of_another_mlflow(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    for name in ("mlflow.db", TRACKING_FILE):
        (copy / name).write_bytes((finished.directory / name).read_bytes())
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
    with pytest.raises(PrerequisiteError, match="written by another version of MLflow") as caught:
        find_dashboard(copy)
    assert f"tokenprune runs replay {copy}` brings it up to date" in caught.value.hint


def test_a_server_that_cannot_start_says_where_its_log_is(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    dashboard = Dashboard(copy, replace(place_of(finished.outcome), uri="nonsense://x"), moved=False)
    with pytest.raises(PrerequisiteError, match="the MLflow server ended") as caught, serving(dashboard, _free_port()):
        pass
    assert (copy / "logs" / "mlflow-ui.log").stat().st_size > 0
    assert "mlflow-ui.log" in caught.value.hint


def test_a_server_of_somebody_else_is_not_taken_for_ours(finished: FinishedSweep) -> None:
    dashboard = find_dashboard(finished.directory)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PrerequisiteError, match=f"port {port} of {HOST} is taken"), serving(dashboard, port):
            pass


def _free_port() -> int:
    """A port that no other test chooses: the default one may be in use by a test beside this one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def test_the_note_fits_however_many_views_there_are() -> None:
    addresses = {f"Compare answers: part {place}": "#/" + "x" * 150 for place in range(200)}
    text = note("demo", {"Trade-off": "#/t", **addresses}, "table " * 2000)
    assert len(text) < 5000
    assert text.splitlines()[0].startswith("**demo**: [Trade-off](/#/t) · [Compare answers](/#/xxx")


def test_view_tags_fit_and_are_those_of_the_sweep(finished: FinishedSweep) -> None:
    from tests.tracking.plans import plan

    subsets = subsets_of(plan(40, 4, 2, 1, 1))
    families = [f"family {place}" for place in range(60)]
    views = views_of("0123456789abcdef", subsets, None, families)
    tags = view_tags(views, "0123456789abcdef", 0)
    assert len(tags) == len(views)  # no key is used twice
    assert all(len(value) < 20_000 for value in tags.values())
    assert len({view.name for view in views}) == len(views)
    part = subsets.answers[0]
    assert filter_of(part, "id") == f"tags.`tokenprune.views` LIKE '%|{part.key}|%' and tags.`tokenprune.sweep` = 'id'"
