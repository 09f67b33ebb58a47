"""FitPrune: a little less in every decoder layer, by the attention among the tokens times that of the text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError
from tokenprune.pruner import Calibrator, Decision, Kept, ModelFacts, Prefill, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import asked_tokens, depth, geometric, layer_average, solved_stops

if TYPE_CHECKING:
    from torch import Tensor

_SOURCE = Source(
    title="Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models",
    authors="Ye et al.",
    venue="AAAI 2025",
    url="https://arxiv.org/abs/2409.10197",
    code="https://github.com/ywh187/FitPrune",
)
_RESOLUTION = 0.01
"""Width of the interval of tolerances at which the calibration stops halving it."""


@pruner(
    "fitprune",
    summary="In every decoder layer, attention received from the visual tokens times that from the text, top-k",
    source=_SOURCE,
    axes=Axes(
        site="every decoder layer, between attention and MLP",
        budget="ratio or tokens: a constant share stays after each layer, or a calibrated table of deletions",
        magnitude="attention received from visual rows times from text rows, largest head, the layer's own",
    ),
    formula="in each layer, top-k of (mean_{q visual} max_h a_qi) (mean_{q text} max_h a_qi)",
    needs=("attention",),
    sites=("layer",),
    calibrates=("tables",),
    fidelity=(
        "Published counts come from tables that are calibrated offline for a model and a reduction; `tokenprune "
        "calibrate fitprune` makes one per budget and `tables` takes them. A budget without a table lets a constant "
        "share stay after each layer, solved from the budget. A table that leaves more than the budget, or deletes "
        "more tokens than there are, is refused. The calibration is the published one: per layer the intersection of "
        "the two largest sets of least attended tokens that leave 1 - alpha of the unpruned self and cross mass, no "
        "more deletions once the target is met, counts averaged over the samples and rounded down, alpha halved to "
        "0.01. It differs in the target (mean visual tokens per layer, or tokens after the last cut, as the budget's "
        "account says; theirs: a forecast of FLOPs) and in its end: the last scheme that meets the target, where "
        "theirs prints the last one tried, which may miss it. Rounding down takes the scheme a little under what each "
        "sample lost, so the target is checked on the scheme itself. Original positions are kept, as published."
    ),
)
@dataclass(frozen=True)
class FitPrune(Pruner):
    """Drop in every layer what neither the picture nor the text attends to.

    Args:
        tables: By budget (`64`, `25%`), the tokens to delete in each layer from the first on.
    """

    tables: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, table in self.tables.items():
            if not isinstance(table, list | tuple) or not all(type(count) is int and count >= 0 for count in table):
                raise ConfigError(
                    f"option `tables` of `fitprune` holds lists of counts >= 0, got {table!r} for `{label}`",
                    hint="one count per decoder layer; `tokenprune calibrate fitprune` makes such tables",
                )
        object.__setattr__(self, "tables", {str(label): tuple(table) for label, table in self.tables.items()})

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop in each layer that deletes something."""
        sites = _sites(facts)
        table = self.tables.get(budget.label())
        if table is None:
            return solved_stops("fitprune", sites, geometric(tokens, len(sites)), facts, budget, tokens)
        if len(table) > facts.num_layers or sum(table) >= tokens:
            raise IncompatibleError(
                f"the table of `fitprune` for budget {budget.label()} deletes {sum(table)} tokens in {len(table)} "
                f"layers, but the model has {tokens} visual tokens and {facts.num_layers} layers",
                hint="calibrate it for this model, or leave it out to solve the counts from the budget",
            )
        left, asked = _measure(table, facts, budget, tokens), asked_tokens(budget, tokens)
        if left > asked + 0.5:
            raise BudgetError(
                f"the table of `fitprune` for budget {budget.label()} leaves {left:.1f} of {tokens} tokens by the "
                f"account `{budget.account}`, asked for {asked:.1f}",
                hint="calibrate it for this account, or leave it out to solve the counts from the budget",
            )
        sizes = itertools.accumulate(table, lambda size, gone: size - gone, initial=tokens)
        return tuple(
            Stop(site, Budget(tokens=size - gone))
            for site, size, gone in zip(sites, sizes, table, strict=False)
            if gone
        )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k of the product."""
        return Decision.keep(dual.top_k(self.score(view), view.keep))

    def score(self, view: View) -> Tensor:
        """Self mass times cross mass, (B, N)."""
        own, cross = self.masses(view)
        return own * cross

    @staticmethod
    def masses(view: View) -> tuple[Tensor, Tensor]:
        """Attention that each token receives from the visual rows and from the text rows, (B, N) each.

        The largest head, mean over the rows, in the layer of the cut.
        """
        return view.attention_received("visual", heads="max"), view.attention_received("text", heads="max")

    @staticmethod
    def deletable(mass: Tensor, reference: Tensor, tolerance: float) -> Tensor:
        """The most tokens of least mass without which 1 - tolerance of the reference is left, (B, N) bool.

        Args:
            mass: Mass of the tokens still there, (B, N).
            reference: Mass of all tokens of the unpruned sequence, (B,).
            tolerance: alpha in [0, 1].
        """
        import torch

        ascending = mass.sort(dim=-1, stable=True)
        left = mass.sum(dim=-1, keepdim=True) - ascending.values.cumsum(dim=-1)
        allowed = left >= (1.0 - tolerance) * reference.unsqueeze(-1)
        return torch.zeros_like(allowed).scatter(-1, ascending.indices, allowed)

    def calibrate(self, calibrator: Calibrator, budget: Budget) -> Mapping[str, Any]:
        """Find the table of one budget: the least tolerance whose mean deletions meet it.

        Returns:
            The option `tables` with the one that was found, the others as they were.

        Raises:
            BudgetError: Even deleting all but one token in the first layer misses the budget.
        """
        facts, tokens = calibrator.facts, calibrator.tokens
        asked = asked_tokens(budget, tokens)
        noting = _Noting()
        calibrator.run(noting, Budget(ratio=1.0))

        def scheme(tolerance: float) -> tuple[int, ...]:
            trial = _Trial(tolerance=tolerance, references=tuple(noting.references), budget=budget)
            return _mean_deletions(calibrator.run(trial, Budget(ratio=1.0)), facts)

        low, high = 0.0, 1.0
        best = scheme(high)
        floor = _measure(best, facts, budget, tokens)
        if floor > asked:
            raise BudgetError(
                f"`fitprune` cannot be calibrated to {asked:.1f} of {tokens} tokens by the account "
                f"`{budget.account}`: its floor is {floor:.1f} ({floor / tokens:.1%})",
                hint="raise the budget, or compare at equal `kept` tokens",
            )
        while high - low > _RESOLUTION:
            middle = (low + high) / 2.0
            found = scheme(middle)
            if _measure(found, facts, budget, tokens) <= asked:
                high, best = middle, found
            else:
                low = middle
        return {"tables": {**{label: list(table) for label, table in self.tables.items()}, budget.label(): list(best)}}


def _sites(facts: ModelFacts) -> list[Site]:
    return [Site("layer", layer, "mid") for layer in range(facts.num_layers)]


def _measure(table: Sequence[int], facts: ModelFacts, budget: Budget, tokens: int) -> float:
    """What a table leaves, by the budget's account."""
    sizes = [tokens - gone for gone in itertools.accumulate(table)]
    if budget.account == "kept":
        return sizes[-1] if sizes else tokens
    return layer_average([depth(site) for site in _sites(facts)[: len(table)]], sizes, tokens, facts.num_layers)


def _mean_deletions(prefills: Sequence[Prefill], facts: ModelFacts) -> tuple[int, ...]:
    """Tokens deleted in each layer, mean over all images, rounded down."""
    names = {str(site): layer for layer, site in enumerate(_sites(facts))}
    deleted: list[list[int]] = [[] for _ in names]
    for prefill in prefills:
        for unit in prefill.record.units:
            deleted[names[unit.site]].append(unit.before - unit.kept)
    return tuple(math.floor(sum(counts) / len(counts)) if counts else 0 for counts in deleted)


@dataclass(frozen=True)
class _EveryLayer(Pruner):
    """A run of the calibration: a stop in every layer, whose count follows from the data; prompts are numbered."""

    prompts: Iterator[int] = field(default_factory=itertools.count)

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        return tuple(Stop(site, budget, auto=True) for site in _sites(facts))

    def prompt(self, state: State) -> int:
        """Number of the prompt that the state belongs to, in running order."""
        if "prompt" not in state:
            state["prompt"] = next(self.prompts)
        return int(state["prompt"])


@pruner(
    "fitprune-noting",
    summary="Keeps all tokens and notes what attention they receive (for the calibration of `fitprune`)",
    source=_SOURCE,
    axes=Axes(site="every decoder layer, between attention and MLP"),
    needs=("attention",),
    sites=("layer",),
)
@dataclass(frozen=True)
class _Noting(_EveryLayer):
    """Keeps everything; per prompt, the self and cross mass of each unit and layer, (2,)."""

    references: list[dict[tuple[int, int], Tensor]] = field(default_factory=list)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        import torch

        prompt = self.prompt(state)
        if prompt == len(self.references):
            self.references.append({})
        own, cross = FitPrune.masses(view)
        for unit, both in zip(view.ids(), torch.stack((own.sum(dim=-1), cross.sum(dim=-1)), dim=-1), strict=True):
            self.references[prompt][unit, stop.site.layer] = both
        every = torch.arange(view.tokens, device=own.device)
        return Decision(tuple(Kept(every) for _ in range(view.units)))


@pruner(
    "fitprune-trial",
    summary="Deletes what a tolerance allows in every layer (for the calibration of `fitprune`)",
    source=_SOURCE,
    axes=Axes(site="every decoder layer, between attention and MLP", budget="tolerance"),
    needs=("attention",),
    sites=("layer",),
)
@dataclass(frozen=True)
class _Trial(_EveryLayer):
    """Deletes the intersection of both deletable sets until the budget is met."""

    tolerance: float = 0.0
    references: tuple[Mapping[tuple[int, int], Tensor], ...] = ()
    budget: Budget = field(default_factory=lambda: Budget(ratio=1.0))

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        import torch

        layer, every = stop.site.layer, torch.arange(view.tokens, device=view.indices().device)
        noted = self.references[self.prompt(state)]
        met = [self._met(unit, view, stop, state) for unit in view.ids()]
        own, cross = FitPrune.masses(view)
        references = torch.stack([noted[unit, layer] for unit in view.ids()]).to(own)
        gone = FitPrune.deletable(own, references[:, 0], self.tolerance)
        gone = gone & FitPrune.deletable(cross, references[:, 1], self.tolerance)
        gone = gone.scatter(-1, dual.top_k(own * cross, 1), False)  # an image never vanishes
        return Decision(tuple(Kept(every if done else every[~row]) for done, row in zip(met, gone, strict=True)))

    def _met(self, unit: int, view: View, stop: Stop, state: State) -> bool:
        """Whether the budget would be met without another deletion of this unit."""
        if self.budget.account == "kept":
            return view.tokens <= asked_tokens(self.budget, view.original_tokens)
        ran: dict[int, float] = state.setdefault("ran", {})
        here = depth(stop.site)
        # what ran since the last stop, half a layer where this is the first
        ran[unit] = ran.get(unit, 0.0) + view.tokens * min(1.0, here)
        forecast = (ran[unit] + view.tokens * (view.facts.num_layers - here)) / view.facts.num_layers
        return forecast <= asked_tokens(self.budget, view.original_tokens)
