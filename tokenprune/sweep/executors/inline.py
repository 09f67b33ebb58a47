"""The executor `inline`: all cells in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenprune.cells.events import CellProgress
from tokenprune.evaluation.machine.devices import check_devices
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.plugins import Host
from tokenprune.sweep.config.executor_options import ExecutorOptions
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.scheduler import Scheduler
from tokenprune.sweep.executors.worker_pool import Worker, WorkerPool
from tokenprune.sweep.messages import Assignment, WorkerMessage, WorkerReady
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.cell_runner import CellRunner
from tokenprune.sweep.worker.worker_main import run_assignment


class InlineExecutor(Scheduler):
    """One worker in this process, on the first device of the sweep; it reports whole cells only."""

    Options = ExecutorOptions

    def __init__(self, store: SweepStore, config: SweepConfig, host: Host, options: ExecutorOptions) -> None:
        check_devices(config.device[:1])
        runner = CellRunner(store, ModelCache(host, config.device[0]), overlays=config.overlays)
        super().__init__(store, _InlinePool(runner), config.share)


class _InlineWorker(Worker):
    """Works up to its next message whenever the pool reads its messages."""

    name = "inline"

    def __init__(self, runner: CellRunner) -> None:
        self._runner = runner
        self._messages: Iterator[WorkerMessage] = iter([WorkerReady()])

    def submit(self, assignment: Assignment) -> None:
        messages = run_assignment(self._runner, assignment)
        self._messages = (message for message in messages if not isinstance(message, CellProgress))

    def messages(self) -> Sequence[WorkerMessage]:
        return [next(self._messages)]

    def death(self) -> None:
        return None

    def stop(self) -> None:
        self._messages = iter(())

    kill = stop


class _InlinePool(WorkerPool):
    """The one worker, which is stopped at once."""

    grace_s = 0.0

    def __init__(self, runner: CellRunner) -> None:
        super().__init__()
        self._runner = runner

    def slots(self) -> Sequence[str]:
        return ["inline"]

    def device_of(self, slot: str) -> str:
        return slot

    def launch(self, slot: str) -> Worker:
        return _InlineWorker(self._runner)
