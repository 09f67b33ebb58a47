"""Other work on the device is seen before and during a measurement, and told apart from our own."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from tokenprune.evaluation.cost.energy import READINGS, energy_per_run, synchronised
from tokenprune.evaluation.machine import busy
from tokenprune.evaluation.machine.busy import Busy, Watch
from tokenprune.evaluation.machine.nvml import Gpu, gpu_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Machine = Callable[..., Any]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Two CPUs whose account is written here: each call adds what they did, in ticks, and what this process used."""
    stat = tmp_path / "stat"
    tick = 1.0 / os.sysconf("SC_CLK_TCK")
    passed = {"used": 500, "idle": 1000, "ours": 2.0}

    def add(used: int = 0, idle: int = 0, ours: int = 0, stolen: int = 0) -> None:
        passed["used"] += used
        passed["idle"] += idle
        passed["ours"] += ours * tick
        user = passed["used"] - 100
        stat.write_text(f"cpu  {user} 40 60 {passed['idle']} 30 0 0 {stolen} 7 7\ncpu0 1 2 3 4\n", encoding="ascii")

    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(busy.time, "process_time", lambda: passed["ours"])
    monkeypatch.setattr(busy.time, "sleep", lambda seconds: None)
    add()
    return add


def watched(machine: Machine, monkeypatch: pytest.MonkeyPatch, quiet: dict[str, int], run: dict[str, int]) -> Busy:
    watch = Watch(CPU)
    monkeypatch.setattr(busy.time, "sleep", lambda seconds: machine(**quiet))
    watch.before()
    machine(**run)
    return watch.after()


@pytest.mark.parametrize(
    ("quiet", "run", "before", "during"),
    [
        ({"idle": 40}, {"used": 100, "idle": 100, "ours": 100}, 0.0, 0.0),  # only we worked
        ({"used": 20, "idle": 20}, {"used": 100, "idle": 100, "ours": 100}, 0.5, 0.0),
        ({"idle": 40}, {"used": 150, "idle": 50, "ours": 100}, 0.0, 0.25),
        ({"used": 4, "idle": 36}, {"used": 110, "idle": 90, "ours": 100}, 0.1, 0.05),  # at the limit is not above
        ({"idle": 40}, {"used": 99, "idle": 101, "ours": 100}, 0.0, 0.0),  # ticks are coarse; never below 0
        ({"idle": 40}, {"idle": 150, "stolen": 50}, 0.0, 0.25),  # by another machine on the same hardware
    ],
)
def test_shares_of_the_cpu(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    quiet: dict[str, int],
    run: dict[str, int],
    before: float,
    during: float,
) -> None:
    found = watched(machine, monkeypatch, quiet, run)
    assert found.before == {"cpu": pytest.approx(before)}
    assert found.during == {"cpu": pytest.approx(during)}
    assert found.busy is (max(before, during) > 0.1)
    assert found.unknown == {}


def test_it_is_said_in_words(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = watched(machine, monkeypatch, {"used": 20, "idle": 20}, {"used": 80, "idle": 20})
    assert found.explain() == "other work had 50 % of the CPU before it and 80 % of the CPU during it"
    assert Busy(False, {"cpu": 0.1}, {}).explain() == "no other work"


@pytest.mark.parametrize("text", [None, "", "intr 1 2 3 4 5 6\n"])
def test_where_the_kernel_does_not_tell_nothing_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    stat = tmp_path / "stat"
    if text is not None:
        stat.write_text(text, encoding="ascii")
    watch = Watch(CPU)
    watch.before()
    found = watch.after()
    assert (found.busy, found.before, found.during) == (None, {}, {})
    assert "does not tell what the CPUs do" in found.unknown["cpu"]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this kernel keeps no such account")
def test_our_own_work_on_this_machine_is_not_taken_for_others() -> None:
    watch = Watch(CPU)
    watch.before()
    began, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < 0.5:
        sum(range(1000))
    ours = (time.process_time() - used) / ((time.perf_counter() - began) * (os.cpu_count() or 1))
    found = watch.after()
    assert found.during["cpu"] <= 1.0 - ours + 0.1  # what is left for others, whoever else is here


# --- a GPU's driver -------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


class NVMLError_NotFound(NVMLError):
    """The library's own name."""


def driver(
    *, joules: Sequence[float] = (), gpu: int = 0, processes: Sequence[tuple[int, int]] | Exception = ()
) -> ModuleType:
    """A stand-in for `pynvml`."""
    found = ModuleType("pynvml")
    counter = itertools.chain(joules, itertools.repeat(joules[-1] if joules else 0.0))

    def samples(handle: str, since: int) -> list[Any]:
        if isinstance(processes, Exception):
            raise processes
        return [SimpleNamespace(pid=pid, smUtil=use) for pid, use in processes]

    members = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1000.0 * next(counter),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=gpu),
        "nvmlDeviceGetProcessUtilization": samples,
    }
    for name, member in members.items():
        setattr(found, name, member)
    return found


def test_a_gpu_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(gpu=25))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    gpu, reason = gpu_of(CUDA)
    assert (gpu is not None, reason) == (True, "")
    assert gpu is not None
    assert gpu._handle == "GPU-12-34"
    assert gpu.use() == 0.25


def test_without_the_package_there_is_a_reason(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu, reason = gpu_of(CUDA)
    assert gpu is None
    assert reason == "the package `nvidia-ml-py` is not installed; pip install 'tokenprune-vlm[gpu]'"
    machine(idle=10)
    watch = Watch(CUDA, gpu, reason)
    monkeypatch.setattr(busy.time, "sleep", lambda seconds: machine(idle=40))
    found = watch.before()
    assert (found.before, found.busy) == ({"cpu": 0.0}, None)  # idle CPUs say nothing about the GPU
    assert watch.after().unknown["gpu"] == reason


def test_a_silent_driver_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NVMLError("Driver Not Loaded")

    silent = driver()
    silent.nvmlInit = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", silent)
    gpu, reason = gpu_of(CUDA)
    assert gpu is None
    assert "the GPU's driver does not tell: Driver Not Loaded" in reason


@pytest.mark.parametrize(
    ("processes", "share"),
    [
        ([], 0.0),
        ([("ours", 90)], 0.0),
        ([("ours", 40), (7, 30), (7, 50), (8, 5)], 0.55),
        ([(7, 80), (8, 20)], 0.2),  # in a container: the one that works most is us
        ([(7, 80)], 0.0),
        (NVMLError_NotFound(), 0.0),
    ],
)
def test_use_of_a_gpu_by_others(processes: Any, share: float) -> None:
    known = (
        processes
        if isinstance(processes, Exception)
        else [(os.getpid() if pid == "ours" else pid, use) for pid, use in processes]
    )
    assert Gpu(driver(processes=known), "handle").use_by_others(0.0) == pytest.approx(share)


def test_a_busy_gpu_is_seen(machine: Machine) -> None:
    library = driver(gpu=60, processes=[(os.getpid(), 90), (7, 30)])
    watch = Watch(CUDA, Gpu(library, "handle"))
    machine(idle=10)
    watch.before()
    machine(idle=10)
    found = watch.after()
    assert (found.before["gpu"], found.during["gpu"], found.busy) == (0.6, 0.3, True)


def test_a_gpu_that_does_not_tell_is_unknown_and_not_idle(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    library = driver(processes=NVMLError("Not Supported"))
    watch = Watch(CUDA, Gpu(library, "handle"))
    monkeypatch.setattr(busy.time, "sleep", lambda seconds: machine(idle=40))
    watch.before()
    machine(idle=10)
    found = watch.after()
    assert "gpu" not in found.during
    assert "Not Supported" in found.unknown["gpu"]


# --- energy ---------------------------------------------------------------------------------------------------------


def test_energy_is_per_run_and_never_zero_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("tokenprune.evaluation.cost.energy.time.perf_counter", lambda: float(next(clock)))
    runs: list[int] = []
    gpu = Gpu(driver(joules=[0.0, 30.0, 100.0, 160.0, 200.0, 220.0]), "handle")
    found = energy_per_run(gpu, lambda: runs.append(1), window=2.5)
    assert found is not None
    each = len(runs) // READINGS
    assert each == 2
    assert (found.q1, found.median, found.q3, found.repeats) == (12.5, 15.0, 22.5, READINGS)
    assert energy_per_run(None, lambda: None) is None


def test_a_counter_that_stands_still_is_an_error() -> None:
    from tokenprune.errors import PrerequisiteError

    with pytest.raises(PrerequisiteError, match="stands still"):
        energy_per_run(Gpu(driver(joules=[5.0]), "handle"), lambda: None, window=0.0001)


def test_on_a_cpu_nothing_is_waited_for() -> None:
    assert synchronised(lambda: 3, CPU)() == 3
