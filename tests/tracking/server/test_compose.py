"""The compose file of the guide: pinned, the versions that are tested, and a server that answers to its name."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.tracking.server import compose

ROOT = Path(__file__).resolve().parents[3]


def test_every_image_is_pinned_to_a_release() -> None:
    images = {name: service["image"] for name, service in compose.document()["services"].items()}
    assert set(images) == {"database", "mlflow"}
    for image in images.values():
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z]+)+", image), image


def test_the_server_is_of_the_versions_that_are_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    installed = compose.installed()
    assert set(installed) == {"mlflow", "psycopg2-binary"}
    assert installed == {name: tested[name] for name in installed}


def test_what_is_used_is_declared() -> None:
    document = compose.document()
    for service in document["services"].values():
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in document["volumes"]
        assert set(service.get("secrets", ())) <= set(document["secrets"])
        assert set(service.get("depends_on", ())) <= set(document["services"])
        assert service["healthcheck"]["test"][0] == "CMD"
    mlflow, database = document["services"]["mlflow"], document["services"]["database"]
    address = urlsplit(compose.server_words()[compose.server_words().index("--backend-store-uri") + 1])
    assert address.scheme == "postgresql+psycopg2"
    assert address.hostname == "database"
    assert address.username == database["environment"]["POSTGRES_USER"]
    assert address.path.strip("/") == database["environment"]["POSTGRES_DB"]
    assert compose.server_words()[:2] == ["mlflow", "server"]
    assert mlflow["ports"] == ["5000:5000"]


def test_the_guide_names_the_file_and_its_variable() -> None:
    guide = (ROOT / "docs" / "guides" / "cluster.md").read_text(encoding="utf-8")
    assert "](compose.yaml)" in guide
    assert "TRACKING_HOST=" in guide
    assert "TRACKING_HOST" in compose.FILE.read_text(encoding="utf-8")


def ask(port: int, host: str, *, origin: str = "") -> int:
    """Status of a search for experiments, asked under a name of the server, from a page of an origin."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Content-Type": "application/json", "Host": host, **({"Origin": origin} if origin else {})},
    )
    try:
        return int(urllib.request.urlopen(request, timeout=60).status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_answers_under_its_name_and_to_its_own_page_only(migrated_store: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = compose.server_words(
        host="127.0.0.1",
        port=str(port),
        workers="1",
        backend_store_uri=f"sqlite:///{migrated_store}",
        artifacts_destination=str(tmp_path / "artifacts"),
    )
    environment = {**os.environ, **compose.server_environment({"TRACKING_HOST": "tracking.example.org"})}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() < deadline, "no server"
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        assert ask(port, "tracking.example.org:5000") == 200
        assert ask(port, "tracking.example.org") == 200
        assert ask(port, f"127.0.0.1:{port}") == 200
        assert ask(port, "elsewhere.example.org:5000") == 403
        assert ask(port, "tracking.example.org:5000", origin="http://tracking.example.org:5000") == 200
        assert ask(port, "tracking.example.org:5000", origin="http://elsewhere.example.org") == 403
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
