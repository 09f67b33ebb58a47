"""The executor `local`: long-lived worker processes, one per GPU or as many as asked for, replaced where they die."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tokenprune.cell import Cell
from tokenprune.errors import ConfigError, PrerequisiteError
from tokenprune.evaluation.machine.devices import check_devices
from tokenprune.plugins import Host
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.scheduler import Dispatcher
from tokenprune.sweep.messages import Died, Message, Order, Report, message_of
from tokenprune.sweep.store.atomic_io import make_folder, open_log
from tokenprune.sweep.store.result_store import SweepStore

LOG_TAIL = 2000
"""Characters of a dead worker's log that go into its cell's error."""

LOOK_S = 1.0
"""Seconds of silence after which it is looked whether all workers are still alive."""

GRACE_S = 5.0
"""Seconds that a worker gets to leave before it is killed."""

_VMSTAT = Path("/proc/vmstat")
_POSIX = os.name == "posix"


class LocalPool:
    """Worker processes on this machine.

    A worker keeps its model between cells and runs one at a time: with one worker per device, measurements are alone on
    it. Workers load plugins from the installed entry points, like any other process.

    Args:
        store: The sweep directory.
        config: The sweep; its devices, with all GPUs for `auto`, get a worker each.
        host: Not used: workers load plugins themselves.
        workers: How many, in place of one per device; they take the devices in turns.

    Raises:
        ConfigError: `workers` is not a number of workers, or a device of the sweep is not here.
        PrerequisiteError: This is Windows, whose pipes cannot be waited for together.
    """

    def __init__(self, store: SweepStore, config: SweepConfig, host: Host, *, workers: int | str = "") -> None:
        del host  # a worker makes its own: plugins do not travel between processes
        if not _POSIX:
            raise PrerequisiteError(
                "the executor `local` runs on Linux and macOS only",
                hint="`--executor inline` runs the cells in this process",
            )
        if workers != "" and (not str(workers).isdigit() or int(workers) < 1):
            raise ConfigError(
                f"`workers` must be a whole number of at least 1, got `{workers}`",
                hint="leave it out for one per device",
            )
        check_devices(config.device)
        self._store = store
        self._config = config
        self._workers = int(workers) if workers != "" else None

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; see `tokenprune.sweep.executors.executor.Executor`."""
        devices = worker_devices(self._config.device, self._workers)
        crew = ProcessCrew(self._store, devices, self._config.overlays)
        return Dispatcher(self._store, crew, self._config.share).run(cells)


def worker_devices(listed: Sequence[str], workers: int | None = None) -> tuple[str, ...]:
    """The device of every worker.

    Args:
        listed: Devices of the sweep; `auto` stands for all GPUs of this machine, or for its CPU where it has none.
        workers: How many workers; without it one per device.
    """
    devices = [found for device in listed for found in (_all_gpus() or ["cpu"] if device == "auto" else [device])]
    return tuple(itertools.islice(itertools.cycle(devices), workers or len(devices)))


def _all_gpus() -> list[str]:
    import torch  # asked for its count it asks the driver, and makes no context on any GPU

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@dataclass
class _Worker:
    """One process, its log, and the part of a line that it has sent so far.

    `killed_before` is how many processes the kernel had killed for want of memory when this one was started.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    killed_before: int
    buffer: bytes = field(default=b"")


class ProcessCrew:
    """Processes that read orders on standard input and answer on standard output; those on the CPU share cores."""

    def __init__(self, store: SweepStore, devices: Sequence[str], overlays: int) -> None:
        self._store = store
        self._devices = {f"{place}:{device}": device for place, device in enumerate(devices)}
        self._overlays = overlays
        self._workers: dict[str, _Worker] = {}
        self._selector = selectors.DefaultSelector()

    def slots(self) -> Sequence[str]:
        """One per listed device; a device that is listed twice has two."""
        return tuple(self._devices)

    def place(self, slot: str) -> str:
        """The device: workers on the CPU share it, and so do those that are given one GPU."""
        return self._devices[slot]

    def hire(self, slot: str) -> str:
        """Start a process."""
        device = self._devices[slot]
        log = self._store.directory / "logs" / f"worker-{slot.replace(':', '-')}.log"
        make_folder(log.parent)
        lock = self._store.lock_descriptor
        with open_log(log) as stream:
            start = stream.tell()
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tokenprune.sweep.worker.worker_main"),
                    *(self._store.directory, device, str(self._overlays), self._store.token),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C in a terminal goes to the parent only, which then stops the workers
                pass_fds=() if lock is None else (lock,),  # the directory stays locked until the last worker is gone
            )
        worker = _Worker(f"{device}#{process.pid}", process, log, start, oom_kills())
        self._workers[worker.name] = worker
        self._selector.register(_pipe(worker), selectors.EVENT_READ, worker)
        return worker.name

    def give(self, worker: str, order: Order) -> None:
        """Write the order into the worker's input."""
        stream = self._workers[worker].process.stdin
        assert stream is not None  # noqa: S101 - it was opened as a pipe
        with suppress(BrokenPipeError):  # it died just now; its closed output says so next
            stream.write(json.dumps(order.to_json()).encode() + b"\n")
            stream.flush()

    def listen(self) -> Iterator[Message]:
        """Wait for the next output of any worker."""
        heard = self._selector.select(LOOK_S)
        for key, _ in heard:
            worker: _Worker = key.data
            data = os.read(key.fd, 65536)
            if data:
                yield from _messages(worker, data)
            else:
                yield self._lose(worker)
        if not heard:  # a process that a dead worker has started may hold its pipe open
            for worker in [each for each in self._workers.values() if each.process.poll() is not None]:
                yield self._lose(worker)

    def _lose(self, worker: _Worker) -> Died:
        self._selector.unregister(_pipe(worker))
        del self._workers[worker.name]
        _stop([worker])
        return _death(worker)

    def dismiss(self) -> None:
        """Close the workers' inputs, which ends them."""
        _stop(list(self._workers.values()))
        self._workers.clear()
        self._selector.close()

    def _environment(self) -> dict[str, str]:
        """The same modules as here, and a fair share of the cores for each worker that computes on them."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        sharing = sum(1 for device in self._devices.values() if device == "cpu")
        if sharing > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sharing)))
        return environment


def oom_kills() -> int:
    """Processes of this machine that the kernel has killed for want of memory; 0 where it does not tell."""
    try:
        lines = _VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _messages(worker: _Worker, data: bytes) -> Iterator[Message]:
    """Whole lines of a worker's output; the rest waits for more."""
    *lines, worker.buffer = (worker.buffer + data).split(b"\n")
    for line in lines:
        yield message_of(worker.name, json.loads(line))


def _pipe(worker: _Worker) -> int:
    stream = worker.process.stdout
    assert stream is not None  # noqa: S101 - it was opened as a pipe
    return stream.fileno()


def _death(worker: _Worker) -> Died:
    code, log = worker.process.returncode, _tail(worker.log, worker.log_start)
    if code == -signal.SIGKILL and oom_kills() > worker.killed_before:
        return Died(worker.name, "the kernel's killer, out of memory", log, out_of_memory=True)
    return Died(worker.name, _cause(code), log)


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read().decode(errors="replace")[-LOG_TAIL:]
    except FileNotFoundError:  # somebody tidied up
        return ""


def _stop(workers: Sequence[_Worker]) -> None:
    """Close the workers' inputs, which ends them, and do not wait for ever."""
    for worker in workers:
        for stream in (worker.process.stdin, worker.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
    for worker in workers:
        try:
            worker.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
