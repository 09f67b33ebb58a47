"""The executor `slurm`: long-lived jobs, each a worker that keeps its model between cells.

A job gets its assignments through files (`file_channel.py`), so it must reach nothing but the shared sweep directory. A
job that waits in the queue holds no cell back: only running jobs get assignments.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import Host
from tokenprune.sweep.config.executor_options import ExecutorOptions
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.executors.file_channel import MailboxPool, MailboxWorker, serve_mailbox
from tokenprune.sweep.executors.scheduler import Scheduler
from tokenprune.sweep.executors.worker_pool import LOG_TAIL, Worker
from tokenprune.sweep.messages import WorkerDied
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.worker_main import WorkerSettings

_PREEMPTED = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "REQUEUED")
"""States of jobs that Slurm ended for reasons of its own."""


class SlurmOptions(ExecutorOptions):
    """Options of `slurm`.

    Args:
        jobs: How many jobs at most; without it as many as the sweep lists devices.
        partition: Slurm partition.
        account: Slurm account.
        qos: Slurm quality of service.
        gpus: GPUs per job; a job uses one.
        cpus: Processor cores per job.
        mem_gb: Memory per job in GB.
        minutes: Time limit of a job; a job that reaches it is replaced, and its cells go on in the next.
        cluster: `slurm`, `local` (processes of this machine, no Slurm) or `debug` (threads of this process).
    """

    jobs: int | None = Field(None, ge=1)
    partition: str = ""
    account: str = ""
    qos: str = ""
    gpus: int = Field(1, ge=0)
    cpus: int = Field(4, ge=1)
    mem_gb: int = Field(32, ge=1)
    minutes: int = Field(240, ge=1)
    cluster: Literal["slurm", "local", "debug"] = "slurm"

    def submitit_parameters(self) -> dict[str, Any]:
        """The options as submitit names them; what is not set is left to Slurm."""
        names = {"slurm_partition": self.partition, "slurm_account": self.account, "slurm_qos": self.qos}
        return {
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "mem_gb": self.mem_gb,
            "gpus_per_node": self.gpus if self.cluster == "slurm" else 0,
            **{name: value for name, value in names.items() if value},
        }


class SlurmExecutor(Scheduler):
    """Jobs of a Slurm cluster, submitted by submitit.

    Raises:
        PrerequisiteError: submitit is not installed, or there is no Slurm here.
    """

    Options = SlurmOptions

    def __init__(self, store: SweepStore, config: SweepConfig, host: Host, options: SlurmOptions) -> None:
        submitter = _submitter(store.directory / "logs" / "slurm", options)
        super().__init__(store, _JobPool(submitter, store, config, options.jobs or len(config.device)), config.share)


class _JobPool(MailboxPool):
    """Jobs, one per slot."""

    def __init__(self, submitter: Any, store: SweepStore, config: SweepConfig, jobs: int) -> None:
        super().__init__(store)
        self._submitter = submitter
        self._jobs = jobs
        # Slurm shows a job its own GPU only, so that `auto` finds it
        self._device = "cpu" if all(device == "cpu" for device in config.device) else "auto"
        self._settings = WorkerSettings(str(store.directory), self._device, config.overlays, store.token)

    def slots(self) -> Sequence[str]:
        return [f"job-{number}" for number in range(self._jobs)]

    def device_of(self, slot: str) -> str:
        """Slurm gives a job its own share of a node; without it all jobs are on this machine."""
        return slot if self._submitter.cluster == "slurm" else self._device

    def launch_with_mailbox(self, slot: str, mailbox: Path) -> Worker:
        with _module_path():
            job = self._submitter.submit(serve_mailbox, mailbox, self._settings)
        name = f"{slot}#{job.job_id}"
        return _Thread(name, mailbox, job) if self._submitter.cluster == "debug" else _Job(name, mailbox, job)


class _Job(MailboxWorker):
    """A job."""

    def __init__(self, name: str, mailbox: Path, job: Any) -> None:
        super().__init__(name, mailbox)
        self._job = job

    def death(self) -> WorkerDied | None:
        if not self._job.done():
            return None
        state, log = str(self._job.state), (self._job.stderr() or "")[-LOG_TAIL:]
        return WorkerDied(f"job state {state}", log, state.startswith("OUT_OF_ME"), state.startswith(_PREEMPTED))

    def kill(self) -> None:
        self._job.cancel(check=False)


class _Thread(MailboxWorker):
    """A job of the kind `debug`, which runs in a thread of this process."""

    def __init__(self, name: str, mailbox: Path, job: Any) -> None:
        super().__init__(name, mailbox)
        self._thread = threading.Thread(target=job.results, daemon=True)
        self._thread.start()

    def death(self) -> WorkerDied | None:
        return None if self._thread.is_alive() else WorkerDied("job state DONE")

    def kill(self) -> None:
        """A thread cannot be killed; it ends with this process."""


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


def _submitter(folder: Path, options: SlurmOptions) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise PrerequisiteError(
            "the executor `slurm` needs the package `submitit`", hint="pip install 'tokenprune-vlm[slurm]'"
        ) from error
    if options.cluster == "slurm" and shutil.which("sbatch") is None:
        raise PrerequisiteError(
            "there is no Slurm here (no command `sbatch`)",
            hint="run it on a login node; `--executor-option cluster=local` tries it without Slurm",
        )
    made = submitit.AutoExecutor(folder=folder, cluster=options.cluster)
    made.update_parameters(name="tokenprune", **options.submitit_parameters())
    return made
