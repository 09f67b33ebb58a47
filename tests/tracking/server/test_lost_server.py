"""A server that is away is said in a line and within moments, by sweeps and by `runs replay`."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import Commands, Ran, environment
from tests.processes import heeding, wait_for
from tests.sweep.fixtures import FinishedSweep, Workshop
from tokenprune.sweep import run_sweep
from tokenprune.tracking import mlflow_tracker


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    return Commands(capsys)


@pytest.fixture
def nobody() -> str:
    """Address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def told(ran: Ran) -> tuple[str, str]:
    """The error and the hint of a mistake that is the user's."""
    assert (ran.code, ran.out) == (2, ""), ran
    assert "Traceback" not in ran.err
    error, hint = [line for line in ran.err.splitlines() if line.startswith(("error: ", "hint: "))]
    return error, hint


def test_replay_to_a_server_that_is_away(
    run: Commands, finished: FinishedSweep, tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    began = time.monotonic()
    error, hint = told(run("runs", "replay", str(finished.copy(tmp_path / "copy"))))
    assert time.monotonic() - began < 20.0
    assert error.startswith(f"error: the MLflow server {nobody} does not answer: ")
    assert "start it, or unset MLFLOW_TRACKING_URI" in hint


def test_a_password_is_not_shown(
    run: Commands, finished: FinishedSweep, tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody.replace("//", "//me:secret@"))
    error, _ = told(run("runs", "replay", str(finished.copy(tmp_path / "copy"))))
    assert nobody in error
    assert "secret" not in error


@pytest.mark.thorough
@pytest.mark.parametrize("uri", ["nonsense://x", "http://", "postgres+nonsense://a/b", "sqlite:////dev/null/x.db"])
def test_replay_to_an_address_that_is_none(
    run: Commands, finished: FinishedSweep, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    error, hint = told(run("runs", "replay", str(finished.copy(tmp_path / "copy"))))
    assert error.startswith(("error: the MLflow store does not take the runs: ", "error: the MLflow server "))
    assert "MLFLOW_TRACKING_URI" in hint


def test_replay_to_a_server_that_refuses(
    run: Commands, finished: FinishedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        error, hint = told(run("runs", "replay", str(finished.copy(tmp_path / "copy"))))
        server.shutdown()
    assert "401" in error
    assert "MLFLOW_TRACKING_URI" in hint


def test_a_sweep_says_at_once_that_its_server_is_away(
    workshop: Workshop, tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "PROBE_S", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False, lens=False)
    outcome = run_sweep(config, directory=tmp_path / "run", host=workshop.host)
    assert outcome.done == 2
    assert outcome.tracking_s < 20.0  # the client itself would try for minutes
    start, end = outcome.problems
    assert f"on_sweep_start`: PrerequisiteError: the MLflow server {silent} does not answer: timed out" in start
    assert f"when it is back, `tokenprune runs replay {tmp_path / 'run'}` fills it" in end
    assert not (tmp_path / "run" / "mlflow.db").exists()


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_ctrl_c_does_not_wait_for_a_lost_server(workshop: Workshop, tmp_path: Path) -> None:
    """The server answers the probe, and nothing after that."""

    class Alive(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self.send_response(200)
                self.end_headers()
            else:
                asked.set()
                leave.wait(200)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    asked, leave = threading.Event(), threading.Event()
    path, directory = tmp_path / "sweep.yaml", tmp_path / "run"
    data = workshop.data(pruners=["first"], budgets=[4], efficiency=False, lens=False, overlays=0)
    path.write_text(json.dumps(data), encoding="utf-8")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Alive) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenprune", "sweep", str(path), "--out", str(directory), "--quiet"],
            env=environment(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server.server_port}", COLUMNS="200"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heeding,
        )
        try:
            wait_for(lambda: (directory / "report" / "report.html").is_file() and asked.is_set(), "final wait")
            time.sleep(1.0)
            assert process.poll() is None
            began = time.monotonic()
            os.kill(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
            leave.set()
            server.shutdown()
    assert time.monotonic() - began < 10.0
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; what is finished is kept" in err
    assert f"continue with `tokenprune sweep {path} --out {directory} --quiet`" in err
