"""`tokenprune ui`: mistakes are told in a line, and the dashboard comes up with the address of every view."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.commands import Commands, environment
from tests.sweep.fixtures import FinishedSweep
from tests.tracking.places import place_of
from tokenprune.cli.links import note_lines
from tokenprune.tracking.mlflow_note import Place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands in this process."""
    monkeypatch.setenv("COLUMNS", "80")
    return Commands(capsys)


def test_a_directory_without_a_sweep(run: Commands, tmp_path: Path) -> None:
    ran = run("ui", str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: `{tmp_path}` is not a sweep directory")
    assert "hint: " in ran.err


def test_a_sweep_without_a_store(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    ran = run("ui", str(copy))
    assert (ran.code, ran.out) == (2, "")
    assert f"`tokenprune runs replay {copy}` makes one" in ran.err
    assert "Traceback" not in ran.err


def test_runs_on_a_server_need_no_server(run: Commands, finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    place = replace(place_of(finished.outcome), uri="http://host:5000", own=False)
    place.leave(copy)
    ran = run("ui", str(copy))
    assert ran.code == 0
    assert "dashboard: http://host:5000" in ran.err
    assert [line.split("http")[0].strip() for line in ran.out.splitlines()][:3] == ["Trade-off", "Per task", "All axes"]
    found = run("ui", str(copy), "--json").json()
    assert found["dashboard"] == "http://host:5000"
    assert found["links"] == {view.label: f"http://host:5000/{view.url}" for view in place.views}


@pytest.mark.thorough
def test_it_serves_until_it_is_ended(finished: FinishedSweep, tmp_path: Path) -> None:
    log = tmp_path / "out.txt"
    command = [sys.executable, "-m", "tokenprune", "ui", str(finished.directory)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment(), stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 150
        while "Ctrl-C ends it" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        (address,) = re.findall(r"^dashboard: (\S+)$", log.read_text(), flags=re.MULTILINE)
        assert urllib.request.urlopen(f"{address}/health", timeout=60).status == 200
    finally:
        process.terminate()
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in log.read_text()


def test_what_a_sweep_says_at_its_end(finished: FinishedSweep) -> None:
    def lines_of(place: Place) -> list[str]:
        return list(note_lines(place.note(finished.directory)))

    place = place_of(finished.outcome)
    lines = lines_of(place)
    assert lines == list(note_lines(finished.outcome.tracking["mlflow"]))
    assert lines[0] == f"dashboard: tokenprune ui {finished.directory}"
    assert all("http://127.0.0.1:5000/#/" in line for line in lines[1:])
    served = lines_of(replace(place, uri="http://host:1/", own=False))
    assert served[0] == "dashboard: http://host:1"
    assert all("http://host:1/#/" in line for line in served[1:])
    other = lines_of(replace(place, uri="sqlite:////x/y.db", own=False))
    assert other[0] == "dashboard: mlflow ui --workers 1 --backend-store-uri sqlite:////x/y.db"
