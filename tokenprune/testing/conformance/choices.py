"""Laws of the choice: what `decide` may answer, on recorded tensors and through the whole plan."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenprune.budget import Budget
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Kept, Stop
from tokenprune.testing.conformance.check import Check
from tokenprune.testing.conformance.staged import (
    Choice,
    Run,
    all_equal,
    all_zero,
    copied,
    film,
    in_order,
    pictures,
    rounded,
    runs,
    single,
    staged,
    tensors_of,
)
from tokenprune.testing.conformance.subject import FACTS, Subject, told
from tokenprune.testing.conformance.verdict import ConformanceError, NotApplicable
from tokenprune.testing.recorded_view import RecordedView
from tokenprune.testing.recording import Recording

_HALF = (torch.float16, torch.bfloat16)
_MORE_THAN_A_FRAME = Budget(ratio=0.75)

_ROUNDINGS = 48
"""Runs with other roundings that the law looks at when a copy stays without its original."""

_ALL_OF = 24
"""Runs that a copy must win without losing one before it counts as preferred: chance does so once in 2 ** 24."""


def counted(subject: Subject) -> tuple[str, ...]:
    """Every stop emits as many rows as its budget says, unless it says that the count follows from the data."""
    for name, run in runs(subject, pictures()):
        _check_counts(name, run)
    return ()


def _check_counts(name: str, run: Run) -> None:
    for choice in run.of_prefill():
        count = len(choice.kept.anchors)
        if not choice.stop.auto and count != choice.keep:
            raise ConformanceError(f"rows of {choice}, {name}", expected=choice.keep, found=count)


def legal(subject: Subject) -> tuple[str, ...]:
    """Indices are distinct and in range; weights and labels have one finite entry per row."""
    for name, run in runs(subject, pictures()):
        for choice in run.choices:
            _check_answer(choice, name)
    return ()


def _check_answer(choice: Choice, name: str) -> None:
    kept, count = choice.kept, len(choice.kept.anchors)
    where = f"{choice}, {name}"
    if kept.merge is not None:
        merge = kept.merge.to_dense()
        if tuple(merge.shape) != (count, choice.tokens):
            raise ConformanceError(
                f"shape of the merge map, {where}", expected=(count, choice.tokens), found=tuple(merge.shape)
            )
        if not torch.isfinite(merge).all() or not (merge != 0).any(dim=-1).all():
            raise ConformanceError(f"merge map, {where}", expected="finite rows that are not empty", found="others")
    weights = kept.log_weights
    if weights is not None and (tuple(weights.shape) != (count,) or not torch.isfinite(weights).all()):
        raise ConformanceError(f"log weights, {where}", expected=f"{count} finite ones", found=weights.tolist())
    if kept.labels is not None and len(kept.labels) != count:
        raise ConformanceError(f"labels, {where}", expected=count, found=len(kept.labels))


def unchanged(subject: Subject) -> tuple[str, ...]:
    """Where everything may stay, everything stays as it is."""
    recording = pictures()
    stops = subject.plan(Budget(ratio=1.0), recording.tokens)
    if stops is None:
        raise ConformanceError("keep ratio 1", expected="a plan", found="a refusal")
    if any(stop.auto and not _exact_later(stops, stop) for stop in stops):
        raise NotApplicable("all counts follow from the data")
    for choice in staged(subject.pruner, stops, recording).of_prefill():
        if not _is_identity(choice.kept, choice.tokens):
            found = choice.kept.anchors.tolist()
            what = "all rows, in order, as they are"
            raise ConformanceError(f"keep ratio 1, {choice}", expected=what, found=f"rows {found}")
    return ()


def _exact_later(stops: tuple[Any, ...], stop: Any) -> bool:
    """Whether a stop whose count follows from the data is followed by one whose count is a promise."""
    return any(not later.auto for later in stops[stops.index(stop) + 1 :])


def _is_identity(kept: Kept, tokens: int) -> bool:
    if kept.anchors.tolist() != list(range(tokens)):
        return False
    if kept.log_weights is not None and bool(kept.log_weights.any()):
        return False
    return kept.merge is None or bool(torch.equal(kept.merge.to_dense().float(), torch.eye(tokens)))


def repeated(subject: Subject) -> tuple[str, ...]:
    """The same again, whatever the global random state, which stays as it was."""
    recording = pictures()
    with torch.random.fork_rng():
        for seed, (name, run) in enumerate(runs(subject, recording)):
            torch.manual_seed(seed)
            before, drawn = torch.get_rng_state(), random.getstate()
            again = staged(subject.pruner, run.stops, recording)
            if not torch.equal(before, torch.get_rng_state()) or drawn != random.getstate():
                raise ConformanceError(f"global random state, {name}", expected="left alone", found="moved on")
            _check_same(run, again, range(recording.units), f"the same again, {name}")
    return ()


def alone(subject: Subject) -> tuple[str, ...]:
    """A unit alone gives what it gives in a batch."""
    _check_alone(subject, pictures(3))
    return ()


def _check_alone(subject: Subject, recording: Recording) -> None:
    unit = recording.units - 1
    for name, run in runs(subject, recording):
        one = staged(subject.pruner, run.stops, recording.unit(unit))
        _check_same(run, one, [unit], f"unit {unit} alone, {name}")


def _check_same(first: Run, second: Run, units: Any, where: str) -> None:
    for number, unit in enumerate(units):
        theirs = second.of(number if len(units) == 1 else unit)
        for one, other in zip(first.of(unit), theirs, strict=True):
            if one.kept.anchors.tolist() != other.kept.anchors.tolist():
                raise ConformanceError(
                    f"{where}, {one}", expected=one.kept.anchors.tolist(), found=other.kept.anchors.tolist()
                )
            for name in ("merge", "log_weights"):
                left, right = getattr(one.kept, name), getattr(other.kept, name)
                if (left is None) != (right is None) or (left is not None and not _close(left, right)):
                    raise ConformanceError(f"{where}, {one}", expected=f"the same {name}", found="another")


def _close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left.to_dense().float(), right.to_dense().float(), atol=1e-5, rtol=1e-4)


def lower_first(subject: Subject) -> tuple[str, ...]:
    """Of equal tokens the higher index is not preferred, where the choice looks at content alone.

    Scores of two copies need not be equal to the last bit: a matrix product may add the terms of one row in another
    order than those of the next, depending on the machine's library. Scores that are equal within rounding count as
    tied, and either copy may stay. If a copy stays without its original, the law looks whether rounding decides: it
    changes every number of every token by about as much as rounding does, many times. Copy and original are then equal
    in all but chance, so of the runs in which one of them stays alone, each wins about half. If the copy wins all of
    them, the pruner prefers the higher index.
    """
    recording = copied(pictures(5))
    order = torch.randperm(recording.tokens, generator=torch.Generator().manual_seed(0))
    plain = pictures(6)
    mixed = in_order(plain, order)
    applied = False
    for budget in subject.budgets:
        stops = subject.plan(budget, recording.tokens)
        if not stops or not subject.cuts:
            continue
        first, second = staged(subject.pruner, stops, plain), staged(subject.pruner, stops, mixed)
        moved = [order[row].sort().values.tolist() for row in second.indices]
        if moved != [row.sort().values.tolist() for row in first.indices]:
            continue
        applied = True
        _check_originals(subject, stops, recording)
    if not applied:
        raise NotApplicable("the choice depends on where tokens are, not on what they hold alone")
    return ()


def _check_originals(subject: Subject, stops: tuple[Stop, ...], recording: Recording) -> None:
    """No copy in the second half is preferred to its original in the first half."""
    half = recording.tokens // 2
    originals, copies = _halves(staged(subject.pruner, stops, recording), half)
    suspects = dict.fromkeys(sorted(copies - originals), 0)
    for seed in range(_ROUNDINGS):
        if not suspects:
            return
        originals, copies = _halves(staged(subject.pruner, stops, rounded(recording, seed)), half)
        alone = copies - originals
        suspects = {pair: won + (pair in alone) for pair, won in suspects.items() if pair not in originals - copies}
    for (unit, original), won in suspects.items():
        if won >= _ALL_OF:
            raise ConformanceError(
                f"unit {unit}, whose second half repeats the first",
                expected=f"token {original} before its copy {original + half}",
                found=f"the copy only, also in all {won} runs with other roundings that kept one of the two",
            )


def _halves(run: Run, half: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Unit and original of each token in the first half that stayed, and of each copy in the second half."""
    stayed = [(unit, index) for unit, kept in enumerate(run.indices) for index in kept.tolist()]
    originals = {(unit, index) for unit, index in stayed if index < half}
    return originals, {(unit, index - half) for unit, index in stayed if index >= half}


def degenerate(subject: Subject) -> tuple[str, ...]:
    """Equal tokens and zero tokens get a legal answer without NaN."""
    for what, change in (("equal", all_equal), ("zero", all_zero)):
        _check_runs(subject, change(pictures(4)), f"{what} tokens")
    return ()


def _check_runs(subject: Subject, recording: Recording, what: str) -> None:
    for name, run in runs(subject, recording):
        _check_counts(f"{what}, {name}", run)
        for choice in run.choices:
            _check_answer(choice, f"{what}, {name}")


class _HalfWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation that makes numbers of half precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, Tensor) and value.dtype in _HALF and not self.first:
                self.first = f"{func} made {value.dtype}"
        return made


def full_precision(subject: Subject) -> tuple[str, ...]:
    """Whatever the model's precision, scores are float32."""
    for dtype in _HALF:
        recording = _as_seen(pictures(7), dtype)
        found = list(runs(subject, recording))
        for name, run in found:
            _check_counts(f"{dtype}, {name}", run)
            for choice in run.choices:
                _check_answer(choice, f"{dtype}, {name}")
        with _HalfWatch() as watch:
            staged(subject.pruner, found[0][1].stops, recording.unit(0))
        if watch.first:
            raise ConformanceError(f"scores of a {dtype} model", expected="float32 throughout", found=watch.first)
    return ()


def _as_seen(recording: Recording, dtype: torch.dtype) -> Recording:
    """Values that a model of a precision has, handed over as float32: so does every view."""
    return recording.to(dtype).to(torch.float32)


def short(subject: Subject) -> tuple[str, ...]:
    """One token, one row, and fewer tokens than the budget: all are answered."""
    if not subject.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    answered = False
    for recording, tokens in ((pictures(), 1), (pictures(), pictures().tokens - 1), (pictures(), 1000), (single(), 1)):
        stops = subject.plan(Budget(tokens=tokens), recording.tokens)
        if stops is None:
            continue
        answered = True
        name = f"{tokens} of {recording.tokens} tokens"
        run = staged(subject.pruner, stops, recording)
        _check_counts(name, run)
        for choice in run.choices:
            _check_answer(choice, name)
            if choice.stop.drop_all and len(choice.kept.anchors):
                raise ConformanceError(f"rows of {choice}, which drops all", expected=0, found=len(choice.kept.anchors))
    if not answered:
        raise NotApplicable("these budgets are below the floor")
    return ()


def videos(subject: Subject) -> tuple[str, ...]:
    """A video of several frames is pruned like any unit, or refused."""
    roomy = dataclasses.replace(subject, budgets=(*subject.budgets, _MORE_THAN_A_FRAME))
    try:
        _check_runs(roomy, film(), "a video")
        _check_runs(subject, all_equal(film(4)), "a video that stands still")
        _check_alone(subject, film(3))
    except IncompatibleError as error:
        raise NotApplicable(f"videos are refused: {error.message}") from None
    return ()


def declared(subject: Subject) -> tuple[str, ...]:
    """The needs that are used are declared; a declared need that nothing asks for is remarked on."""
    spec = set(subject.spec.needs) | ({"hidden"} if subject.options.get("mass_correction") else set())
    if set(subject.pruner.needs) - spec:
        raise ConformanceError("`needs`", expected=f"at most the spec's {sorted(spec)}", found=subject.pruner.needs)
    used: set[str] = set()
    for _, run in runs(subject, pictures()):
        used |= run.used
    idle = sorted(set(subject.pruner.needs) - used)
    return (f"declared, but not used under these options: {', '.join(idle)}",) if idle else ()


def pure(subject: Subject) -> tuple[str, ...]:
    """A decision changes neither the tensors that it was shown nor the pruner."""
    if not subject.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    recording = pictures()
    before = [tensor.clone() for tensor in tensors_of(recording)]
    was = repr(subject.pruner)
    for budget in subject.budgets:
        stops = subject.plan(budget, recording.tokens)
        if not stops:
            continue
        # at the first stop nothing is gone yet, so this view hands out the recording's own tensors
        keep = min(recording.tokens, stops[0].keep(recording.tokens))
        view = RecordedView(recording, keep, subject.pruner.needs, site=stops[0].site, facts=FACTS)
        subject.pruner.decide(view, stops[0], {})
        if not all(map(torch.equal, before, tensors_of(recording))):
            raise ConformanceError(f"tensors of the view, {told(budget)}", expected="left as they are", found="changed")
        if repr(subject.pruner) != was:
            raise ConformanceError(f"pruner, {told(budget)}", expected=was, found=repr(subject.pruner))
    return ()


def _law(name: str, law: str, function: Callable[[Subject], tuple[str, ...]]) -> Check:
    return Check(name, "choice", law, function)


CHECKS = (
    _law("count", "every stop emits what its budget says, unless it says `auto`", counted),
    _law("indices", "kept indices are distinct and in range, weights finite", legal),
    _law("identity", "where everything may stay, nothing changes", unchanged),
    _law("deterministic", "the same input gives the same choice; global random state is left alone", repeated),
    _law("batch", "a unit's choice does not depend on its batch mates", alone),
    _law(
        "ties", "of equal tokens the higher index is not preferred; if rounding decides, either may stay", lower_first
    ),
    _law("degenerate", "equal and zero tokens give no NaN", degenerate),
    _law("precision", "scores are float32 for models of half precision", full_precision),
    _law("short", "N < K, K = 1, N = 1 and K = 0 are handled", short),
    _law("video", "a video is pruned like any unit, or refused", videos),
    _law("needs", "what is used is declared", declared),
    _law("pure", "neither the view's tensors nor the pruner change", pure),
)
