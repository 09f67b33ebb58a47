"""What a cell costs: one sample, alone on the device, beside the unpruned model on the same and on a shorter prompt."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine import Session
from tokenprune.engine.shorter import shorter_prompt
from tokenprune.engine.stages import Moments, moments_of
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.errors import PrerequisiteError, TokenPruneError
from tokenprune.metrics.busy import Busy, OnBusy, Watch
from tokenprune.metrics.nvml import Gpu, gpu_of
from tokenprune.metrics.runs import Durations, Figures, Subject, Times
from tokenprune.metrics.spread import Precision, Spread
from tokenprune.metrics.timing import clock_of, pinned_threads
from tokenprune.models.family import Parts
from tokenprune.record import PruneRecord

__all__ = ["Cost", "Floor", "Refusal", "Spread", "measure_cost"]

TOLERANCE = 0.05
_COUNTED = ("sdpa", "eager")
"""Attention implementations of which torch counts everything, fused or not."""

MORE_REPEATS = 2
"""Where nothing else is asked for, so many times the least number of repeats are the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor(Figures):
    """The stock model on a prompt that already has the kept length: what pruning would cost if choosing were free.

    In it: the whole vision tower and projector, as in a prompt of full length, then the stock decoder with its own
    masks and kernels on the prompt's text and `tokens` visual tokens, in the prefill and in the decoding steps. Not in
    it: any hook of the engine, any view, any decision. A method that cuts inside or before the vision tower may come
    out below it.

    Args:
        tokens: Visual tokens: as many as the pruned sample keeps on average over the decoder layers, rounded. The
            work of a layer grows with its tokens all but linearly, so a deep cut is compared with a decoder that does
            its work evenly; what attention's square adds to the uneven one counts as overhead.
    """

    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(Figures):
    """Cost of one sample under a pruner.

    Args:
        overhead_ms: Part of the prefill that went into the pruner's views and decisions.
        overhead_share: The same as a share of the prefill, run by run.
        over_unpruned: Prefill divided by the unpruned model's, run by run: below 1 it is faster.
        over_floor: Prefill divided by the floor's prefill, run by run: all take turns, so drift meets all.
        unpruned: The stock model on the same prompt.
        floor: The unpruned model on a prompt of the kept length; `None` where it cannot be had.
        new_tokens: Tokens after the first in a run.
        device: Where it ran.
        threads: CPU threads of torch, held fixed.
        attention: Attention implementation of the decoder, as transformers names it.
        clock: What the times were taken with.
        precision: How many repeats, and how well the medians are known.
        busy: Other work on the device.
        unmeasured: By figure, why it is not known, or not all of it.
    """

    overhead_ms: Spread
    overhead_share: Spread
    over_unpruned: Spread
    over_floor: Spread | None
    unpruned: Durations
    floor: Floor | None
    new_tokens: int
    device: str
    threads: int
    attention: str
    clock: str
    precision: Precision
    busy: Busy
    unmeasured: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A cost that was not measured because the device had other work, or because nobody can tell.

    Args:
        busy: What was found.
    """

    busy: Busy

    def to_json(self) -> dict[str, Any]:
        """The error in one line, with a hint and the figures, as plain JSON types."""
        verdict = "the device is busy" if self.busy.busy else "whether the device is busy is not known"
        return {
            "error": f"{verdict}: {self.busy.explain()}",
            "hint": "measure on a quiet device, or set `efficiency: {busy: mark}`",
            "busy": asdict(self.busy),
        }


@dataclass
class _Turns:
    """What the repeats gave so far."""

    unpruned: Times = field(default_factory=Times)
    pruned: Times = field(default_factory=Times)
    floor: Times = field(default_factory=Times)
    overhead: list[float] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)
    parts: Parts | None = None
    record: PruneRecord | None = None

    def precision(self, tolerance: float) -> Precision:
        """How well the medians of prefill and whole run are known, and of the prefills beside it."""
        watched = [self.pruned.prefill, self.pruned.total, self.unpruned.prefill, self.floor.prefill]
        return Precision.of([values for values in watched if values], tolerance)


def measure_cost(
    model: Any,
    inputs: Mapping[str, Tensor],
    session: Callable[[], AbstractContextManager[Session]],
    *,
    warmup: int,
    repeats: int,
    new_tokens: int,
    max_repeats: int | None = None,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
    busy: OnBusy = "mark",
    floor: bool = True,
) -> Cost | Refusal:
    """Measure one prepared sample; nothing else of this process should run meanwhile.

    Unpruned run, pruned run and floor take turns, each after an untimed run to its first token, until the medians are
    known well enough: at least `repeats` turns, at most `max_repeats`.

    Args:
        model: A stock model with `generate`.
        inputs: Tensors of the processor for one sample, on the model's device.
        session: Makes the pruning context; entered once for each repeat, outside the timed region.
        warmup: Untimed runs of full length before.
        repeats: Timed runs, at least.
        new_tokens: Tokens after the first in each run.
        max_repeats: Timed runs, at most; `None` for twice the least number.
        tolerance: Relative uncertainty of a median (half-width of its notch) that is good enough.
        threads: CPU threads of torch; `None` leaves what it has.
        busy: What to do where the device has other work: `mark` the cost, or `refuse` to measure.
        floor: Whether to measure the floor, too.
    """
    device = next(model.parameters()).device
    gpu, silence = gpu_of(device)
    watch = Watch(device, gpu, silence)
    subject = Subject(model, inputs, new_tokens, clock_of(device))
    most = max(repeats, MORE_REPEATS * repeats if max_repeats is None else max_repeats)
    with pinned_threads(threads) as held:
        seen = watch.before()
        if busy == "refuse" and seen.busy is not False:
            return Refusal(seen)
        turns = _Turns(unmeasured={} if floor else {"floor": "switched off"})
        for turn in range(most):
            _take_turns(subject, session, turns, warmup if turn == 0 else 0)
            if turn + 1 >= repeats and turns.precision(tolerance).met:
                break
        with session():
            figures = _figures(subject, turns.pruned, gpu, _attention(turns), turns.unmeasured)
        lowest = None
        if turns.floor.prefill:
            with _at_floor(turns, subject) as tokens:
                lowest = Floor(**_figures(subject, turns.floor, gpu, _attention(turns), {}), tokens=tokens)
        seen = watch.after()
    if busy == "refuse" and seen.busy is not False:
        return Refusal(seen)
    if gpu is None:
        turns.unmeasured["energy_j"] = silence
    if not turns.pruned.encoder:
        turns.unmeasured["encoder_ms"] = "the model has no `get_image_features` that could be watched"
    shares = [part / whole for part, whole in zip(turns.overhead, turns.pruned.prefill, strict=True)]
    return Cost(
        **figures,
        overhead_ms=Spread.of(turns.overhead),
        overhead_share=Spread.of(shares),
        over_unpruned=Spread.of(turns.pruned.over(turns.unpruned)),
        over_floor=Spread.of(turns.pruned.over(turns.floor)) if turns.floor.prefill else None,
        unpruned=Durations.of(turns.unpruned),
        floor=lowest,
        new_tokens=new_tokens,
        device=_device_name(device),
        threads=held,
        attention=_attention(turns),
        clock=subject.clock.name,
        precision=turns.precision(tolerance),
        busy=seen,
        unmeasured=turns.unmeasured,
    )


def _take_turns(
    subject: Subject, session: Callable[[], AbstractContextManager[Session]], turns: _Turns, warmup: int
) -> None:
    """One timed run of the unpruned model, one under the pruner, and one of the floor."""
    clock = subject.clock
    with session() as running, moments_of(running.parts, clock.mark) as moments:
        running.stopwatch.mark = clock.mark
        _time(subject, moments, turns.pruned, warmup, running.stopwatch)
        turns.overhead.append(sum(clock.between(*stretch) for stretch in running.stopwatch.stretches))
        turns.parts, turns.record = running.parts, running.last
    with moments_of(running.parts, clock.mark) as moments:
        _time(subject, moments, turns.unpruned, warmup)
    if "floor" in turns.unmeasured:
        return
    try:
        with _at_floor(turns, subject), moments_of(running.parts, clock.mark) as moments:
            _time(subject, moments, turns.floor, warmup)
    except torch.OutOfMemoryError:
        raise
    except (TokenPruneError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # a stock model that does not run on a shorter prompt says nothing about the pruner
        first = str(error).strip().split("\n", 1)[0]
        turns.unmeasured["floor"] = first if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {first}"
        turns.floor = Times()


def _time(
    subject: Subject, moments: Moments[Any], times: Times, warmup: int, stopwatch: Stopwatch | None = None
) -> None:
    for _ in range(warmup):
        subject.whole()
    subject.first()  # a session plans at its first run, and caches of kernels are those of this length
    if stopwatch is not None:
        stopwatch.stretches.clear()
    subject.time(moments, times)


@contextlib.contextmanager
def _at_floor(turns: _Turns, subject: Subject) -> Iterator[int]:
    """The stock model on a prompt of the kept length, and its visual tokens."""
    assert turns.parts is not None  # noqa: S101 - a pruned run came first
    assert turns.record is not None  # noqa: S101
    tokens = math.floor(turns.record.layer_average()[0] + 0.5)
    with shorter_prompt(turns.parts, subject.inputs, tokens):
        yield tokens


def _figures(
    subject: Subject, times: Times, gpu: Gpu | None, attention: str, unmeasured: dict[str, str]
) -> dict[str, Any]:
    try:
        figures = subject.figures(times, gpu)
    except PrerequisiteError as error:  # a GPU without a counter of energy
        unmeasured["energy_j"] = error.message
        figures = subject.figures(times, None)
    if attention not in _COUNTED and not figures["kernels"]:  # a part of the work is no figure of the work
        figures["prefill_tflops"] = None
        unmeasured["prefill_tflops"] = f"torch cannot count the attention of `{attention}`"
    return figures


def _attention(turns: _Turns) -> str:
    assert turns.parts is not None  # noqa: S101
    return str(getattr(turns.parts.text.config, "_attn_implementation", ""))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
