"""Two Ray nodes, an MLflow server on PostgreSQL, and everything dies once: every cell is there once, in both places."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_for
from tests.sweep.fixtures import Workshop
from tests.tracking.server import compose
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.result_store import read_jsonl

NIGHTLY = "TOKENPRUNE_NIGHTLY"
"""Variable under which a missing program is a failure."""

AWAY_S = 20.0
"""How long the tracking server is gone."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps off the path."""
    places = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    missing = f"there is no `{name}` here: `apt-get install -y postgresql` brings it"
    if not found and os.environ.get(NIGHTLY):
        pytest.fail(missing)
    return found or pytest.skip(missing)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Address of an empty database; PostgreSQL refuses to run as the superuser, so it gets its own user then."""
    initdb, postgres = program("initdb"), program("postgres")
    person: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="tokenprune-postgres-") as folder:
        if person:
            shutil.chown(folder, "postgres")
        data, port = Path(folder) / "data", free_port()
        command = [initdb, "-D", str(data), "-U", "tracker", "-A", "trust", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **person)
        command = [postgres, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **person)

        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        try:
            wait_for(answers, "PostgreSQL")
            time.sleep(1)
            yield f"postgresql+psycopg2://tracker@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


@contextmanager
def tracking_server(database: str, artifacts: Path, port: int) -> Iterator[None]:
    """The server of the guide's compose file for as long as the context lasts; it leaves no process behind."""
    words = compose.server_words(
        host="127.0.0.1",
        port=str(port),
        backend_store_uri=database,
        artifacts_destination=str(artifacts),
    )
    environment = {**os.environ, **compose.server_environment({})}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (artifacts.parent / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=log, stderr=log, env=environment, start_new_session=True
        )

    def healthy() -> bool:
        assert server.poll() is None, (artifacts.parent / "server.log").read_text(encoding="utf-8")[-2000:]
        with suppress(OSError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
        return False

    try:
        wait_for(healthy, "MLflow server")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_everything_dies_once(workshop: Workshop, database: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg2")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    pruners = [{"name": "first", "options": {"pause": 1.0 + step / 100}, "label": f"first{step}"} for step in range(4)]
    data = workshop.data(
        pruners=pruners,
        budgets=list(range(1, 16)),
        tasks=[{"name": "toy", "options": {"size": 4}}],
        batch_size=4,
        efficiency=False,
        lens=False,
        overlays=1,
        share=2,
    )
    path, directory, port = tmp_path / "sweep.yaml", tmp_path / "run", free_port()
    path.write_text(json.dumps(data), encoding="utf-8")
    store = SweepStore(directory)

    def done() -> int:
        return len(list(directory.glob("cells/*/result.json")))

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    try:
        server = tracking_server(database, tmp_path / "artifacts", port)
        server.__enter__()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        }
        command = [sys.executable, "-m", "tokenprune", "sweep", str(path), "--out", str(directory)]
        command += [
            "--executor",
            "ray",
            "--executor-option",
            f"address={cluster.address}",
            "--executor-option",
            "actors=2",
        ]
        sweep = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        wait_for(lambda: done() >= 3, "third cell")
        latest = max(directory.glob("cells/*/result.json"), key=lambda found: found.stat().st_mtime_ns)
        os.kill(json.loads(latest.read_text(encoding="utf-8"))["worker"]["pid"], signal.SIGKILL)
        wait_for(lambda: done() >= 8, "eighth cell")
        cluster.remove_node(second, allow_graceful=False)
        wait_for(lambda: done() >= 12, "twelfth cell")
        server.__exit__(None, None, None)
        time.sleep(AWAY_S)
        assert sweep.poll() is None, "the sweep ended before the server was back; it proves nothing"
        with tracking_server(database, tmp_path / "artifacts", port):
            _, talk = sweep.communicate(timeout=500)
            assert sweep.returncode == 0, talk
            assert "warning" not in talk, talk
            counts = logged(f"http://127.0.0.1:{port}")
    finally:
        cluster.shutdown()
    cells = [cell.id for cell in store.plan()]
    assert len(cells) == 61
    assert {store.state(cell) for cell in cells} == {"done"}
    assert counts == Counter(dict.fromkeys(cells, 1))
    begun = [event for event in read_jsonl(directory / "events.jsonl") if event["event"] == "cell_start"]
    assert len(begun) > len(cells)  # somebody did die


def logged(uri: str) -> Counter[str]:
    """How often each cell is on the server, as a run that is complete with its files."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [found for found in client.search_experiments() if found.name.startswith("tokenprune ")]
    runs = client.search_runs([experiment.experiment_id], "tags.`tokenprune.kind` = 'cell'", max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    files = {file.path for file in client.list_artifacts(runs[0].info.run_id)}
    assert {"cell.json", "samples.json"} <= files
    return Counter(run.data.tags["tokenprune.cell_id"] for run in runs)
