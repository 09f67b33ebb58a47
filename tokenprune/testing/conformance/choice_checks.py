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
from tokenprune.correction import MassCorrected
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Kept
from tokenprune.registry import MASS_CORRECTION
from tokenprune.testing.conformance.check import Check
from tokenprune.testing.conformance.plan_run import (
    Choice,
    PlanRun,
    all_equal,
    all_zero,
    film,
    pictures,
    run_plan,
    runs,
    single,
    tensors_of,
)
from tokenprune.testing.conformance.result import ConformanceError, NotApplicable
from tokenprune.testing.conformance.ties import lower_first
from tokenprune.testing.conformance.under_test import FACTS, PrunerUnderTest, described
from tokenprune.testing.recorded_view import RecordedView
from tokenprune.testing.recording import Recording

_HALF = (torch.float16, torch.bfloat16)
_MORE_THAN_A_FRAME = Budget(ratio=0.75)
_FRAMES = (1, 2, 3, 8)


def counted(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Every stop emits as many rows as its budget says, unless it says that the count follows from the data."""
    for name, run in runs(tested, pictures()):
        _check_counts(name, run)
    return ()


def _check_counts(name: str, run: PlanRun) -> None:
    for choice in run.of_prefill():
        count = len(choice.kept.anchors)
        if not choice.stop.auto and count != choice.keep:
            raise ConformanceError(f"rows of {choice}, {name}", expected=choice.keep, found=count)


def legal(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Indices are distinct and in range; weights and labels have one finite entry per row."""
    for name, run in runs(tested, pictures()):
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


def unchanged(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Where everything may stay, everything stays as it is."""
    if not _check_unchanged(tested, pictures()):
        raise NotApplicable("all counts follow from the data, or from options")
    return ()


def _check_unchanged(tested: PrunerUnderTest, recording: Recording) -> bool:
    """Check keep ratio 1; false if counts follow from the data or from options, so that there is no promise."""
    if tested.cuts and not tested.pruner.reads_budget:
        return False
    stops = tested.plan(Budget(ratio=1.0), recording.tokens)
    if stops is None:
        raise ConformanceError("keep ratio 1", expected="a plan", found="a refusal")
    if any(stop.auto and not _exact_later(stops, stop) for stop in stops):
        return False
    for choice in run_plan(tested.pruner, stops, recording).of_prefill():
        if not _is_identity(choice.kept, choice.tokens):
            found = choice.kept.anchors.tolist()
            what = "all rows, in order, as they are"
            raise ConformanceError(f"keep ratio 1, {choice}", expected=what, found=f"rows {found}")
    return True


def _exact_later(stops: tuple[Any, ...], stop: Any) -> bool:
    """Whether a stop whose count follows from the data is followed by one whose count is a promise."""
    return any(not later.auto for later in stops[stops.index(stop) + 1 :])


def _is_identity(kept: Kept, tokens: int) -> bool:
    if kept.anchors.tolist() != list(range(tokens)):
        return False
    if kept.log_weights is not None and bool(kept.log_weights.any()):
        return False
    return kept.merge is None or bool(torch.equal(kept.merge.to_dense().float(), torch.eye(tokens)))


def repeated(tested: PrunerUnderTest) -> tuple[str, ...]:
    """The same again, whatever the global random state, which stays as it was."""
    _check_repeated(tested, pictures())
    return ()


def _check_repeated(tested: PrunerUnderTest, recording: Recording) -> None:
    with torch.random.fork_rng():
        for seed, (name, run) in enumerate(runs(tested, recording)):
            torch.manual_seed(seed)
            before, drawn = torch.get_rng_state(), random.getstate()
            again = run_plan(tested.pruner, run.stops, recording)
            if not torch.equal(before, torch.get_rng_state()) or drawn != random.getstate():
                raise ConformanceError(f"global random state, {name}", expected="left alone", found="moved on")
            _check_same(run, again, range(recording.units), f"the same again, {name}")


def alone(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A unit alone gives what it gives in a batch."""
    _check_alone(tested, pictures(3))
    return ()


def _check_alone(tested: PrunerUnderTest, recording: Recording) -> None:
    unit = recording.units - 1
    for name, run in runs(tested, recording):
        one = run_plan(tested.pruner, run.stops, recording.unit(unit))
        _check_same(run, one, [unit], f"unit {unit} alone, {name}")


def _check_same(first: PlanRun, second: PlanRun, units: Any, where: str) -> None:
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


def degenerate(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Equal tokens and zero tokens get a legal answer without NaN."""
    for what, change in (("equal", all_equal), ("zero", all_zero)):
        _check_runs(tested, change(pictures(4)), f"{what} tokens")
    return ()


def _check_runs(tested: PrunerUnderTest, recording: Recording, what: str) -> None:
    for name, run in runs(tested, recording):
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


def full_precision(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Whatever the model's precision, scores are float32."""
    for dtype in _HALF:
        recording = _as_seen(pictures(7), dtype)
        found = list(runs(tested, recording))
        for name, run in found:
            _check_counts(f"{dtype}, {name}", run)
            for choice in run.choices:
                _check_answer(choice, f"{dtype}, {name}")
        with _HalfWatch() as watch:
            run_plan(tested.pruner, found[0][1].stops, recording.unit(0))
        if watch.first:
            raise ConformanceError(f"scores of a {dtype} model", expected="float32 throughout", found=watch.first)
    return ()


def _as_bfloat16(recording: Recording) -> Recording:
    return _as_seen(recording, torch.bfloat16)


def _as_seen(recording: Recording, dtype: torch.dtype) -> Recording:
    """Values that a model of a precision has, handed over as float32: so does every view."""
    return recording.to(dtype).to(torch.float32)


def short(tested: PrunerUnderTest) -> tuple[str, ...]:
    """One token, one row, and fewer tokens than the budget: all are answered."""
    if not tested.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    answered = False
    for recording, tokens in ((pictures(), 1), (pictures(), pictures().tokens - 1), (pictures(), 1000), (single(), 1)):
        stops = tested.plan(Budget(tokens=tokens), recording.tokens)
        if stops is None:
            continue
        answered = True
        name = f"{tokens} of {recording.tokens} tokens"
        run = run_plan(tested.pruner, stops, recording)
        _check_counts(name, run)
        for choice in run.choices:
            _check_answer(choice, name)
            if choice.stop.drop_all and len(choice.kept.anchors):
                raise ConformanceError(f"rows of {choice}, which drops all", expected=0, found=len(choice.kept.anchors))
    if not answered:
        raise NotApplicable("these budgets are below the floor")
    return ()


def videos(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A video of one, two or more frames is pruned like any unit, or refused."""
    roomy = dataclasses.replace(tested, budgets=(*tested.budgets, _MORE_THAN_A_FRAME))
    try:
        for frames in _FRAMES:
            _check_runs(roomy, film(frames=frames), f"a video of {frames} frames")
            _check_alone(tested, film(3, frames=frames))
            _check_unchanged(tested, film(5, frames=frames))
        for what, change in (("stands still", all_equal), ("is black", all_zero), ("is rounded", _as_bfloat16)):
            _check_runs(tested, change(film(4)), f"a video that {what}")
        _check_repeated(tested, film(6, frames=8))
    except IncompatibleError as error:
        raise NotApplicable(f"videos are refused: {error.message}") from None
    return ()


def corrected(tested: PrunerUnderTest) -> tuple[str, ...]:
    """With mass correction plan and rows are the same, and every row's weight is the log of at least one token."""
    plain, massive = _without_and_with_mass(tested)
    recording = pictures()
    for budget in tested.budgets:
        wanted, found = (one.plan(budget, recording.tokens) for one in (plain, massive))
        if wanted != found:
            raise ConformanceError(f"plan with mass correction, {described(budget)}", expected=wanted, found=found)
    for name, run in runs(plain, recording):
        again = run_plan(massive.pruner, run.stops, recording)
        for one, other in zip(run.of_prefill(), again.of_prefill(), strict=True):
            where = f"{one} with mass correction, {name}"
            if one.kept.anchors.tolist() != other.kept.anchors.tolist():
                rows = one.kept.anchors.tolist()
                raise ConformanceError(f"rows of {where}", expected=rows, found=other.kept.anchors.tolist())
            weights = other.kept.log_weights
            if len(other.kept.anchors) and (weights is None or not bool((weights >= 0).all())):
                raise ConformanceError(f"log weights of {where}", expected="none below 0", found=weights)
    return ()


def _without_and_with_mass(tested: PrunerUnderTest) -> tuple[PrunerUnderTest, PrunerUnderTest]:
    pruner = tested.pruner
    if isinstance(pruner, MassCorrected):
        pruner = pruner.inner
    if MASS_CORRECTION not in tested.spec.defaults:
        return dataclasses.replace(tested, pruner=pruner), dataclasses.replace(tested, pruner=MassCorrected(pruner))
    without, with_it = (dataclasses.replace(pruner, **{MASS_CORRECTION: on}) for on in (False, True))
    return dataclasses.replace(tested, pruner=without), dataclasses.replace(tested, pruner=with_it)


def declared(tested: PrunerUnderTest) -> tuple[str, ...]:
    """The needs that are used are declared; a declared need that nothing asks for is remarked on."""
    spec = set(tested.spec.needs) | ({"hidden"} if tested.options.get("mass_correction") else set())
    if set(tested.pruner.needs) - spec:
        raise ConformanceError("`needs`", expected=f"at most the spec's {sorted(spec)}", found=tested.pruner.needs)
    used: set[str] = set()
    for _, run in runs(tested, pictures()):
        used |= run.used
    idle = sorted(set(tested.pruner.needs) - used)
    return (f"declared, but not used under these options: {', '.join(idle)}",) if idle else ()


def pure(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A decision changes neither the tensors that it was shown nor the pruner."""
    if not tested.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    recording = pictures()
    before = [tensor.clone() for tensor in tensors_of(recording)]
    was = repr(tested.pruner)
    for budget in tested.budgets:
        stops = tested.plan(budget, recording.tokens)
        if not stops:
            continue
        # at the first stop nothing is gone yet, so this view hands out the recording's own tensors
        keep = min(recording.tokens, stops[0].keep(recording.tokens))
        view = RecordedView(recording, keep, tested.pruner.needs, site=stops[0].site, facts=FACTS)
        tested.pruner.decide(view, stops[0], {})
        if not all(map(torch.equal, before, tensors_of(recording))):
            where = f"tensors of the view, {described(budget)}"
            raise ConformanceError(where, expected="left as they are", found="changed")
        if repr(tested.pruner) != was:
            raise ConformanceError(f"pruner, {described(budget)}", expected=was, found=repr(tested.pruner))
    return ()


def _law(name: str, law: str, function: Callable[[PrunerUnderTest], tuple[str, ...]]) -> Check:
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
    _law("video", "a video of one, two or more frames is pruned like any unit, or refused", videos),
    _law("mass", "with mass correction the same rows stay, with weights of at least one token", corrected),
    _law("needs", "what is used is declared", declared),
    _law("pure", "neither the view's tensors nor the pruner change", pure),
)
