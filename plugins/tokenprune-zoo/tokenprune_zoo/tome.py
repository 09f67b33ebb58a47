"""ToMe: inside every encoder layer, the most alike pairs of neighbouring positions become one token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import require_encoder

if TYPE_CHECKING:
    from torch import Tensor

_SCHEDULES = ("constant", "decreasing")
#: Halvings of the search for the rate, far below one token for any picture.
_STEPS = 60
#: Above what the search leaves of a whole number.
_CLOSE = 1e-6


@pruner(
    "tome",
    summary="Bipartite merging of similar tokens inside every encoder layer, weighed by size",
    source=Source(
        title="Token Merging: Your ViT But Faster",
        authors="Bolya et al.",
        venue="ICLR 2023",
        url="https://arxiv.org/abs/2210.09461",
        code="https://github.com/facebookresearch/ToMe",
    ),
    axes=Axes(
        site="every encoder layer up to the one that is read, between attention and MLP",
        magnitude="size (number of merged tokens)",
        duplication="cosine of encoder keys, head mean",
        selector="bipartite: the r best matches of even with odd positions",
        merge="mean weighed by size; log size on the key",
    ),
    formula="per layer: merge the r even tokens with largest max_{j odd} cos(k_i, k_j), r_1 + r_2 + ... = N - K",
    needs=("encoder_attention",),
    sites=("tower",),
    fidelity=(
        "Published with r tokens per layer, constant or falling linearly to 0; here the rate follows from the budget, "
        "so that exactly K tokens leave the last layer (each layer merges at most half of its tokens; what a layer "
        "cannot take, the others do). Layers after the one that the projector reads are left alone. A class token "
        "stands at an even position, is never merged and, as published, is no target either. Rows are emitted as "
        "published, unmerged even positions first (in order with a class token, by falling similarity without), then "
        "odd ones, as the next layer pairs them by these positions; the last cut emits them in raster order, because "
        "the decoder numbers what it gets and the published order says nothing about the picture. Both accounts agree: "
        "every decoder layer runs with K tokens."
    ),
    variants=(
        {"schedule": "decreasing"},
        {"proportional": False},
    ),
)
@dataclass(frozen=True)
class ToMe(Pruner):
    """Merge what has the same keys, a few tokens per encoder layer.

    Args:
        schedule: `constant` merges equally many in every layer, `decreasing` fewer and fewer.
        proportional: Proportional attention: a merged token's key counts as often as it has members.
    """

    schedule: str = "constant"
    proportional: bool = True

    def __post_init__(self) -> None:
        if self.schedule not in _SCHEDULES:
            raise ConfigError(
                f"unknown schedule `{self.schedule}` of `tome`", hint="use " + " or ".join(f"`{s}`" for s in _SCHEDULES)
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop in each layer that merges something, and one in the last, which restores raster order."""
        require_encoder("tome", facts, "choose a pruner that cuts at `input` or in the decoder")
        keep = budget.count(tokens)
        if keep == tokens:
            return ()
        last = facts.encoder_read_layer
        rates = [1.0 if self.schedule == "constant" else float(last - layer) for layer in range(last + 1)]
        counts = _counts(tokens, keep, rates)
        return tuple(
            Stop(Site("tower", layer, "mid"), Budget(tokens=count))
            for layer, (before, count) in enumerate(zip((tokens, *counts), counts, strict=False))
            if count < before or layer == last
        )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """One round of merging."""
        import torch

        own = torch.arange(view.tokens, device=view.indices().device).expand(view.units, -1)
        gone = view.tokens - view.keep
        anchors = own
        if gone:
            sources, partners, targets = self.matched(view)
            staying = sources[:, gone:].sort(dim=-1).values if view.facts.has_cls else sources[:, gone:]
            anchors = torch.cat((staying, targets.expand(view.units, -1)), dim=-1)
            own = own.scatter(-1, sources[:, :gone], partners[:, :gone])
        if stop.site.layer == view.facts.encoder_read_layer:
            anchors = anchors.gather(-1, view.indices().gather(-1, anchors).argsort(dim=-1))
        if not gone:
            return Decision(tuple(Kept(row) for row in anchors))
        sizes = view.sizes()
        members = (anchors.unsqueeze(-1) == own.unsqueeze(1)) * sizes.unsqueeze(1)
        size = members.sum(dim=-1)
        gain = (size / sizes.gather(-1, anchors)).log()  # what the anchor's key carries already stays on it
        return Decision(
            tuple(
                Kept(row, merge=weights, log_weights=more if self.proportional else None)
                for row, weights, more in zip(anchors, members / size.unsqueeze(-1), gain, strict=True)
            )
        )

    def matched(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Sources by falling similarity to their partner (B, M), their partners (B, M), all targets (N - M,)."""
        import torch

        metric = dual.l2_normalize(view.encoder_keys(None).mean(dim=1))
        places = torch.arange(view.tokens, device=metric.device)
        first = int(view.facts.has_cls)  # patch j stands at position j + 1 behind a class token
        sources, targets = places[first::2], places[1 - first :: 2]
        best, partner = [], []
        for part in dual.tiles(len(sources), len(targets)):
            similarity = metric[:, sources[part]] @ metric[:, targets].transpose(-1, -2)
            best.append(similarity.amax(dim=-1))
            partner.append(dual.first_largest(similarity))
        order = torch.cat(best, dim=-1).sort(dim=-1, descending=True, stable=True).indices
        return sources[order], targets[torch.cat(partner, dim=-1).gather(-1, order)], targets


def _counts(tokens: int, keep: int, rates: Sequence[float]) -> list[int]:
    """Tokens after each layer: falling at these relative rates, never by more than half, from N to exactly K.

    Raises:
        BudgetError: Halving in every layer leaves more than K.
    """
    floor = tokens
    for rate in rates:
        floor = math.ceil(floor / 2) if rate else floor
    if keep < floor:
        raise BudgetError(
            f"`tome` cannot go under {floor} of {tokens} tokens: each of {sum(map(bool, rates))} encoder layers "
            f"merges at most half of its tokens, asked for {keep}",
            hint="raise the budget, or merge in every layer with `schedule: constant`",
        )

    def falling(scale: float) -> list[float]:
        left, sizes = float(tokens), []
        for rate in rates:
            left = max(left - scale * rate, left / 2)
            sizes.append(left)
        return sizes

    low, high = 0.0, float(tokens * len(rates))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if falling(middle)[-1] <= keep else (middle, high)
    # rounded up, so that half of a whole number of tokens is never undercut
    return [*(math.ceil(size - _CLOSE) for size in falling(high)[:-1]), keep]
