"""Mass correction: a kept token that represents w tokens gets log(w) added to its attention logit.

Softmax renormalises over the kept tokens, so a group of near-duplicates loses attention if only one of them stays. The
correction gives the kept one the attention of the group. It does not depend on how tokens were chosen: every pruner
has the option `mass_correction` (see `PrunerSpec.build`), and a pruner with a better similarity than that of hidden
states calls `mass_corrected` itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, State, Stop, View

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual import Duplication


def mass_corrected(
    decision: Decision, similarity: Duplication, mass: Tensor | None = None, *, cap: float = 0.0
) -> Decision:
    """Give every kept row the log of the number of tokens that it represents.

    Each dropped token counts for the most similar kept one. Merged rows count the tokens of which they were merged;
    rows that have weights already keep them.

    Args:
        decision: A pruner's decision, one `Kept` per unit.
        similarity: Any similarity of the N visual tokens of the B units.
        mass: Sizes of the tokens, (B, N), positive: a dropped token counts with its size relative to the kept one's.
            `None` counts each dropped token once.
        cap: Largest number of tokens that one row may represent; 0 sets no limit.
    """
    units = list(decision.units)
    for size in sorted({kept.anchors.numel() for kept in units if _is_unweighted(kept)}):
        members = [index for index, kept in enumerate(units) if _is_unweighted(kept) and kept.anchors.numel() == size]
        anchors = (
            units[members[0]].anchors.expand(similarity.units, -1).clone()
        )  # rows of units with other sizes are ignored
        for index in members:
            anchors[index] = units[index].anchors
        counts = dual.represented(dual.assign(similarity, anchors), anchors, mass, cap=cap)
        for index in members:
            units[index] = dataclasses.replace(units[index], log_weights=counts[index].log())
    return dataclasses.replace(decision, units=tuple(_with_source_counts(kept, cap) for kept in units))


def _is_unweighted(kept: Kept) -> bool:
    """Whether rows were kept without a merge and have no weights yet."""
    return kept.log_weights is None and kept.merge is None and kept.anchors.numel() > 0


def _with_source_counts(kept: Kept, cap: float) -> Kept:
    """Give merged rows the log of the number of their source tokens."""
    if kept.merge is None or kept.log_weights is not None:
        return kept
    sources = (kept.merge.to_dense() != 0).sum(dim=-1).clamp_min(1).float()
    return dataclasses.replace(kept, log_weights=(sources.clamp_max(cap) if cap else sources).log())


@dataclass(frozen=True)
class MassCorrected(Pruner):
    """Any pruner, with mass correction by the cosine of the centred hidden states at the cut.

    Args:
        inner: The pruner that decides. Its position policy and its `spec` apply here too, with the need `hidden` added.
        cap: Largest number of tokens that one row may represent; 0 sets no limit.
    """

    inner: Pruner
    cap: float = 0.0

    def __post_init__(self) -> None:
        needs = tuple(dict.fromkeys((*self.inner.needs, "hidden")))
        object.__setattr__(self, "spec", dataclasses.replace(self.inner.spec, needs=needs))
        object.__setattr__(self, "positions", self.inner.positions)

    @property
    def reads_budget(self) -> bool:
        """Whether the inner pruner reads the budget."""
        return self.inner.reads_budget

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """The inner pruner's plan.

        Raises:
            IncompatibleError: The inner pruner cuts pixels, where there are no tokens yet.
        """
        stops = self.inner.plan(facts, budget, tokens)
        if any(stop.site.kind == "pixels" for stop in stops):
            raise IncompatibleError(
                f"`{self.inner.spec.name}` cuts pixels and cannot take `mass_correction`",
                hint="leave the option out for this pruner",
            )
        return stops

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """The inner pruner's decision with log-weights; unchanged at decoding steps, which only hide tokens."""
        decision = self.inner.decide(view, stop, state)
        if stop.site.kind == "decode":
            return decision
        return mass_corrected(decision, dual.cosine_duplication(view.hidden(), centred=True), cap=self.cap)
