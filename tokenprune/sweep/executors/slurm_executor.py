"""The executor `slurm`: long-lived jobs, each a worker that keeps its model between cells.

A job is handed its cells through files (see `file_channel.py`), so nothing but the shared sweep directory
needs to be reachable. A job that waits in the queue holds no cell back: only a running one is given any.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.cell import Cell
from tokenprune.errors import ConfigError, PrerequisiteError
from tokenprune.plugins import Host
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.file_channel import INBOX, OUTBOX, PULSE, STOP, Lines, Pulse, make_box, post
from tokenprune.sweep.executors.scheduler import Dispatcher
from tokenprune.sweep.messages import Died, Message, Order, Report, message_of
from tokenprune.sweep.store.result_store import SweepStore

POLL_S = 0.2
GRACE_S = 10.0
"""Seconds that a job gets to leave before it is cancelled."""

CLUSTERS = ("slurm", "local", "debug")

_TAKEN_AWAY = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "REQUEUED")
"""States of jobs that Slurm ended for reasons of its own."""


class SlurmExecutor:
    """Jobs of a Slurm cluster, submitted by submitit.

    Args:
        store: The sweep directory, on a file system that all nodes share.
        config: The sweep.
        host: Not used: workers load plugins themselves.
        jobs: How many at most; without it as many as the sweep lists devices.
        partition: Slurm partition.
        account: Slurm account.
        qos: Slurm quality of service.
        gpus: GPUs per job; a job uses one.
        cpus: Processor cores per job.
        mem_gb: Memory per job in GB.
        minutes: Time limit of a job; a job that reaches it is replaced, and its cell goes on in the next.
        cluster: `slurm`, `local` (processes of this machine, no Slurm) or `debug` (threads of this process).

    Raises:
        PrerequisiteError: submitit is not installed, or there is no Slurm here.
        ConfigError: A number is not one, or the kind of cluster is unknown.
    """

    def __init__(
        self,
        store: SweepStore,
        config: SweepConfig,
        host: Host,
        *,
        jobs: int | str = "",
        partition: str = "",
        account: str = "",
        qos: str = "",
        gpus: int | str = 1,
        cpus: int | str = 4,
        mem_gb: int | str = 32,
        minutes: int | str = 240,
        cluster: str = "slurm",
    ) -> None:
        del host
        if cluster not in CLUSTERS:
            raise ConfigError(f"`cluster` must be one of {', '.join(CLUSTERS)}, got `{cluster}`", hint="leave it out")
        self._store = store
        self._config = config
        self._jobs = _number("jobs", jobs, 1) if jobs != "" else len(config.device)
        numbers = {
            "timeout_min": _number("minutes", minutes, 1),
            "cpus_per_task": _number("cpus", cpus, 1),
            "mem_gb": _number("mem_gb", mem_gb, 1),
            "gpus_per_node": _number("gpus", gpus, 0) if cluster == "slurm" else 0,
        }
        names = {"slurm_partition": partition, "slurm_account": account, "slurm_qos": qos}
        settings = {**numbers, **{key: value for key, value in names.items() if value}}
        self._submitter = _submitter(store.directory / "logs" / "slurm", cluster, settings)
        self._threads = cluster == "debug"

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; see `tokenprune.sweep.executors.executor.Executor`."""
        crew = JobCrew(self._submitter, self._store, self._config, self._jobs, threads=self._threads)
        return Dispatcher(self._store, crew, self._config.share).run(cells)


def serve_mailbox(box: str, directory: str, device: str, overlays: int, token: str) -> None:
    """What a job runs: orders from the inbox, reports to the outbox, until it is told to stop or its sender is dead."""
    from tokenprune.sweep.worker.worker_main import Worker

    folder = Path(box)
    worker = Worker(directory, device, overlays, token)
    inbox, pulse = Lines(folder / INBOX), Pulse(folder.parent / PULSE)
    say = functools.partial(post, folder / OUTBOX)
    say({"report": "ready"})
    while not pulse.silent():
        try:
            lines = inbox.new()
        except FileNotFoundError:
            return  # the sender is done and took the folder away
        for line in lines:
            if line == STOP:
                return
            say({"report": "began"})
            say(worker.serve(Order.from_json(line), say))
        time.sleep(POLL_S)


@dataclass
class _Hired:
    """One job, its mailbox, and the thread that runs it where there is no other process."""

    job: Any
    box: Path
    outbox: Lines
    thread: threading.Thread | None = None


class JobCrew:
    """Jobs, one per slot."""

    def __init__(self, submitter: Any, store: SweepStore, config: SweepConfig, jobs: int, *, threads: bool) -> None:
        self._submitter = submitter
        self._store = store
        self._config = config
        self._count = jobs
        self._threads = threads
        self._mail = store.directory / "mail" / store.token
        self._pulse = Pulse(self._mail / PULSE)
        self._hired: dict[str, _Hired] = {}
        self._number = 0

    def slots(self) -> Sequence[str]:
        """One per job that may run at a time."""
        shutil.rmtree(self._mail.parent, ignore_errors=True)  # jobs that a killed process left behind end with it
        return [f"job-{number}" for number in range(self._count)]

    def place(self, slot: str) -> str:
        """Slurm gives a job its own share of a node; without it all jobs are on this machine."""
        return slot if self._submitter.cluster == "slurm" else self._device(slot)

    def hire(self, slot: str) -> str:
        """Submit a job."""
        self._number += 1
        box = self._mail / f"{slot}-{self._number}"
        make_box(box)
        self._pulse.beat()
        place = (str(self._store.directory), self._device(slot), self._config.overlays, self._store.token)
        with _module_path():
            job = self._submitter.submit(serve_mailbox, str(box), *place)
        name = f"{slot}#{job.job_id}"
        self._hired[name] = _Hired(job, box, Lines(box / OUTBOX), self._in_thread(job))
        return name

    def give(self, worker: str, order: Order) -> None:
        """Put the order into the job's inbox."""
        post(self._hired[worker].box / INBOX, order.to_json())

    def listen(self) -> Iterator[Message]:
        """What the jobs have written since the last look, and which are gone."""
        time.sleep(POLL_S)
        self._pulse.beat()
        for name, hired in list(self._hired.items()):
            gone = not hired.thread.is_alive() if hired.thread is not None else hired.job.done()
            for line in hired.outbox.new():  # after the look at the job: what it wrote last is not lost
                yield message_of(name, line)
            if gone:
                del self._hired[name]
                state = "DONE" if hired.thread is not None else str(hired.job.state)
                log = "" if hired.thread is not None else (hired.job.stderr() or "")[-2000:]
                yield Died(
                    name,
                    f"job state {state}",
                    log,
                    out_of_memory=state.startswith("OUT_OF_ME"),
                    blameless=state.startswith(_TAKEN_AWAY),
                )

    def dismiss(self) -> None:
        """Tell the jobs to stop, cancel those that do not, and take the mail away."""
        for hired in self._hired.values():
            with suppress(OSError):
                post(hired.box / INBOX, STOP)
        deadline = time.monotonic() + GRACE_S
        for hired in self._hired.values():
            if hired.thread is not None:
                hired.thread.join(max(0.0, deadline - time.monotonic()))
                continue
            while not hired.job.done() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if not hired.job.done():
                hired.job.cancel(check=False)
        self._hired.clear()
        shutil.rmtree(self._mail, ignore_errors=True)

    def _device(self, slot: str) -> str:
        """Slurm shows a job its own GPU only, so that `auto` finds it; `cpu` stays what it is."""
        return "cpu" if all(device == "cpu" for device in self._config.device) else "auto"

    def _in_thread(self, job: Any) -> threading.Thread | None:
        """A job of the kind `debug` runs where somebody asks for its result."""
        if not self._threads:
            return None
        thread = threading.Thread(target=job.results, daemon=True)
        thread.start()
        return thread


@contextmanager
def _module_path() -> Iterator[None]:
    """Let jobs, which inherit the environment of whoever submits them, find the same modules as this process."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _submitter(folder: Path, cluster: str, settings: dict[str, Any]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise PrerequisiteError(
            "the executor `slurm` needs the package `submitit`", hint="pip install 'tokenprune-vlm[slurm]'"
        ) from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise PrerequisiteError(
            "there is no Slurm here (no command `sbatch`)",
            hint="run it on a login node; `--executor-option cluster=local` tries it without Slurm",
        )
    made = submitit.AutoExecutor(folder=folder, cluster=cluster)
    made.update_parameters(name="tokenprune", **settings)
    return made


def _number(name: str, text: int | str, least: int) -> int:
    if not str(text).isdigit() or int(text) < least:
        raise ConfigError(f"`{name}` must be a whole number of at least {least}, got `{text}`", hint="leave it out")
    return int(text)
