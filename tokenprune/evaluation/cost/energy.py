"""Energy of a run, where the driver of the device tells it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from tokenprune.errors import PrerequisiteError
from tokenprune.evaluation.cost.spread import Spread
from tokenprune.evaluation.machine.nvml import Gpu

#: Seconds that one reading spans: the driver renews its counter about every 0.1 s.
WINDOW = 1.0
READINGS = 3


def energy_per_run(gpu: Gpu | None, run: Callable[[], object], *, window: float = WINDOW) -> Spread | None:
    """Joules of one run of the whole device, idle power among them: runs back to back for some windows.

    Args:
        gpu: The driver's view of the device; `None` where there is none.
        run: Runs once, to its end.
        window: Seconds of one reading.

    Returns:
        Median and quartiles over the windows; `None` where nothing is told, never 0.

    Raises:
        PrerequisiteError: The device has no such counter.
    """
    if gpu is None:
        return None
    readings = []
    for _ in range(READINGS):
        began, before, runs = time.perf_counter(), gpu.joules(), 0
        while time.perf_counter() - began < window:
            run()
            runs += 1
        readings.append((gpu.joules() - before) / runs)
    if not any(readings):
        raise PrerequisiteError("the GPU's energy counter stands still", hint="`nvidia-smi -q -d POWER` shows it")
    return Spread.of(readings)


def synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same run up to the device's end of it."""

    def whole() -> object:
        made = run()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        return made

    return whole
