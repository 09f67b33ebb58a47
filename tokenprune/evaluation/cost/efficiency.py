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
from tokenprune.engine.short_prompt import shorter_prompt
from tokenprune.engine.state.stopwatch import Stopwatch
from tokenprune.engine.timestamps import timestamps_of
from tokenprune.errors import PrerequisiteError, TokenPruneError
from tokenprune.evaluation.cost.runs import Durations, Figures, Subject, Times
from tokenprune.evaluation.cost.spread import TOLERANCE, Precision, Spread
from tokenprune.evaluation.cost.turns import take_turns
from tokenprune.evaluation.machine.busy import Busy, OnBusy, Watch
from tokenprune.evaluation.machine.nvml import Gpu, gpu_of
from tokenprune.evaluation.machine.timing import clock_of, pinned_threads
from tokenprune.families.family import Parts
from tokenprune.record import PruneRecord

__all__ = ["Cost", "Floor", "Refusal", "Spread", "measure_cost"]

_COUNTED = ("sdpa", "eager")
"""Attention implementations of which torch counts everything, fused or not."""

MORE_REPEATS = 4
"""If nothing else is asked for, so many times the least number of repeats are the most."""

TIME_LIMIT_S = 4.0

WHOLE = 6
"""Turns in which runs have their full length: enough for an interval of what is not the prefill."""


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
        over_unpruned: Prefill divided by the unpruned model's, round by round (two turns in opposite orders, so that
            drift cancels): below 1 it is faster, if the interval says so.
        over_floor: The same, divided by the floor's prefill.
        floor_over_unpruned: The floor's prefill divided by the unpruned model's, in the same way.
        unpruned: The stock model on the same prompt.
        floor: The unpruned model on a prompt of the kept length; `None` where it cannot be had.
        new_tokens: Tokens after the first in a run.
        device: Where it ran.
        threads: CPU threads of torch, held fixed.
        attention: Attention implementation of the decoder, as transformers names it.
        clock: What the times were taken with.
        precision: How many turns, and how well the ratios are known.
        busy: Other work on the device.
        unmeasured: By figure, why it is not known, or not all of it.
    """

    overhead_ms: Spread
    overhead_share: Spread
    over_unpruned: Spread
    over_floor: Spread | None
    floor_over_unpruned: Spread | None
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
class _Measured:
    """What is compared, and what the turns gave so far.

    Args:
        parts: The model.
        record: What the pruner did to the sample.
        prunes: Whether the pruner can cut anywhere. One that cannot (`none`) is the stock model, and is timed as such,
            without the hooks of the engine: against the unpruned model and its floor it is the very same computation.
        unmeasured: By figure, why it is not known.
    """

    parts: Parts
    record: PruneRecord
    prunes: bool
    unmeasured: dict[str, str]
    unpruned: Times = field(default_factory=Times)
    pruned: Times = field(default_factory=Times)
    floor: Times = field(default_factory=Times)
    overhead: list[float] = field(default_factory=list)

    @property
    def arms(self) -> tuple[str, ...]:
        """What takes turns."""
        return ("unpruned", "pruned") if "floor" in self.unmeasured else ("unpruned", "pruned", "floor")

    def precision(self, tolerance: float) -> Precision:
        """How well the ratios of the prefill are known."""
        others = [self.unpruned] if "floor" in self.unmeasured else [self.unpruned, self.floor]
        return Precision.of([self.pruned.over(other) for other in others], len(self.pruned.prefill), tolerance)


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
    time_limit_s: float = TIME_LIMIT_S,
) -> Cost | Refusal:
    """Measure one prepared sample; nothing else of this process should run meanwhile.

    The unpruned run, the pruned run and the floor take turns in an order that rotates (see `turns.order_of`), each
    after an untimed run to its first token. The turns go on until the ratios of the prefill are known well enough, or
    until the time or the repeats run out. From `WHOLE` turns on only the prefill is timed.

    Args:
        model: A stock model with `generate`.
        inputs: Tensors of the processor for one sample, on the model's device.
        session: Makes the pruning context; entered once for each repeat, outside the timed region.
        warmup: Untimed runs of full length before.
        repeats: Timed runs of each, at least; they are made in pairs, so an odd number is made even.
        new_tokens: Tokens after the first in each run.
        max_repeats: Timed runs of each, at most; `None` for four times the least number.
        tolerance: Relative uncertainty of a ratio (half the width of its 95 % interval) that is good enough.
        threads: CPU threads of torch; `None` leaves what it has.
        busy: What to do where the device has other work: `mark` the cost, or `refuse` to measure.
        floor: Whether to measure the floor, too.
        time_limit_s: Seconds after which no more than the least number of runs is made.
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
        found = _prepared(subject, session, warmup, floor=floor)
        take_turns(
            found.arms,
            lambda arm, turn: _run(subject, session, found, arm, whole=turn < WHOLE),
            lambda: found.precision(tolerance).met,
            least=repeats,
            most=most,
            limit_s=time_limit_s,
        )
        with session() if found.prunes else contextlib.nullcontext():
            figures = _figures(subject, found.pruned, gpu, found)
        lowest = None
        if found.floor.prefill:
            with _at_floor(found, subject) as tokens:
                lowest = Floor(**_figures(subject, found.floor, gpu, found), tokens=tokens)
        seen = watch.after()
    if busy == "refuse" and seen.busy is not False:
        return Refusal(seen)
    if gpu is None:
        found.unmeasured["energy_j"] = silence
    if not found.pruned.encoder:
        found.unmeasured["encoder_ms"] = "the model has no `get_image_features` that could be watched"
    shares = [part / whole for part, whole in zip(found.overhead, found.pruned.prefill, strict=True)]
    return Cost(
        **figures,
        overhead_ms=Spread.of(found.overhead),
        overhead_share=Spread.of(shares),
        over_unpruned=found.pruned.over(found.unpruned),
        over_floor=found.pruned.over(found.floor) if lowest else None,
        floor_over_unpruned=found.floor.over(found.unpruned) if lowest else None,
        unpruned=Durations.of(found.unpruned),
        floor=lowest,
        new_tokens=new_tokens,
        device=_device_name(device),
        threads=held,
        attention=_attention(found.parts),
        clock=subject.clock.name,
        precision=found.precision(tolerance),
        busy=seen,
        unmeasured=found.unmeasured,
    )


def _prepared(
    subject: Subject, session: Callable[[], AbstractContextManager[Session]], warmup: int, *, floor: bool
) -> _Measured:
    """What takes turns, after the untimed runs of each: whether there is a floor is known then."""
    with session() as running:
        _warm_up(subject, warmup)
        found = _Measured(running.parts, running.last, bool(running.pruner.spec.sites), {})
    _warm_up(subject, warmup)
    if not floor:
        found.unmeasured["floor"] = "switched off"
        return found
    try:
        with _at_floor(found, subject):
            _warm_up(subject, warmup)
    except torch.OutOfMemoryError:
        raise
    except (TokenPruneError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # a stock model that does not run on a shorter prompt says nothing about the pruner
        first = str(error).strip().split("\n", 1)[0]
        found.unmeasured["floor"] = first if isinstance(error, TokenPruneError) else f"{type(error).__name__}: {first}"
    return found


def _warm_up(subject: Subject, runs: int) -> None:
    for _ in range(runs):
        subject.whole()
    if not runs:
        subject.first()


def _run(
    subject: Subject,
    session: Callable[[], AbstractContextManager[Session]],
    found: _Measured,
    arm: str,
    *,
    whole: bool,
) -> None:
    """One timed run of the unpruned model, under the pruner, or of the floor."""
    clock, stopwatch = subject.clock, Stopwatch()
    with contextlib.ExitStack() as stack:
        if arm == "floor":
            stack.enter_context(_at_floor(found, subject))
        elif arm == "pruned" and found.prunes:
            stopwatch = stack.enter_context(session()).stopwatch
            stopwatch.mark = clock.mark
        timestamps = stack.enter_context(timestamps_of(found.parts, clock.mark))
        subject.first()  # a session plans at its first run, and caches of kernels are those of this length
        stopwatch.intervals.clear()
        subject.time(timestamps, getattr(found, arm), whole=whole)
    if arm == "pruned":
        found.overhead.append(sum(clock.between(*interval) for interval in stopwatch.intervals))


@contextlib.contextmanager
def _at_floor(found: _Measured, subject: Subject) -> Iterator[int]:
    """The stock model on a prompt of the kept length, and its visual tokens."""
    tokens = math.floor(found.record.layer_average()[0] + 0.5)
    with shorter_prompt(found.parts, subject.inputs, tokens):
        yield tokens


def _figures(subject: Subject, times: Times, gpu: Gpu | None, found: _Measured) -> dict[str, Any]:
    try:
        figures = subject.figures(times, gpu)
    except PrerequisiteError as error:  # a GPU without a counter of energy
        found.unmeasured["energy_j"] = error.message
        figures = subject.figures(times, None)
    attention = _attention(found.parts)
    if attention not in _COUNTED and not figures["kernels"]:  # a part of the work is no figure of the work
        figures["prefill_tflops"] = None
        found.unmeasured["prefill_tflops"] = f"torch cannot count the attention of `{attention}`"
    return figures


def _attention(parts: Parts) -> str:
    return str(getattr(parts.text.config, "_attn_implementation", ""))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
