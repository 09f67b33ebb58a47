"""Whether a device has other work, before a measurement and during it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import psutil
import torch

from tokenprune.errors import PrerequisiteError
from tokenprune.evaluation.machine.nvml import Gpu, now

OnBusy = Literal["mark", "refuse"]

LIMIT = 0.1
"""Share of a device from which other work counts as busy."""

_QUIET = {"cpu": 0.2, "cuda": 1.0}
"""Seconds for which this process keeps still before a measurement, by device: a driver's sample period is up to 1 s."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Other work on the device and on the CPUs that feed it, as shares from 0 to 1.

    Args:
        busy: Whether any share is above the limit; `None` if none is and that of the device itself is not known.
        before: Shares while this process kept still, by device (`cpu`, `gpu`).
        during: Shares of other processes during the measurement.
        limit: Share from which other work counts.
        unknown: By figure, why it is not known.
    """

    busy: bool | None
    before: Mapping[str, float]
    during: Mapping[str, float]
    limit: float = LIMIT
    unknown: Mapping[str, str] = field(default_factory=dict)

    def explain(self) -> str:
        """The figures above the limit, or why they are not known, in words."""
        if self.busy is None:
            return "; ".join(self.unknown.values()) or "nothing was found out"
        found = [
            f"{100.0 * share:.0f} % of the {name.upper()} {when} it"
            for when, shares in (("before", self.before), ("during", self.during))
            for name, share in shares.items()
            if share > self.limit
        ]
        return f"other work had {' and '.join(found)}" if found else "no other work"


class Watch:
    """Measures other work around one measurement: `before`, then the measurement, then `after`.

    Args:
        device: Where it runs.
        gpu: The driver's view of it, if there is one.
        reason: Why there is none.
        limit: Share from which other work counts as busy.
    """

    def __init__(self, device: torch.device, gpu: Gpu | None = None, reason: str = "", *, limit: float = LIMIT) -> None:
        self._device, self._gpu, self._limit = device, gpu, limit
        self._unknown: dict[str, str] = {}
        if device.type != "cpu" and gpu is None:
            self._unknown["gpu"] = reason
        self._before: dict[str, float] = {}
        self._began: tuple[_CpuTimes | None, float] | None = None

    def before(self) -> Busy:
        """Keep still for a moment and measure who works; the measurement begins when this returns."""
        start = _cpu_times()
        time.sleep(_QUIET.get(self._device.type, _QUIET["cpu"]))
        self._before = self._cpu_share(start, _cpu_times())
        if self._gpu is not None:
            self._add_gpu(self._gpu.use, self._before)
        self._began = _cpu_times(), now()
        return self._verdict({})

    def after(self) -> Busy:
        """What was found before the measurement, and during it up to now."""
        assert self._began is not None  # noqa: S101 - `before` comes first
        start, since = self._began
        during = self._cpu_share(start, _cpu_times())
        gpu = self._gpu
        if gpu is not None:
            self._add_gpu(lambda: gpu.use_by_others(since), during)
        return self._verdict(during)

    def _verdict(self, during: Mapping[str, float]) -> Busy:
        shares = [*self._before.values(), *during.values()]
        known = "cpu" in self._before if self._device.type == "cpu" else "gpu" in self._before
        busy = True if any(share > self._limit for share in shares) else False if known else None
        return Busy(busy, dict(self._before), dict(during), self._limit, dict(self._unknown))

    def _add_gpu(self, read: Callable[[], float], shares: dict[str, float]) -> None:
        try:
            shares["gpu"] = read()
        except PrerequisiteError as error:
            self._unknown["gpu"] = error.message

    def _cpu_share(self, start: _CpuTimes | None, end: _CpuTimes | None) -> dict[str, float]:
        if start is None or end is None or end.total <= start.total:
            self._unknown.setdefault("cpu", "the system does not tell what the CPUs do")
            return {}
        others = (end.used - start.used) - (end.ours - start.ours)
        return {"cpu": min(1.0, max(0.0, others / (end.total - start.total)))}


@dataclass(frozen=True, slots=True)
class _CpuTimes:
    """Seconds of all CPUs together: passed, used by anyone, used by this process."""

    total: float
    used: float
    ours: float


def _cpu_times() -> _CpuTimes | None:
    """Seconds so far; time stolen by other machines on the same hardware counts as used."""
    try:
        seconds = psutil.cpu_times()._asdict()
    except Exception:  # noqa: BLE001 - on a system that does not tell, psutil raises nearly anything
        return None
    total = sum(value for name, value in seconds.items() if not name.startswith("guest"))  # in `user` and `nice`
    return _CpuTimes(total, total - seconds["idle"] - seconds.get("iowait", 0.0), time.process_time())
