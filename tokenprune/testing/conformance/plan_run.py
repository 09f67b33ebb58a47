"""A pruner's whole plan on recorded tensors: every stop sees what the stops before it have left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.pruner import Decision, Kept, Pruner, Site, State, Stop
from tokenprune.testing.conformance.result import ConformanceError, NotApplicable
from tokenprune.testing.conformance.under_test import FACTS, PrunerUnderTest, described
from tokenprune.testing.recorded_view import RecordedView
from tokenprune.testing.recording import Recording, random_recording

#: Axis of the visual tokens in the tensors of a recording.
_AXIS: Mapping[str, int] = {
    "hidden": 1,
    "projected": 1,
    "keys": 2,
    "keys_nope": 2,
    "values": 2,
    "final_visual": 1,
    "encoder_features": 1,
    "cls_attention": 2,
    "received_attention": 1,
    "encoder_keys": 2,
    "joint_image": 1,
    "layer_input": 1,
    "mlp_input": 1,
}
_GRID = (6, 8)
_FRAME = (3, 4)
ROUNDING = 1e-6
"""Share by which sums of float32 numbers in different orders may differ: about eight units in the last place."""

_STEPS = 2
"""Decoding steps that a plan with stops of the kind `decode` is asked about."""


class ViewAfterCuts(RecordedView):
    """A recorded view of units of which earlier stops have taken tokens away; it notes the needs that it answers.

    Args:
        recording: The tokens that are left.
        pruner: Its needs are enforced.
        site: Where the cut is.
        keep: K.
        numbers: Number of each unit in the batch.
        indices: Original indices of the tokens, (B, N).
        sizes: Original tokens that each row stands for, (B, N).
        original: Tokens of each unit before the first cut.
        prints: Fingerprint of each unit.
        used: Collects the needs that were asked for.
    """

    def __init__(
        self,
        recording: Recording,
        pruner: Pruner,
        *,
        site: Site,
        keep: int,
        numbers: tuple[int, ...],
        indices: Tensor,
        sizes: Tensor,
        original: int,
        prints: tuple[int, ...],
        used: set[str],
    ) -> None:
        super().__init__(recording, keep, pruner.needs, site=site, facts=FACTS)
        self.original_tokens = original
        self._numbers = numbers
        self._indices = indices
        self._sizes = sizes
        self._prints = prints
        self._used = used

    def ids(self) -> tuple[int, ...]:
        """Numbers of the units in the batch."""
        return self._numbers

    def indices(self) -> Tensor:
        """Original index of each token, (B, N)."""
        return self._indices.clone()

    def sizes(self) -> Tensor:
        """Original tokens that each row stands for, (B, N)."""
        return self._sizes.clone()

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit, of all its tokens."""
        self._declared("fingerprint")
        return self._prints

    def _declared(self, need: str) -> None:
        super()._declared(need)
        self._used.add(need)


@dataclass(frozen=True)
class Choice:
    """What one stop was shown of one unit, and what it kept.

    Args:
        stop: The stop.
        unit: Number of the unit in the batch.
        tokens: Tokens of the unit before the stop.
        keep: K of the view.
        kept: The answer.
    """

    stop: Stop
    unit: int
    tokens: int
    keep: int
    kept: Kept

    def __str__(self) -> str:
        return f"unit {self.unit} at `{self.stop.site}`, {self.tokens} tokens"


@dataclass(frozen=True)
class PlanRun:
    """A whole plan on a recording: the choices in order, and what is left of each unit.

    Args:
        stops: The plan.
        choices: One per stop and unit; of the kind `decode`, one per step too.
        indices: Original indices of what the prefill has left of each unit, in emission order.
        used: Needs that were asked for.
    """

    stops: tuple[Stop, ...]
    choices: tuple[Choice, ...]
    indices: tuple[Tensor, ...]
    used: frozenset[str]

    def of_prefill(self) -> Iterator[Choice]:
        """The choices that take tokens away."""
        return (choice for choice in self.choices if choice.stop.site.kind != "decode")

    def of(self, unit: int) -> list[Choice]:
        """The choices about one unit."""
        return [choice for choice in self.choices if choice.unit == unit]


class RemainingTokens:
    """The units of a recording while a plan goes over them."""

    def __init__(self, recording: Recording, pruner: Pruner) -> None:
        self._recording = recording
        self._pruner = pruner
        count, tokens = recording.units, recording.tokens
        self._indices = [torch.arange(tokens) for _ in range(count)]
        self._sizes = [torch.ones(tokens) for _ in range(count)]
        whole = RecordedView(recording, 1, ("fingerprint",))
        self._prints = whole.fingerprints()
        self.used: set[str] = set()

    @property
    def indices(self) -> tuple[Tensor, ...]:
        """Original indices of what is left of each unit."""
        return tuple(self._indices)

    def decide(self, stop: Stop, state: State) -> list[Choice]:
        """The pruner's choices at a stop; units of equal size are seen in one view, as the engine shows them."""
        groups: dict[int, list[int]] = {}
        for number, indices in enumerate(self._indices):
            groups.setdefault(len(indices), []).append(number)
        choices = []
        for tokens, numbers in groups.items():
            keep = min(tokens, stop.keep(self._recording.tokens))
            indices = torch.stack([self._indices[number] for number in numbers])
            view = ViewAfterCuts(
                _taken(self._recording, numbers, indices),
                self._pruner,
                site=stop.site,
                keep=keep,
                numbers=tuple(numbers),
                indices=indices,
                sizes=torch.stack([self._sizes[number] for number in numbers]),
                original=self._recording.tokens,
                prints=tuple(self._prints[number] for number in numbers),
                used=self.used,
            )
            decision = self._pruner.decide(view, stop, state)
            choices += _checked(decision, stop, numbers, tokens, keep)
        return sorted(choices, key=lambda choice: choice.unit)

    def apply(self, choices: list[Choice]) -> None:
        """Take away what was not kept."""
        for choice in choices:
            sizes = self._sizes[choice.unit][choice.kept.anchors]
            if choice.kept.merge is not None:
                sizes = (choice.kept.merge.to_dense() != 0).float() @ self._sizes[choice.unit]
            self._sizes[choice.unit] = sizes
            self._indices[choice.unit] = self._indices[choice.unit][choice.kept.anchors]


def run_plan(pruner: Pruner, stops: tuple[Stop, ...], recording: Recording) -> PlanRun:
    """PlanRun a plan on a recording.

    Raises:
        ConformanceError: A decision is not one that the engine could follow.
    """
    left, state = RemainingTokens(recording, pruner), State()
    choices: list[Choice] = []
    for stop in (stop for stop in stops if stop.site.kind != "decode"):
        found = left.decide(stop, state)
        left.apply(found)
        choices += found
    views = [stop for stop in stops if stop.site.kind == "decode"]
    state = State()  # of their own, as in the engine
    for _ in range(_STEPS):
        for stop in views:
            choices += left.decide(stop, state)
    return PlanRun(stops, tuple(choices), left.indices, frozenset(left.used))


def pictures(seed: int = 0, units: int = 3) -> Recording:
    """Pictures of 48 tokens."""
    return random_recording(seed, units=units, grid=_GRID)


def film(seed: int = 0, units: int = 2, frames: int = 4) -> Recording:
    """Videos of frames of 12 tokens: two scenes, each a still background in which one row of tokens changes."""
    rows, columns = _FRAME
    recording = random_recording(seed, units=units, grid=(frames * rows, columns))
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(units, 2, rows * columns, 24, generator=generator)
    scene_of = torch.arange(frames) * 2 // max(2, frames)
    tokens = scenes[:, scene_of] + 0.02 * torch.randn(units, frames, rows * columns, 24, generator=generator)
    tokens[:, :, :columns] = torch.randn(units, frames, columns, 24, generator=generator)
    return dataclasses.replace(recording, grid=_FRAME, frames=frames, projected=tokens.flatten(1, 2))


def single() -> Recording:
    """Pictures of one token."""
    return random_recording(2, units=2, grid=(1, 1), clusters=1)


def all_equal(recording: Recording) -> Recording:
    """Every token equal to the first one of its unit."""
    return _each_token(recording, lambda values, axis: values.narrow(axis, 0, 1).expand_as(values).contiguous())


def all_zero(recording: Recording) -> Recording:
    """Every token zero."""
    return _each_token(recording, lambda values, _: torch.zeros_like(values))


def in_order(recording: Recording, order: Tensor) -> Recording:
    """The tokens of every unit in another order (N,); positions stay where they are."""
    return _each_token(recording, lambda values, axis: values.index_select(axis, order).contiguous())


def copied(recording: Recording) -> Recording:
    """Pictures of which the second half of the tokens repeats the first half."""
    half = torch.arange(recording.tokens // 2)
    return in_order(recording, torch.cat([half, half]))


def rounded(recording: Recording, seed: int) -> Recording:
    """Every number of every token changed by a random share of about `ROUNDING`."""
    generator = torch.Generator().manual_seed(seed)

    def change(values: Tensor, _: int) -> Tensor:
        return values * (1.0 + ROUNDING * torch.randn(values.shape, generator=generator))

    return _each_token(recording, change)


def tensors_of(recording: Recording) -> list[Tensor]:
    """Every tensor of a recording."""
    found: list[Tensor] = []
    for entry in dataclasses.fields(recording):
        value = getattr(recording, entry.name)
        found += [value] if isinstance(value, Tensor) else list(value.values()) if isinstance(value, dict) else []
    return found


def runs(tested: PrunerUnderTest, recording: Recording) -> Iterator[tuple[str, PlanRun]]:
    """The admitted budgets of a tested, each with the run of its plan on a recording.

    Raises:
        NotApplicable: Every budget is refused, or the pruner never cuts.
    """
    if not tested.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    admitted = False
    for budget in tested.budgets:
        stops = tested.plan(budget, recording.tokens)
        if stops is not None:
            admitted = True
            yield described(budget), run_plan(tested.pruner, stops, recording)
    if not admitted:
        raise NotApplicable("every budget that was tried is below the floor")


def _checked(decision: Decision, stop: Stop, numbers: list[int], tokens: int, keep: int) -> list[Choice]:
    """The answers as choices, one for each unit.

    Raises:
        ConformanceError: An answer is not one that the engine could follow.
    """
    if len(decision.units) != len(numbers):
        raise ConformanceError(
            f"decision at `{stop.site}`", expected=f"{len(numbers)} units", found=f"{len(decision.units)}"
        )
    choices = [Choice(stop, unit, tokens, keep, kept) for unit, kept in zip(numbers, decision.units, strict=True)]
    for choice in choices:
        anchors = choice.kept.anchors
        if anchors.ndim != 1 or anchors.dtype != torch.int64:
            found = f"{anchors.dtype} of shape {tuple(anchors.shape)}"
            raise ConformanceError(f"indices of {choice}", expected="int64 of shape (K,)", found=found)
        listed = anchors.tolist()
        if not all(0 <= index < tokens for index in listed) or len(set(listed)) != len(listed):
            raise ConformanceError(
                f"indices of {choice}", expected=f"distinct ones within 0..{tokens - 1}", found=listed
            )
    return choices


def _taken(recording: Recording, numbers: list[int], indices: Tensor) -> Recording:
    """Some units of a recording with some of their tokens, (B, n) of them."""
    changed: dict[str, Any] = {"tokens": indices.shape[1]}
    for entry in dataclasses.fields(recording):
        value = getattr(recording, entry.name)
        if isinstance(value, Tensor):
            rows = value[numbers]
            axis = _AXIS.get(entry.name)
            changed[entry.name] = rows if axis is None else _gathered(rows, axis, indices)
        elif isinstance(value, Mapping):
            changed[entry.name] = {
                name: _gathered(rows[numbers], 2, indices) if name == "visual" else rows[numbers]
                for name, rows in value.items()
            }
    return dataclasses.replace(recording, **changed)


def _gathered(values: Tensor, axis: int, indices: Tensor) -> Tensor:
    shape = [indices.shape[0], *(1 for _ in values.shape[1:])]
    shape[axis] = indices.shape[1]
    wanted = list(values.shape)
    wanted[axis] = indices.shape[1]
    return values.gather(axis, indices.view(shape).expand(wanted))


def _each_token(recording: Recording, change: Any) -> Recording:
    changed: dict[str, Any] = {}
    for name, axis in _AXIS.items():
        value = getattr(recording, name)
        if value is not None:
            changed[name] = change(value, axis)
    for name in ("queries", "queries_nope"):
        rows = getattr(recording, name)
        changed[name] = {key: change(value, 2) if key == "visual" else value for key, value in rows.items()}
    return dataclasses.replace(recording, **changed)
