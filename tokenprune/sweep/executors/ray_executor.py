"""The executor `ray`: actors on a Ray cluster, each a long-lived worker that keeps its model between cells.

Actors and not tasks: a task that uses a GPU gets a new process each, and would load the model again for every cell.
All nodes see the sweep directory under the same path (a shared file system).
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenprune.cell import Cell
from tokenprune.errors import ConfigError, PrerequisiteError
from tokenprune.plugins import Host
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.scheduler import Dispatcher
from tokenprune.sweep.messages import Died, Message, Order, Ready, Report, Took, message_of
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.worker_main import Worker

LISTEN_S = 1.0
"""Seconds after which an unanswered wait is looked at again, and a busy actor is asked how far it is."""

KNOCK_S = 5.0
"""Seconds that the head of a cluster gets to answer."""

START_S = 900.0
"""Seconds that the cluster gets to find room for an actor."""


class RayExecutor:
    """Actors on a Ray cluster, or on a Ray of this machine.

    Args:
        store: The sweep directory.
        config: The sweep. A `device` of `cpu` means actors without a GPU, as many as it is listed.
        host: Not used: workers load plugins themselves.
        address: Address of the cluster (`auto`, `10.0.0.1:6379`, `ray://...`); without one that of `RAY_ADDRESS`, else
            a Ray of this machine is started and stopped.
        actors: How many; without it one per GPU, or one per node of a cluster without GPUs.

    Raises:
        PrerequisiteError: Ray is not installed, or the cluster cannot be reached.
        ConfigError: `actors` is not a number of actors.
    """

    def __init__(
        self, store: SweepStore, config: SweepConfig, host: Host, *, address: str = "", actors: int | str = ""
    ) -> None:
        del host
        self._store = store
        self._config = config
        self._address = address or os.environ.get("RAY_ADDRESS", "")
        self._actors = _count(actors)
        self._ray = _import_ray()

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; see `tokenprune.sweep.executors.executor.Executor`."""
        crew = RayCrew(self._ray, self._store, self._config, self._address, self._actors)
        return Dispatcher(self._store, crew, self._config.share).run(cells)


class Actor:
    """One worker in a process of Ray's; it runs a cell in one thread and says how far it is in another."""

    def __init__(self, directory: str, device: str, overlays: int, token: str) -> None:
        self._make = (Path(directory), device, overlays, token)
        self._worker: Worker | None = None
        self._latest: Mapping[str, Any] | None = None

    def hello(self) -> str:
        """Make the worker and say where it is."""
        self._worker = Worker(*self._make)
        return f"{platform.node()}#{os.getpid()}"

    def serve(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run one cell to its end and say how it went."""
        assert self._worker is not None  # noqa: S101 - nobody is given an order before it said hello
        return self._worker.serve(Order.from_json(order), self._note)

    def progress(self) -> Mapping[str, Any] | None:
        """How far the running cell is; `None` where there is nothing new."""
        latest, self._latest = self._latest, None
        return latest

    def _note(self, report: Mapping[str, Any]) -> None:
        self._latest = report


@dataclass
class _Hired:
    """An actor and the answers that are waited for: to `hello`, then to each `serve`, and beside it to `progress`."""

    handle: Any
    answer: Any
    ready: bool = False
    since: float = field(default_factory=time.monotonic)
    question: Any = None
    asked: float = field(default_factory=time.monotonic)


class RayCrew:
    """Actors, one per slot."""

    def __init__(self, ray: Any, store: SweepStore, config: SweepConfig, address: str, actors: int | None) -> None:
        self._ray = ray
        self._store = store
        self._config = config
        self._address = address
        self._actors = actors
        self._hired: dict[str, _Hired] = {}
        self._number = 0
        self._gpus = False
        self._began: list[Message] = []
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
        count = self._actors or gpus or (len(devices) if only_cpu else nodes)
        return [f"{'gpu' if self._gpus else 'cpu'}-{number}" for number in range(count)]

    def place(self, slot: str) -> str:
        """A GPU each; actors on CPUs may be on one node, and count as if they were."""
        return slot if self._gpus else "cpu"

    def hire(self, slot: str) -> str:
        """Ask the cluster for an actor; it may take a while to find room."""
        self._number += 1
        name = f"{slot}#{self._number}"
        place = (
            str(self._store.directory),
            "auto" if self._gpus else "cpu",
            self._config.overlays,
            self._store.token,
        )
        options = {"num_cpus": 1, "num_gpus": int(self._gpus), "max_restarts": 0, "max_task_retries": 0}
        options["max_concurrency"] = 2  # a cell, and the question how far it is
        handle = self._ray.remote(Actor).options(**options).remote(*place)
        self._hired[name] = _Hired(handle, handle.hello.remote())
        return name

    def give(self, worker: str, order: Order) -> None:
        """Call the actor; a dead one answers with an error."""
        hired = self._hired[worker]
        hired.answer = hired.handle.serve.remote(order.to_json())
        self._began.append(Took(worker))

    def listen(self) -> Iterator[Message]:
        """Wait for an answer, or for a moment.

        Raises:
            PrerequisiteError: The cluster is gone.
        """
        began, self._began = self._began, []
        yield from began
        waiting = {hired.answer: name for name, hired in self._hired.items() if hired.answer is not None}
        questions = self._ask()
        everything = [*waiting, *questions]
        try:
            done = self._ray.wait(everything, num_returns=1, timeout=LISTEN_S)[0] if everything else []
            heard = [self._heard(questions[question]) for question in done if question in questions]
            answers = [self._answer(waiting[answer]) for answer in done if answer in waiting]
        except self._ray.exceptions.RaySystemError as error:
            raise PrerequisiteError(
                f"the Ray cluster is gone: {_first_line(error)}",
                hint="every finished cell is kept; run the same command again when it is back",
            ) from error
        yield from filter(None, heard)
        yield from answers
        for name, hired in list(self._hired.items()):
            if not hired.ready and time.monotonic() - hired.since > START_S:
                yield self._lose(name, f"no room for it on the cluster for {START_S:.0f} s")

    def dismiss(self) -> None:
        """Kill the actors; what one of them had is begun again by the next invocation."""
        for hired in self._hired.values():
            self._ray.kill(hired.handle)
        self._hired.clear()
        if self._own:
            self._ray.shutdown()

    def _ask(self) -> dict[Any, str]:
        """Ask busy actors how far they are, a moment after the last time; all such questions that are open."""
        now = time.monotonic()
        for hired in self._hired.values():
            busy = hired.ready and hired.answer is not None
            if busy and hired.question is None and now - hired.asked >= LISTEN_S:
                hired.question, hired.asked = hired.handle.progress.remote(), now
        return {hired.question: name for name, hired in self._hired.items() if hired.question is not None}

    def _heard(self, name: str) -> Message | None:
        """What an actor said of its progress; a dead one says nothing, and its other answer tells why."""
        hired = self._hired[name]
        question, hired.question = hired.question, None
        try:
            report = self._ray.get(question)
        except (self._ray.exceptions.RayTaskError, self._ray.exceptions.RayActorError):
            return None
        return message_of(name, report) if report is not None else None

    def _answer(self, name: str) -> Message:
        hired = self._hired[name]
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(hired.answer)
        except exceptions.RayTaskError as error:  # raised in the actor, which is of no use any more
            return self._lose(name, _last_line(error), log=str(error)[-2000:])
        except (exceptions.RayActorError, exceptions.OutOfMemoryError) as error:
            text = str(error)
            return self._lose(name, _first_line(error), log=text[-2000:], out_of_memory="memory pressure" in text)
        if not hired.ready:
            hired.ready, hired.answer = True, None
            return Ready(name)
        hired.answer = None
        return message_of(name, answer)

    def _lose(self, name: str, cause: str, *, log: str = "", out_of_memory: bool = False) -> Died:
        self._ray.kill(self._hired.pop(name).handle)
        return Died(name, cause, log, out_of_memory)

    def _connect(self) -> None:
        _knock(self._address)
        # the same modules as here; Ray does not hand on the path of a driver
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if not self._address:
            wanted = self._actors or len(self._config.device)
            settings |= {"num_cpus": max(wanted, os.cpu_count() or 1), "include_dashboard": False}
        try:
            self._ray.init(address=self._address or "local", runtime_env={"env_vars": environment}, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PrerequisiteError(
                f"cannot reach the Ray cluster `{self._address or 'local'}`: {_first_line(error)}",
                hint="`ray status` tells whether one runs; `--executor-option address=HOST:PORT` names another",
            ) from error


def _knock(address: str) -> None:
    """Make sure that somebody answers at an address: Ray itself goes on trying for many minutes.

    Raises:
        PrerequisiteError: Nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # `auto`, or nothing: Ray looks for itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
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


def _count(text: int | str) -> int | None:
    if text == "":
        return None
    if not str(text).isdigit() or int(text) < 1:
        raise ConfigError(
            f"`actors` must be a whole number of at least 1, got `{text}`", hint="leave it out for one per GPU"
        )
    return int(text)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
