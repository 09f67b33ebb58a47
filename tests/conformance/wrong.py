"""One wrong pruner for each law, each wrong in that one way, and the name of the law that must find it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, OneCut, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

WRONG: dict[str, Pruner] = {}


def breaks(
    law: str, *, needs: Sequence[str] = ("projected",), sites: Sequence[Any] = (), source: str = "a test"
) -> Any:
    """Register a pruner as the one that breaks a law."""

    def attach(cls: type[Pruner]) -> type[Pruner]:
        made = pruner(
            f"wrong-{law}",
            summary=f"breaks the law `{law}`",
            source=Source(source),
            axes=Axes(site="input"),
            formula="none",
            fidelity="none",
            needs=needs,
            sites=sites,
        )(cls)
        WRONG[law] = made()
        return made

    return attach


@dataclass(frozen=True)
class Good(OneCut):
    """Keeps the largest rows, ties to the lower index: the pruner that the others spoil."""

    def score(self, view: View) -> Tensor:
        return view.projected().norm(dim=-1)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        order = self.score(view).sort(dim=-1, descending=True, stable=True).indices
        return Decision.keep(order[:, : view.keep])


@pruner(
    "good",
    summary="keeps every law",
    source=Source("a test"),
    axes=Axes(site="input"),
    formula="top-k of the norm",
    fidelity="none",
    needs=("projected",),
)
@dataclass(frozen=True)
class Lawful(Good):
    pass


@breaks("spec", source=" ")
@dataclass(frozen=True)
class NoSource(Good):
    pass


@breaks("options")
@dataclass(frozen=True)
class CrashingOption(Good):
    layer: int = 2

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ZeroDivisionError("a negative layer")


class _Cell:
    """Equal to nothing but itself."""


@breaks("copy")
@dataclass(frozen=True)
class NotAValue(Good):
    cell: Any = field(default_factory=lambda: None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cell", _Cell())


@breaks("plan", sites=("input", "layer"))
@dataclass(frozen=True)
class OutOfOrder(Good):
    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        asked = Budget(ratio=budget.ratio, tokens=budget.tokens)
        return (Stop(Site("layer", 2), asked), Stop(Site("input"), asked))


@breaks("budget")
@dataclass(frozen=True)
class Generous(Good):
    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        return (Stop(Site("input"), Budget(tokens=min(tokens, budget.count(tokens) + 1))),)


@breaks("floor")
@dataclass(frozen=True)
class Sulking(Good):
    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        if budget.count(tokens) < tokens // 8:
            raise BudgetError("that is too little", hint="give more")
        return super().plan(facts, budget, tokens)


@breaks("count")
@dataclass(frozen=True)
class OneFewer(Good):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        units = super().decide(view, stop, state).units
        return Decision(tuple(Kept(kept.anchors[:-1] if view.keep > 1 else kept.anchors) for kept in units))


@breaks("indices")
@dataclass(frozen=True)
class NameTwice(Good):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        return Decision((Kept(torch.zeros(view.keep, dtype=torch.long)),) * view.units)


@breaks("identity")
@dataclass(frozen=True)
class ByScore(Good):
    """Emits rows by falling score: with everything kept they come in another order."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        order = self.score(view).sort(dim=-1, descending=True, stable=True).indices
        return Decision(tuple(Kept(row) for row in order[:, : view.keep]))


@breaks("deterministic")
@dataclass(frozen=True)
class Dice(Good):
    def score(self, view: View) -> Tensor:
        return torch.rand(view.units, view.tokens)


@breaks("batch")
@dataclass(frozen=True)
class BatchWide(Good):
    """Distance from the mean of the whole batch."""

    def score(self, view: View) -> Tensor:
        rows = view.projected()
        return (rows - rows.mean(dim=(0, 1))).norm(dim=-1)


@breaks("ties")
@dataclass(frozen=True)
class LastTwin(Good):
    """Of tokens that are nearly equal only the last one counts."""

    def score(self, view: View) -> Tensor:
        rows = torch.nn.functional.normalize(view.projected(), dim=-1)
        twins = (rows @ rows.transpose(-1, -2) > 0.9999).triu(1).any(dim=-1)
        return super().score(view) * ~twins


@breaks("degenerate")
@dataclass(frozen=True)
class Standardised(Good):
    """Log weights by the spread of the scores: NaN where there is none."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        score, kept = self.score(view), super().decide(view, stop, state)
        units = [
            dataclasses.replace(one, log_weights=(row / row.std(unbiased=False) * 0.0)[one.anchors])
            for one, row in zip(kept.units, score - score.mean(dim=-1, keepdim=True), strict=True)
        ]
        return Decision(tuple(units)) if view.tokens > 1 else kept


@breaks("precision")
@dataclass(frozen=True)
class Halved(Good):
    def score(self, view: View) -> Tensor:
        return view.projected().half().float().norm(dim=-1)


@breaks("short")
@dataclass(frozen=True)
class AtLeastTwo(Good):
    """Divides by the rows that are dropped."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        if view.tokens == 1:
            raise ArithmeticError("one token has no neighbour")
        return super().decide(view, stop, state)


@breaks("video", needs=("projected", "geometry"))
@dataclass(frozen=True)
class OneFrame(Good):
    """Takes the grid of a frame for the whole unit."""

    def score(self, view: View) -> Tensor:
        rows, columns = view.grid()
        return super().score(view).view(view.units, rows, columns).flatten(1)


@breaks("mass")
@dataclass(frozen=True)
class MovedByMass(Good):
    """Keeps other rows when their mass is corrected."""

    mass_correction: bool = False

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        if not self.mass_correction:
            return super().decide(view, stop, state)
        rows = torch.arange(view.keep).expand(view.units, -1)
        return Decision.keep(rows, log_weights=torch.zeros(rows.shape))


@breaks("needs", needs=("geometry",))
@dataclass(frozen=True)
class Undeclared(Good):
    pass


@breaks("pure")
@dataclass(frozen=True)
class InPlace(Good):
    def score(self, view: View) -> Tensor:
        return view.projected().mul_(0.5).norm(dim=-1)


@breaks("generate", sites=("layer",))
@dataclass(frozen=True)
class OnlyOnPaper(Good):
    """Cuts well on recorded tensors, fewer rows than asked in a real model."""

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        return (Stop(Site("layer", 0), Budget(ratio=budget.ratio, tokens=budget.tokens)),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        units = super().decide(view, stop, state).units
        return Decision(tuple(Kept(kept.anchors[::2]) for kept in units))


@breaks("whole")
@dataclass(frozen=True)
class Doubled(Good):
    """Keeps everything at twice its size."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        units = super().decide(view, stop, state).units
        eye = 2.0 * torch.eye(view.tokens)
        return Decision(tuple(Kept(kept.anchors, merge=eye[kept.anchors]) for kept in units))


@breaks("singles")
@dataclass(frozen=True)
class ByPlace(Good):
    """The first unit of a batch keeps other rows than the rest."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        first, *rest = super().decide(view, stop, state).units
        return Decision((*(Kept((view.tokens - 1 - kept.anchors).flip(0)) for kept in rest), first))


@breaks("masked", needs=("projected", "fingerprint"))
@dataclass(frozen=True)
class Forgetful(Good):
    """Another choice at every call, so that nothing can be compared with it."""

    def score(self, view: View) -> Tensor:
        return torch.rand(view.units, view.tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        anchors = super().decide(view, stop, state).units
        swapped = torch.arange(view.keep).flip(0)
        return Decision(tuple(Kept(kept.anchors[swapped]) for kept in anchors))


@breaks("restored")
@dataclass(frozen=True)
class Meddler(Good):
    """Leaves a trace in the model that it found by itself."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        for found in _multimodal_models():
            setattr(found, f"touched_{random.random()}", True)
        return super().decide(view, stop, state)


def _multimodal_models() -> list[Any]:
    import gc

    from transformers import PreTrainedModel

    return [found for found in gc.get_objects() if isinstance(found, PreTrainedModel)]


@breaks("bfloat16")
@dataclass(frozen=True)
class FullOnly(Good):
    """Knows models of full precision only."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        rows = view.projected()
        if torch.equal(rows, rows.to(torch.bfloat16).float()):
            raise ConfigError("this model was rounded")
        return super().decide(view, stop, state)
