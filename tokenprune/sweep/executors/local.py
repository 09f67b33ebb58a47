"""The executor `local`: long-lived worker processes, one per GPU or as many as asked for; dead ones are replaced."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from pydantic import Field

from tokenprune.errors import PrerequisiteError
from tokenprune.evaluation.machine.devices import check_devices
from tokenprune.plugins import Host
from tokenprune.sweep.config.executor_options import ExecutorOptions
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.scheduler import Scheduler
from tokenprune.sweep.executors.worker_pool import LOG_TAIL, Worker, WorkerPool
from tokenprune.sweep.messages import Assignment, WorkerDied, WorkerMessage
from tokenprune.sweep.store.atomic_io import make_folder, open_log
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.worker_main import WorkerSettings

_VMSTAT = Path("/proc/vmstat")
_POSIX = os.name == "posix"


class LocalOptions(ExecutorOptions):
    """Options of `local`.

    Args:
        workers: How many workers, in place of one per device; they take the devices in turns.
    """

    workers: int | None = Field(None, ge=1)


class LocalExecutor(Scheduler):
    """Worker processes on this machine; with one per device, measurements are alone on it.

    Raises:
        ConfigError: A device of the sweep is not here.
        PrerequisiteError: This is Windows, where no process inherits its pipe and the lock.
    """

    Options = LocalOptions

    def __init__(self, store: SweepStore, config: SweepConfig, host: Host, options: LocalOptions) -> None:
        if not _POSIX:
            raise PrerequisiteError(
                "the executor `local` runs on Linux and macOS only",
                hint="`--executor inline` runs the cells in this process",
            )
        check_devices(config.device)
        devices = worker_devices(config.device, options.workers)
        super().__init__(store, _ProcessPool(store, devices, config.overlays), config.share)


def worker_devices(listed: Sequence[str], workers: int | None = None) -> tuple[str, ...]:
    """The device of every worker.

    Args:
        listed: Devices of the sweep; `auto` stands for all GPUs of this machine, or for its CPU if it has none.
        workers: How many workers; without it one per device.
    """
    devices = [found for device in listed for found in (_all_gpus() or ["cpu"] if device == "auto" else [device])]
    return tuple(itertools.islice(itertools.cycle(devices), workers or len(devices)))


def _all_gpus() -> list[str]:
    import torch  # it asks the driver for the count, and makes no context on any GPU

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


class _ProcessPool(WorkerPool):
    """Worker processes; those on the CPU share its cores."""

    def __init__(self, store: SweepStore, devices: Sequence[str], overlays: int) -> None:
        super().__init__()
        self._store = store
        self._devices = {f"{place}:{device}": device for place, device in enumerate(devices)}
        self._overlays = overlays

    def slots(self) -> Sequence[str]:
        """One per listed device; a device that is listed twice has two."""
        return tuple(self._devices)

    def device_of(self, slot: str) -> str:
        """The device: workers on the CPU share it, and so do those on one GPU."""
        return self._devices[slot]

    def launch(self, slot: str) -> Worker:
        device, lock = self._devices[slot], self._store.lock_descriptor
        settings = WorkerSettings(str(self._store.directory), device, self._overlays, self._store.token)
        log = self._store.directory / "logs" / f"worker-{slot.replace(':', '-')}.log"
        make_folder(log.parent)
        # the directory stays locked until the last worker is gone
        return _Process(settings, log, self._environment(), () if lock is None else (lock,))

    def _environment(self) -> dict[str, str]:
        """The same modules as here, and a fair share of the cores for each worker that computes on them."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        sharing = sum(device == "cpu" for device in self._devices.values())
        if sharing > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sharing)))
        return environment


class _Process(Worker):
    """A worker process and this end of its pipe."""

    def __init__(
        self, settings: WorkerSettings, log: Path, environment: dict[str, str], descriptors: tuple[int, ...]
    ) -> None:
        self._log = log
        self._oom_kills = oom_kills()
        self._connection, theirs = Pipe()
        with theirs, open_log(log) as stream:
            self._log_start = stream.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tokenprune.sweep.worker.worker_main", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal goes to the parent only, which then stops the workers
                pass_fds=(theirs.fileno(), *descriptors),
            )
        self.name = f"{settings.device}#{self._process.pid}"
        self._send(settings)

    def submit(self, assignment: Assignment) -> None:
        self._send(assignment)

    def _send(self, what: WorkerSettings | Assignment) -> None:
        with suppress(OSError):  # it died just now
            self._connection.send(what)

    def messages(self) -> Sequence[WorkerMessage]:
        """Whatever is in the pipe; a process that has closed its end is about to exit."""
        found: list[WorkerMessage] = []
        try:
            while self._connection.poll():
                found.append(self._connection.recv())
        except (EOFError, OSError):
            try:
                self._process.wait(WorkerPool.grace_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return found

    def death(self) -> WorkerDied | None:
        """Asks the process and not the pipe, which a child of the worker may hold open."""
        code = self._process.poll()
        if code is None:
            return None
        log = ""
        with suppress(FileNotFoundError), self._log.open("rb") as stream:  # a user may have removed it
            stream.seek(self._log_start)
            log = stream.read().decode(errors="replace")[-LOG_TAIL:]
        if code == -signal.SIGKILL and oom_kills() > self._oom_kills:
            return WorkerDied("the kernel's killer, out of memory", log, out_of_memory=True)
        return WorkerDied(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}", log)

    def stop(self) -> None:
        self._connection.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def oom_kills() -> int:
    """Processes of this machine that the kernel has killed for want of memory; 0 if it does not tell."""
    try:
        lines = _VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
