"""Ways to run the cells of a sweep: what an executor is, and those that ship."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tokenprune.hookspecs import hookimpl
from tokenprune.registry import ExecutorSpec
from tokenprune.sweep.messages import Report

if TYPE_CHECKING:
    from tokenprune.cell import Cell


class Executor(Protocol):
    """Runs cells and writes what they gave into the sweep directory.

    A cell with a `reference` must not begin before its reference was answered or has ended. Where a cell has a cost to
    measure, nothing else may run on the device meanwhile. A worker that dies is never the end of the
    sweep: its cell is tried again elsewhere, and is a failed one (`error.json` is written for it) where that keeps
    happening. A disk that takes no more writes is the end: it raises `StorageError`.
    """

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; yields as they begin, advance and end. Closing the iterator stops all workers."""
        ...


@hookimpl
def register_executors(register: Callable[[ExecutorSpec], None]) -> None:
    """The executors that ship; a target takes `(store, config, host)`, and its options as keywords."""
    register(
        ExecutorSpec(
            name="local",
            target="tokenprune.sweep.executors.local:LocalPool",
            summary="long-lived worker processes on this machine, one per GPU or as many as asked for on the CPU",
        )
    )
    register(
        ExecutorSpec(
            name="ray",
            target="tokenprune.sweep.executors.ray_executor:RayExecutor",
            summary="actors on a Ray cluster, one per GPU, that keep their model (extra `ray`)",
        )
    )
    register(
        ExecutorSpec(
            name="slurm",
            target="tokenprune.sweep.executors.slurm_executor:SlurmExecutor",
            summary="long-lived Slurm jobs that keep their model (extra `slurm`)",
        )
    )
    register(
        ExecutorSpec(
            name="inline",
            target="tokenprune.sweep.executors.inline:Inline",
            summary="in this process (for debugging)",
        )
    )


def ready(cell: Cell, unanswered: Container[str]) -> bool:
    """True where the cell's reference is not among the cells that still have to be asked."""
    return cell.reference is None or cell.reference not in unanswered
