"""The executor `local`: a worker per GPU, or as many as asked for on the CPU; and what the kernel's killer costs."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Commands
from tests.sweep.fixtures import Workshop
from tokenprune.cells.events import CellEnded, CellStarted
from tokenprune.errors import ConfigError, PrerequisiteError
from tokenprune.sweep import SweepStore, run_sweep
from tokenprune.sweep.executors.local import oom_kills, worker_devices

SMALL: dict[str, Any] = {"budgets": [4], "efficiency": False, "lens": False, "overlays": 0}


@pytest.mark.parametrize(
    ("gpus", "listed", "workers", "expected"),
    [
        (0, ["auto"], None, ["cpu"]),
        (0, ["auto"], 3, ["cpu", "cpu", "cpu"]),
        (3, ["auto"], None, ["cuda:0", "cuda:1", "cuda:2"]),
        (3, ["auto"], 2, ["cuda:0", "cuda:1"]),
        (2, ["auto"], 3, ["cuda:0", "cuda:1", "cuda:0"]),
        (3, ["cuda:1", "cuda:1"], None, ["cuda:1", "cuda:1"]),
        (3, ["cpu"], 2, ["cpu", "cpu"]),
    ],
)
def test_a_worker_per_gpu_or_as_many_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, gpus: int, listed: list[str], workers: int | None, expected: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert list(worker_devices(listed, workers)) == expected


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_two_workers_on_the_cpu_share_its_cores(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    threads: set[str] = set()
    gate = tmp_path / "gate"
    gate.touch()

    def display(event: Any) -> None:
        if isinstance(event, CellStarted):
            pid = event.worker.partition("#")[2]
            variables = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
            threads.update(word for word in variables if word.startswith("OMP_NUM_THREADS="))
        if isinstance(event, CellEnded) and event.cell.pruner == "random":
            gate.unlink()  # the other worker has waited all the time

    outcome = run_sweep(
        workshop.config(
            pruners=[{"name": "first", "options": {"gate": str(gate)}}, "random"],
            **{**SMALL, "executor": {"name": "local", "options": {"workers": 2}}},
        ),
        directory=tmp_path / "run",
        host=workshop.host,
        display=display,
        track=False,
    )
    store = SweepStore(outcome.directory)
    results = [store.result(cell.id) or {} for cell in store.plan()]
    assert outcome.done == 3
    assert len({result["worker"]["pid"] for result in results}) == 2
    assert threads == {"OMP_NUM_THREADS=4"}


@pytest.mark.thorough
def test_a_worker_that_the_kernel_killed_for_its_memory_gets_smaller_batches_once(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count()
    monkeypatch.setattr("tokenprune.sweep.executors.local.oom_kills", lambda: next(count))
    outcome = run_sweep(
        workshop.config(pruners=["dying"], **{**SMALL, "executor": "local", "batch_size": 8}),
        directory=tmp_path / "run",
        host=workshop.host,
        track=False,
    )
    assert (outcome.done, outcome.failed) == (1, 1)
    store = SweepStore(outcome.directory)
    error = store.error(next(cell.id for cell in store.plan() if cell.pruner == "dying"))
    assert error is not None
    assert (error["attempts"], error["batch_size"]) == (2, 2)
    assert error["message"] == "2 workers died in this cell, the last with the kernel's killer, out of memory"


def test_a_device_that_is_not_here_is_told_before_anything_begins(workshop: Workshop, tmp_path: Path) -> None:
    for executor in ("local", "inline"):
        for device in ("cuda:63", "nonsense"):
            config = workshop.config(**{**SMALL, "executor": executor, "device": [device]})
            with pytest.raises(ConfigError, match=f"there is no device `{device}` here") as caught:
                run_sweep(config, directory=tmp_path / "run", host=workshop.host)
            assert "this machine has cpu" in caught.value.hint
    assert not list((tmp_path / "run").glob("cells/*"))


@pytest.mark.thorough
def test_a_device_that_fails_takes_no_cell_along(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is here, says the driver; but nothing can be put on it."""
    monkeypatch.setattr("tokenprune.sweep.executors.local.check_devices", lambda listed: None)
    config = workshop.config(pruners=["first"], **{**SMALL, "executor": "local", "device": ["cuda:63", "cpu"]})
    outcome = run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False)
    assert (outcome.done, outcome.failed) == (2, 0)


@pytest.mark.thorough
def test_a_pruner_that_loses_the_device_is_found_and_the_others_go_on(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(pruners=["losing", "first"], **{**SMALL, "executor": "local"})
    outcome = run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False)
    assert (outcome.done, outcome.failed) == (2, 1)
    store = SweepStore(outcome.directory)
    error = store.error(next(cell.id for cell in store.plan() if cell.pruner == "losing"))
    assert error is not None
    assert error["message"] == "3 workers died in this cell, the last with exit status 1"
    assert "the device `cpu` is lost: CUDA error: an illegal memory access was encountered" in error["traceback"]


def test_in_this_process_a_lost_device_ends_the_sweep_with_a_line(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(pruners=["losing"], **SMALL)
    with pytest.raises(PrerequisiteError, match="the device `cpu` is lost: CUDA error") as caught:
        run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False)
    assert "\n" not in caught.value.message
    assert "run the same command again" in caught.value.hint


@pytest.mark.thorough
def test_a_dead_worker_is_noticed_though_a_child_of_it_lives(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(pruners=["forking"], **{**SMALL, "executor": "local"})
    began = time.monotonic()
    outcome = run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False)
    assert (outcome.done, outcome.failed) == (1, 1)
    assert time.monotonic() - began < 100  # the children sleep for 120 seconds


def test_what_the_kernel_says_of_its_killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert oom_kills() >= 0
    path = tmp_path / "vmstat"
    path.write_text("pgfault 12\noom_kill 7\ndrop_slab 0\n", encoding="ascii")
    monkeypatch.setattr("tokenprune.sweep.executors.local._VMSTAT", path)
    assert oom_kills() == 7
    monkeypatch.setattr("tokenprune.sweep.executors.local._VMSTAT", tmp_path / "missing")
    assert oom_kills() == 0


def test_the_number_of_workers_is_an_option_of_the_command(
    capsys: pytest.CaptureFixture[str], workshop: Workshop, tmp_path: Path
) -> None:
    run = Commands(capsys)
    path = tmp_path / "sweep.yaml"
    path.write_text(f"models: [{workshop.model}]\ntasks: [toy]\npruners: [first]\nbudgets: [50%]\ndevice: cpu\n")
    words = ("sweep", str(path), "--out", str(tmp_path / "run"), "--quiet")
    ran = run(*words, "--workers", "0")
    assert (ran.code, ran.out) == (2, "")
    assert "--workers" in ran.err
    ran = run(*words, "--workers", "2", "--executor", "ray")
    assert ran.code == 2
    assert "error: unknown option `workers` of executor `ray`" in ran.err
    assert "hint: its options: address, actors" in ran.err
    assert not list((tmp_path / "run").glob("cells"))
