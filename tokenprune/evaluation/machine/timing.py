"""Clocks of the devices, and the state of the process in which times are taken."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Notes moments of the work on one device."""

    name: str

    def mark(self) -> Any:
        """Note the moment at which the device gets to this point."""
        ...

    def settle(self) -> None:
        """Wait until the device has nothing left to do."""
        ...

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds between two moments, once the device has settled."""
        ...


class HostClock:
    """The monotonic clock of the host.

    Args:
        device: An accelerator without events of its own is waited for at every moment.
    """

    name = "perf_counter"

    def __init__(self, device: torch.device) -> None:
        self._wait = None if device.type == "cpu" else torch.get_device_module(device).synchronize

    def mark(self) -> float:
        """The host's time, in seconds."""
        self.settle()
        return time.perf_counter()

    def settle(self) -> None:
        """Wait for the accelerator, where there is one."""
        if self._wait is not None:
            self._wait()

    def between(self, begin: float, end: float) -> float:
        """Milliseconds."""
        return 1000.0 * (end - begin)


class CudaClock:
    """Events on the current stream of a GPU: nobody waits for the device while it works."""

    name = "cuda events"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """An event that the device passes when it has done all work before."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Milliseconds."""
        return float(begin.elapsed_time(end))


def clock_of(device: torch.device) -> Clock:
    """CUDA events on a GPU, `perf_counter` elsewhere."""
    return CudaClock(device) if device.type == "cuda" else HostClock(device)


@contextlib.contextmanager
def pinned_threads(threads: int | None) -> Iterator[int]:
    """Torch runs with this many CPU threads inside the block, and with as many as before afterwards.

    Args:
        threads: How many; `None` leaves what torch has, so that it is known and cannot change in between.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected inside the block: when it would be has nothing to do with what is measured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
