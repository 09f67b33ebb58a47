"""What an executor is, and the executors that ship."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tokenprune.hookspecs import hookimpl
from tokenprune.registry import ExecutorSpec

if TYPE_CHECKING:
    from tokenprune.cells.cell import Cell
    from tokenprune.sweep.messages import ExecutorEvent


class Executor(Protocol):
    """Runs cells and writes their results into the sweep directory, by the rules of `scheduler.py`.

    A cell with a `reference` begins after its reference is evaluated or has ended. Nothing else runs on a device while
    the cost of a cell is measured. If a worker dies, its cell is tried again elsewhere; after some attempts the cell is
    a failed one (`error.json`), and the sweep goes on. If the disk takes no more writes, `run` raises `StorageError`.
    """

    def run(self, cells: Sequence[Cell]) -> Iterator[ExecutorEvent]:
        """Run the cells; yields what happens to them. Closing the iterator stops all workers."""
        ...


@hookimpl
def register_executors(register: Callable[[ExecutorSpec], None]) -> None:
    """Add the executors that ship."""
    for name, target, summary in _SHIPPED:
        register(ExecutorSpec(name=name, target=f"tokenprune.sweep.executors.{target}", summary=summary))


_SHIPPED = (
    (
        "local",
        "local:LocalExecutor",
        "long-lived worker processes on this machine, one per GPU or as many as asked for on the CPU",
    ),
    ("ray", "ray_executor:RayExecutor", "actors on a Ray cluster, one per GPU, that keep their model (extra `ray`)"),
    ("slurm", "slurm_executor:SlurmExecutor", "long-lived Slurm jobs that keep their model (extra `slurm`)"),
    ("inline", "inline:InlineExecutor", "in this process (for debugging)"),
)
