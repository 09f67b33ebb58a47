"""Whether a device has other work: looked at before a measurement and during it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from tokenprune.errors import PrerequisiteError
from tokenprune.evaluation.machine.nvml import Gpu, now

OnBusy = Literal["mark", "refuse"]

LIMIT = 0.1
"""Share of a device from which other work counts as busy."""

_QUIET = {"cpu": 0.2, "cuda": 1.0}
"""Seconds for which this process keeps still before a measurement, by device: a driver's sample period is up to 1 s."""

_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Busy:
    """Other work on the device and on the CPUs that feed it, as shares from 0 to 1.

    Args:
        busy: Whether any share is above the limit; `None` where none is and that of the device itself is not known.
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
    """Looks for other work around one measurement: `before`, then the measurement, then `after`.

    Args:
        device: Where it runs.
        gpu: The driver's view of it, where there is one.
        reason: Why there is none.
        stat: The kernel's account of all CPUs.
        limit: Share from which other work counts as busy.
    """

    def __init__(
        self,
        device: torch.device,
        gpu: Gpu | None = None,
        reason: str = "",
        *,
        stat: Path = _STAT,
        limit: float = LIMIT,
    ) -> None:
        self._device, self._gpu = device, gpu
        self._stat, self._limit = stat, limit
        self._unknown: dict[str, str] = {}
        if device.type != "cpu" and gpu is None:
            self._unknown["gpu"] = reason
        self._before: dict[str, float] = {}
        self._began: tuple[_Account | None, float] | None = None

    def before(self) -> Busy:
        """Keep still for a moment and see who works; the measurement begins when this returns."""
        start = self._account()
        time.sleep(_QUIET.get(self._device.type, _QUIET["cpu"]))
        self._before = self._shares(start, self._account())
        if self._gpu is not None:
            self._ask("gpu", self._gpu.use, self._before)
        self._began = self._account(), now()
        return self._verdict({})

    def after(self) -> Busy:
        """What was found before the measurement, and during it up to now."""
        assert self._began is not None  # noqa: S101 - `before` comes first
        account, since = self._began
        during = self._shares(account, self._account())
        gpu = self._gpu
        if gpu is not None:
            self._ask("gpu", lambda: gpu.use_by_others(since), during)
        return self._verdict(during)

    def _verdict(self, during: Mapping[str, float]) -> Busy:
        shares = [*self._before.values(), *during.values()]
        known = "cpu" in self._before if self._device.type == "cpu" else "gpu" in self._before
        busy = True if any(share > self._limit for share in shares) else False if known else None
        return Busy(busy, dict(self._before), dict(during), self._limit, dict(self._unknown))

    def _ask(self, name: str, question: Callable[[], float], answers: dict[str, float]) -> None:
        try:
            answers[name] = question()
        except PrerequisiteError as error:
            self._unknown[name] = error.message

    def _shares(self, start: _Account | None, end: _Account | None) -> dict[str, float]:
        if start is None or end is None or end.total <= start.total:
            self._unknown.setdefault("cpu", f"`{self._stat}` does not tell what the CPUs do")
            return {}
        others = (end.used - start.used) - (end.ours - start.ours)
        return {"cpu": min(1.0, max(0.0, others / (end.total - start.total)))}

    def _account(self) -> _Account | None:
        """Seconds of all CPUs so far; time stolen by other machines on the same hardware is used by others, too."""
        try:
            fields = self._stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return None
        if len(fields) < 5 or fields[0] != "cpu":
            return None
        tick = 1.0 / os.sysconf("SC_CLK_TCK")
        times = [tick * int(value) for value in fields[1:9]]  # guests are counted under user and nice already
        return _Account(sum(times), sum(times) - sum(times[3:5]), time.process_time())


@dataclass(frozen=True, slots=True)
class _Account:
    """Seconds of all CPUs together: passed, used by anyone, used by this process."""

    total: float
    used: float
    ours: float
