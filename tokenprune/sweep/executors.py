"""Ways to run the cells of a sweep: what an executor is, and those that ship."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tokenprune.hookspecs import hookimpl
from tokenprune.registry import ExecutorSpec

if TYPE_CHECKING:
    from tokenprune.sweep.plan import Cell

Outcome = Literal["done", "failed", "refused"]


@dataclass(frozen=True, slots=True)
class Began:
    """A worker took a cell; `attempt` counts the workers that did, this one included."""

    cell_id: str
    worker: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """A cell has its result or its error in the sweep directory."""

    cell_id: str
    outcome: Outcome


Report = Began | Ended


class Executor(Protocol):
    """Runs cells and writes what they gave into the sweep directory.

    A cell with a `reference` must not begin before its reference has ended. A worker that dies is never the end of the
    sweep: its cell is tried again elsewhere, and is a failed one (`error.json` is written for it) where that keeps
    happening. A disk that takes no more writes is the end: it raises `StorageError`.
    """

    def run(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Run the cells; yields as they begin and end. Closing the iterator stops all workers."""
        ...


@hookimpl
def register_executors(register: Callable[[ExecutorSpec], None]) -> None:
    """The executors that ship; a target takes `(ledger, config, host)`, and its options as keywords."""
    register(
        ExecutorSpec(
            name="local",
            target="tokenprune.sweep.pool:LocalPool",
            summary="long-lived worker processes on this machine, one per device; a dead one is replaced",
        )
    )
    register(
        ExecutorSpec(
            name="ray",
            target="tokenprune.sweep.on_ray:RayExecutor",
            summary="actors on a Ray cluster, one per GPU, that keep their model (extra `ray`)",
        )
    )
    register(
        ExecutorSpec(
            name="slurm",
            target="tokenprune.sweep.on_slurm:SlurmExecutor",
            summary="long-lived Slurm jobs that keep their model (extra `slurm`)",
        )
    )
    register(
        ExecutorSpec(
            name="inline",
            target="tokenprune.sweep.inline:Inline",
            summary="in this process, one cell after another (for debugging)",
        )
    )


def ready(cell: Cell, waiting: Mapping[str, Cell]) -> bool:
    """True where the cell's reference is not among the cells that still have to end."""
    return cell.reference is None or cell.reference not in waiting
