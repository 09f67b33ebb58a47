"""`kill -9` in the middle of a sweep, the same command again: every cell once, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.processes import DEADLINE_S, alive, wait_for
from tests.sweep.fixtures import Workshop
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.result_store import read_jsonl


@pytest.fixture
def command(workshop: Workshop, directory: Path, tmp_path: Path) -> list[str]:
    """A sweep whose third cell waits in its second batch of three for the file `gate` to go away."""
    gate = tmp_path / "gate"
    gate.write_text("1", encoding="utf-8")
    pruners = ["grid", {"name": "first", "options": {"gate": str(gate)}}, "random"]
    config = tmp_path / "sweep.yaml"
    data = workshop.data(pruners=pruners, budgets=[4], executor="local", share=1, efficiency=False)
    config.write_text(json.dumps(data), encoding="utf-8")
    return [sys.executable, "-m", "tests.sweep.run_one", str(config), str(directory)]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def workers(directory: Path) -> list[str]:
    """Who began a cell, as far as it has been tracked."""
    events = directory / "events.jsonl"
    found = read_jsonl(events) if events.is_file() else []
    return [event["worker"] for event in found if event["event"] == "cell_start"]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_kill_and_continue(command: list[str], directory: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = SweepStore(directory)

    calls = tmp_path / "gate.calls"

    def gate_is_reached() -> bool:
        return calls.is_file() and calls.stat().st_size == 2

    first = start(command)
    try:
        wait_for(gate_is_reached, "second batch of the third cell")
        wait_for(lambda: workers(directory), "tracked start of a cell")  # trackers work beside the cells
        worker = int(workers(directory)[0].partition("#")[2])
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    wait_for(lambda: not alive(worker), "end of the orphaned worker")

    states = Counter(store.state(cell.id) for cell in store.plan())
    assert states == {"done": 2, "pending": 2}
    before = {path: path.read_bytes() for path in directory.glob("cells/*/result.json")}
    assert len(before) == 2

    (tmp_path / "gate").unlink()
    second = start(command)
    output, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0
    assert output.split() == ["complete", "2", "0"]

    assert calls.stat().st_size == 4  # of three batches, the one at hand was asked once more
    (gated,) = [cell for cell in store.plan() if cell.pruner == "first"]
    assert (store.result(gated.id) or {})["resumed"] == 3
    assert [row["index"] for row in store.samples(gated.id)] == list(range(8))

    assert all(path.read_bytes() == data for path, data in before.items())
    assert [store.state(cell.id) for cell in store.plan()] == ["done"] * 4
    assert len(list(directory.glob("cells/*"))) == 4

    client = MlflowClient(tracking_uri=f"sqlite:///{directory}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name.startswith("tokenprune")]
    runs = client.search_runs([experiment.experiment_id])
    cells = [run for run in runs if run.data.tags["tokenprune.kind"] == "cell"]
    assert sorted(run.data.tags["tokenprune.cell_id"] for run in cells) == sorted(cell.id for cell in store.plan())
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == len(cells) + 1  # and one summary
