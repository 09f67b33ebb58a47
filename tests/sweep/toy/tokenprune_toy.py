"""A stranger's plugin for the sweep tests: a task, and pruners that misbehave in every way."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tokenprune import Budget, hookimpl
from tokenprune.errors import BudgetError
from tokenprune.pruner import Decision, OneCut, Pruner, ScoredPruner, State, Stop, View, pruner
from tokenprune.registry import Axes, Source, TaskSpec
from tokenprune.tasks.base import Sample

SOURCE = Source("a test")
FAMILIES = ("colour", "shape")
BAD_QUESTION = "what is bad ?"


class ToyTask:
    """Random pictures; the model is random too, so nobody minds what is right."""

    name = "toy"
    version = "1"
    split = "test"
    families = FAMILIES
    max_new_tokens = 3

    def __init__(self, size: int = 20, side: int = 32, bad: int = -1) -> None:
        self._size, self._side, self._bad = size, side, bad

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng(index // 2)
        pixels = random.integers(0, 255, (self._side, self._side, 3), dtype=np.uint8)
        question = "what color is the circle ?" if index % 2 else "is there a red square or a blue circle ?"
        return Sample(
            id=f"toy/{index}",
            images=(Image.fromarray(pixels),),
            question=BAD_QUESTION if index == self._bad else question,
            answer=("red", "yes", "two")[index % 3],
            family=FAMILIES[index % 2],
        )

    def score(self, prediction: str, sample: Sample) -> float:
        if sample.question == BAD_QUESTION:
            raise ValueError("this sample cannot be scored")
        return float(len(prediction) % 2 == len(sample.answer) % 2)

    def digest(self) -> str:
        return f"toy-{self._size}-{self._side}-{self._bad}"


#: Height and width of the pictures of each sample of `odd`.
ODD = (
    ((40, 56),),
    ((64, 32), (48, 48)),
    ((30, 90),),
    ((33, 65), (90, 30), (40, 56)),
    ((120, 37),),
    ((48, 48), (64, 32)),
)


class OddTask(ToyTask):
    """Questions about one picture or several, of sizes that no two share."""

    name = "odd"

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng(index)
        shapes = ODD[index % len(ODD)]
        pixels = [random.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]
        return Sample(f"odd/{index}", tuple(map(Image.fromarray, pixels)), "what is red", "a", FAMILIES[index % 2])


@pruner("exploding", summary="raises", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class Exploding(OneCut):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        raise ZeroDivisionError("boom")


@pruner("lazy", summary="does nothing and says nothing", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class Lazy(Pruner):
    def plan(self, facts: object, budget: Budget, tokens: int) -> Sequence[Stop]:
        return ()

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        raise AssertionError("never called")


@pruner("refusing", summary="cannot reach any budget", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class Refusing(OneCut):
    def plan(self, facts: object, budget: Budget, tokens: int) -> Sequence[Stop]:
        raise BudgetError("no budget pleases me", hint="try another pruner")

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        raise AssertionError("never called")


@pruner("dying", summary="takes its process along", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class Dying(OneCut):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


@pruner("losing", summary="loses its device", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class Losing(OneCut):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        import torch

        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")


@pruner("forking", summary="leaves a process behind and dies", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class Forking(OneCut):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        pipes = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_pipe(number)]
        subprocess.Popen(["sleep", "120"], pass_fds=pipes, start_new_session=True)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def _is_pipe(number: int) -> bool:
    try:
        mode = os.fstat(number).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    except OSError:  # the one with which the folder was listed
        return False


@pruner("first", summary="the first tokens", source=SOURCE, axes=Axes(site="input"))
@dataclass(frozen=True)
class First(ScoredPruner):
    """Keeps the first tokens; waits `pause` seconds, or as long as the file `gate` is there.

    With a number in the file so many batches pass it. `GATE.calls` has a byte for each that was asked.
    """

    pause: float = 0.0
    gate: str = ""

    def score(self, view: View):
        time.sleep(self.pause)
        if self.gate:
            self._wait(Path(self.gate), Path(f"{self.gate}.calls"))
        return -view.indices().float()

    def _wait(self, gate: Path, calls: Path) -> None:
        with calls.open("a") as stream:
            stream.write("x")
        while gate.exists() and calls.stat().st_size > int(gate.read_text() or 0):
            time.sleep(0.05)


@hookimpl
def register_tasks(register):
    register(
        TaskSpec(
            name="toy",
            target="tokenprune_toy:ToyTask",
            summary="random pictures",
            version="1",
            families=FAMILIES,
            defaults={"size": 20, "side": 32, "bad": -1},
        )
    )
    register(
        TaskSpec(
            name="odd",
            target="tokenprune_toy:OddTask",
            summary="several pictures of odd sizes",
            version="1",
            families=FAMILIES,
        )
    )


@hookimpl
def register_pruners(register):
    for made in (Exploding, Lazy, Refusing, Dying, Losing, Forking, First):
        register(made.spec)
