"""The executor `ray`: actors on a Ray cluster, each a long-lived worker that keeps its model between cells.

Actors and not tasks: every task that uses a GPU gets a new process, and would load the model again for every cell.
All nodes see the sweep directory under the same path (a shared file system).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import Host
from tokenprune.sweep.config.executor_options import ExecutorOptions
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.file_channel import MailboxPool, MailboxWorker, serve_mailbox
from tokenprune.sweep.executors.scheduler import Scheduler
from tokenprune.sweep.executors.worker_pool import LOG_TAIL, Worker
from tokenprune.sweep.messages import StorageFailed, WorkerDied, WorkerMessage
from tokenprune.sweep.store.atomic_io import StorageError
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.worker_main import WorkerSettings

CONNECT_S = 5.0
"""Seconds that the head of a cluster gets to answer."""

START_S = 900.0
"""Seconds that the cluster gets to find room for an actor."""


class RayOptions(ExecutorOptions):
    """Options of `ray`.

    Args:
        address: Address of the cluster (`auto`, `10.0.0.1:6379`, `ray://...`); without it that of `RAY_ADDRESS`, else a
            Ray of this machine is started and stopped.
        actors: How many actors; without it one per GPU, or one per node of a cluster without GPUs.
    """

    address: str = ""
    actors: int | None = Field(None, ge=1)


class RayExecutor(Scheduler):
    """Actors on a Ray cluster, or on a Ray of this machine; a `device` of `cpu` means actors without a GPU.

    Raises:
        PrerequisiteError: Ray is not installed.
    """

    Options = RayOptions

    def __init__(self, store: SweepStore, config: SweepConfig, host: Host, options: RayOptions) -> None:
        super().__init__(store, _ActorPool(_import_ray(), store, config, options), config.share)


class _ActorPool(MailboxPool):
    """Actors, one per slot; Ray starts and watches them, files carry their messages."""

    def __init__(self, ray: Any, store: SweepStore, config: SweepConfig, options: RayOptions) -> None:
        super().__init__(store)
        self._ray = ray
        self._store = store
        self._config = config
        self._address = options.address or os.environ.get("RAY_ADDRESS", "")
        self._wanted = options.actors
        self._gpus = False
        self._own = not ray.is_initialized()

    def slots(self) -> Sequence[str]:
        """Connect, and count: GPUs, or the devices that are listed, or nodes."""
        if self._own:
            self._connect()
        devices = self._config.device
        only_cpu = all(device == "cpu" for device in devices)
        gpus = 0 if only_cpu else int(self._ray.cluster_resources().get("GPU", 0))
        self._gpus = gpus > 0
        nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
        count = self._wanted or gpus or (len(devices) if only_cpu else nodes)
        return [f"{'gpu' if self._gpus else 'cpu'}-{number}" for number in range(count)]

    def device_of(self, slot: str) -> str:
        """A GPU each; actors on CPUs may be on one node, and count as if they were."""
        return slot if self._gpus else "cpu"

    def launch_with_mailbox(self, slot: str, mailbox: Path) -> Worker:
        device = "auto" if self._gpus else "cpu"
        settings = WorkerSettings(str(self._store.directory), device, self._config.overlays, self._store.token)
        resources = {"num_cpus": 1, "num_gpus": int(self._gpus), "max_restarts": 0, "max_task_retries": 0}
        actor = self._ray.remote(RayActor).options(**resources).remote()
        return _Actor(f"{slot}#{self._launched}", mailbox, self._ray, actor, settings)

    def shutdown(self) -> None:
        super().shutdown()
        if self._own:
            self._ray.shutdown()

    def _connect(self) -> None:
        _check_address(self._address)
        # the same modules as here; Ray does not hand on the path of a driver
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if not self._address:
            wanted = self._wanted or len(self._config.device)
            settings |= {"num_cpus": max(wanted, os.cpu_count() or 1), "include_dashboard": False}
        try:
            self._ray.init(address=self._address or "local", runtime_env={"env_vars": environment}, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PrerequisiteError(
                f"cannot reach the Ray cluster `{self._address or 'local'}`: {_first_line(error)}",
                hint="`ray status` tells whether one runs; `--executor-option address=HOST:PORT` names another",
            ) from error


class RayActor:
    """What runs in a process of Ray's: a worker, for as long as the process lives."""

    def run(self, mailbox: Path, settings: WorkerSettings) -> None:
        """Work until the scheduler is gone."""
        serve_mailbox(mailbox, settings)


class _Actor(MailboxWorker):
    """An actor, as the scheduler sees it."""

    def __init__(self, name: str, mailbox: Path, ray: Any, actor: Any, settings: WorkerSettings) -> None:
        super().__init__(name, mailbox)
        self._ray = ray
        self._actor = actor
        self._end = actor.run.remote(mailbox, settings)
        self._deadline = time.monotonic() + START_S
        self._heard = False

    def messages(self) -> Sequence[WorkerMessage]:
        found = super().messages()
        self._heard = self._heard or bool(found)
        return found

    def death(self) -> WorkerDied | StorageFailed | None:
        """Why the actor's one call has ended, or that it never began."""
        exceptions = self._ray.exceptions
        try:
            if self._ray.wait([self._end], timeout=0)[0]:
                self._ray.get(self._end)
                return WorkerDied("the end of its call")
        except exceptions.RaySystemError as error:
            raise PrerequisiteError(
                f"the Ray cluster is gone: {_first_line(error)}",
                hint="every finished cell is kept; run the same command again when it is back",
            ) from error
        except exceptions.RayTaskError as error:  # raised in the actor, which is of no use any more
            self.kill()
            if isinstance(error.cause, StorageError):
                return StorageFailed(error.cause.message, error.cause.hint)
            return WorkerDied(str(error).strip().splitlines()[-1], str(error)[-LOG_TAIL:])
        except exceptions.RayError as error:
            return WorkerDied(_first_line(error), str(error)[-LOG_TAIL:], "memory pressure" in str(error))
        if not self._heard and time.monotonic() > self._deadline:
            self.kill()
            return WorkerDied(f"no room for it on the cluster for {START_S:.0f} s")
        return None

    def kill(self) -> None:
        self._ray.kill(self._actor)

    stop = kill


def _check_address(address: str) -> None:
    """Make sure that something answers at an address; Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # `auto`, or nothing: Ray looks for itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise PrerequisiteError(
            f"nobody answers at the Ray address `{address}`: {_first_line(error)}",
            hint="`ray status` on a node of the cluster tells its address",
        ) from error


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise PrerequisiteError(
            "the executor `ray` needs the package `ray`", hint="pip install 'tokenprune-vlm[ray]'"
        ) from error
    return ray


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
