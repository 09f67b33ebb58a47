"""VTW: every visual token leaves at one decoder layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError
from tokenprune.pruner import Calibrator, Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import DECODER_DEPTH, decoder_layers

if TYPE_CHECKING:
    from torch import Tensor

_FIRST = 5
"""The first layer that the calibration tries."""


@pruner(
    "vtw",
    summary="All visual tokens are withdrawn at one decoder layer; the budget says which",
    source=Source(
        title="Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
        authors="Lin et al.",
        venue="AAAI 2025",
        url="https://arxiv.org/abs/2405.05803",
        code="https://github.com/lzhxmu/VTW",
    ),
    axes=Axes(
        site="entering decoder layer K",
        budget="layer average: K = L x ratio",
        magnitude="0",
        selector="drop all",
    ),
    formula="S = {} from decoder layer K on",
    sites=("layer",),
    calibrates=("layer",),
    fidelity=(
        "Nothing is kept, so a budget is always read as the mean over the layers (account `average`): K = floor(L x "
        "ratio + 1/2), in steps of 1/L; under half a step it is refused. `layer` sets K itself (published: 15 of 32) "
        "and then the budget is not read. `tokenprune calibrate vtw` finds it as published, as the first layer from 5 "
        "on where the mean divergence KL(all tokens, withdrawal) of the next token over the samples is at most `eta` "
        "(published: 0.003 for 7B, 0.0005 for 13B). Original positions are kept, as published."
    ),
    variants=(
        {"layer": 15},
        {"layer": 3, "relative": False},
        {"eta": 0.1},
    ),
)
@dataclass(frozen=True)
class VTW(Pruner):
    """Withdraw every visual token.

    Args:
        layer: K of a 32-layer model; 0 solves it from the budget.
        relative: Scale `layer` to the model's depth.
        eta: Largest mean divergence of the next token that a calibration allows.
    """

    layer: int = 0
    relative: bool = True
    eta: float = 0.003

    def __post_init__(self) -> None:
        if self.eta <= 0.0:
            raise ConfigError(f"option `eta` of `vtw` must be > 0, got {self.eta}", hint="the published value is 0.003")

    @property
    def reads_budget(self) -> bool:
        """A layer that is given goes by no budget."""
        return not self.layer

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop that drops everything."""
        if self.layer:
            layer = decoder_layers("vtw", "layer", (self.layer,), facts, self.relative)[0]
            return (Stop(Site("layer", layer), Budget(tokens=1), drop_all=True),)
        ratio = budget.ratio if budget.ratio is not None else min(1.0, (budget.tokens or 0) / tokens)
        layer = math.floor(ratio * facts.num_layers + 0.5)
        if layer < 1:
            raise BudgetError(
                f"`vtw` cannot average {ratio:.1%} of {tokens} tokens over {facts.num_layers} layers: its floor is "
                f"{tokens / facts.num_layers:.1f} ({1 / facts.num_layers:.1%}), all tokens in the first layer only",
                hint="raise the budget",
            )
        return () if layer >= facts.num_layers else (Stop(Site("layer", layer), Budget(tokens=1), drop_all=True),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """No row of any unit."""
        empty = view.indices()[:, :0]
        return Decision(tuple(Kept(row) for row in empty))

    def calibrate(self, calibrator: Calibrator, budget: Budget) -> Mapping[str, Any]:
        """Find the first layer at which the withdrawal changes the next token little enough; no budget is read.

        Raises:
            IncompatibleError: No layer does.
        """
        everything = Budget(ratio=1.0)
        full = [prefill.logits for prefill in calibrator.run(replace(self, layer=0), everything)]
        least, tried = math.inf, 0
        for layer in range(_FIRST, max(DECODER_DEPTH, calibrator.facts.num_layers)):
            withdrawal = replace(self, layer=layer)
            try:
                (stop,) = withdrawal.plan(calibrator.facts, everything, calibrator.tokens)
            except IncompatibleError:  # behind the last layer: nothing is left to try
                break
            if stop.site.layer == tried:
                continue  # a shallower model has several of the 32 layers in one
            tried = stop.site.layer
            cut = [prefill.logits for prefill in calibrator.run(withdrawal, everything)]
            mean = sum(_divergence(one, other) for one, other in zip(full, cut, strict=True)) / len(full)
            if mean <= self.eta:
                return {"layer": layer}
            least = min(least, mean)
        raise IncompatibleError(
            f"no decoder layer of `vtw` changes the next token by at most eta = {self.eta:g}: the least is {least:.3g}",
            hint="raise its option `eta`, or let the budget choose the layer",
        )


def _divergence(full: Tensor, cut: Tensor) -> float:
    """KL(full, cut) of two next-token distributions, from their logits (V,)."""
    one, other = full.double().log_softmax(dim=-1), cut.double().log_softmax(dim=-1)
    return float((one.exp() * (one - other)).sum())
