"""Ways to run the cells of a sweep: what an executor is, and those that ship."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tokenprune.errors import ConfigError
from tokenprune.hookspecs import hookimpl
from tokenprune.registry import ExecutorSpec

if TYPE_CHECKING:
    from tokenprune.sweep.plan import Cell

Outcome = Literal["done", "failed", "refused"]

Part = Literal["answers", "cost"]
"""What of a cell is run: its questions are asked; then, alone on the device, its cost is measured."""


@dataclass(frozen=True, slots=True)
class Began:
    """A worker took a part of a cell; `attempt` counts the workers that did, this one included."""

    cell_id: str
    worker: str
    attempt: int = 1
    part: Part = "answers"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker is with a running cell; told about once a second, for displays.

    Args:
        cell_id: The cell.
        worker: Who runs it.
        done: Samples asked so far.
        total: Samples of the cell.
        kept: Visual tokens that stay of a sample, the mean so far; `None` where that is not known yet.
        samples_per_s: Samples of this and the cells beside it per second, once the first batch is behind; before that,
            with what the start took.
        memory_mib: Of the worker: what it has allocated on its GPU, else what it holds of the machine's memory.
    """

    cell_id: str
    worker: str
    done: int
    total: int
    kept: float | None = None
    samples_per_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """All questions of a cell were asked, and what they gave is on disk; its cost is still to be measured."""

    cell_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A cell has its result or its error in the sweep directory."""

    cell_id: str
    outcome: Outcome


Report = Began | Progress | Answered | Ended


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
    """The executors that ship; a target takes `(ledger, config, host)`, and its options as keywords."""
    register(
        ExecutorSpec(
            name="local",
            target="tokenprune.sweep.pool:LocalPool",
            summary="long-lived worker processes on this machine, one per GPU or as many as asked for on the CPU",
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
            summary="in this process (for debugging)",
        )
    )


def ready(cell: Cell, unanswered: Container[str]) -> bool:
    """True where the cell's reference is not among the cells that still have to be asked."""
    return cell.reference is None or cell.reference not in unanswered


def check_option(executor: str, make: Callable[..., Any], option: str, value: object) -> None:
    """Make sure that an executor knows an option, and that its value is a single one.

    Args:
        executor: Its name, for the message.
        make: Its class; the options are the keyword-only arguments.
        option: Name of the option.
        value: Its value.

    Raises:
        ConfigError: The option is not known, or the value is a list or a mapping.
    """
    parameters = inspect.signature(make).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    if option not in known:
        close = difflib.get_close_matches(option, known, n=1)
        raise ConfigError(
            f"unknown option `{option}` of executor `{executor}`" + "".join(f", did you mean `{it}`?" for it in close),
            hint=f"its options: {', '.join(known) or 'none'}",
        )
    if not isinstance(value, str | int | float):
        raise ConfigError(
            f"option `{option}` of executor `{executor}` must be one text or number, got {value!r}",
            hint="leave it out for the default",
        )
