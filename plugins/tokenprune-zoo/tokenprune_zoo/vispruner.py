"""VisPruner: important patches by CLS attention, and a diverse rest by rounds of bipartite de-duplication."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, OneCut, PositionPolicy, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "vispruner",
    summary="Half the budget by CLS attention, half what survives rounds of pairwise de-duplication",
    source=Source(
        title="Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
        authors="Zhang et al.",
        venue="ICCV 2025",
        url="https://arxiv.org/abs/2412.01818",
        code="https://github.com/Theia-4869/VisPruner",
    ),
    axes=Axes(
        site="after the vision encoder",
        magnitude="CLS attention, mean over heads (important part)",
        duplication="cosine of encoder features (diverse part)",
        selector="top-k, then bipartite de-duplication",
    ),
    formula="top-(rK) of mean_heads a_cls; from the rest drop, 8 a round, the even-placed with the largest max cos",
    needs=("encoder", "encoder_attention"),
    fidelity=(
        "The same picks in the same order: the pool is sorted by attention in the first round only, afterwards it is "
        "the surviving even-placed tokens by falling similarity followed by the odd-placed ones. A pool of odd size, "
        "an error in the published code, has one even-placed token more. Positions are compacted, as published."
    ),
    variants=(
        {"important_ratio": 0.0},
        {"important_ratio": 1.0},
        {"drop_per_round": 1},
        {"drop_per_round": 30},
    ),
)
@dataclass(frozen=True)
class VisPruner(OneCut):
    """Keep important patches, and of the others those with the fewest twins.

    Args:
        important_ratio: Share of the budget that goes by attention, in [0, 1].
        drop_per_round: Tokens that leave the pool in one round.
    """

    site: ClassVar[SiteKind] = "encoder"
    positions: ClassVar[PositionPolicy] = "compact"

    important_ratio: float = 0.5
    drop_per_round: int = 8

    def __post_init__(self) -> None:
        if not 0.0 <= self.important_ratio <= 1.0 or self.drop_per_round < 1:
            raise ConfigError(
                "`vispruner` needs 0 <= important_ratio <= 1 and drop_per_round >= 1, got "
                f"{self.important_ratio} and {self.drop_per_round}",
                hint="the published values are 0.5 and 8",
            )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Important part first, the pool of the others in descending attention."""
        import torch

        ranked = dual.top_k(view.cls_attention().mean(dim=1), view.tokens)
        important = math.floor(view.keep * self.important_ratio)
        pool = ranked[:, important:]
        diverse = self.thinned(pool, view.encoder_features(), view.keep - important)
        return Decision.keep(torch.cat((ranked[:, :important], diverse), dim=-1))

    def thinned(self, pool: Tensor, features: Tensor, left: int) -> Tensor:
        """What is left of a pool (B, M) of tokens with features (B, N, C), in the order of the last round, (B, left).

        The sizes are the same for all units, so that the rounds run batched and read nothing back to the host.
        """
        import torch

        if left == 0:
            return pool[:, :0]
        similarity = dual.cosine_duplication(features, signed=True)
        while pool.shape[-1] > left:
            even, odd = pool[:, ::2], pool[:, 1::2]
            drop = min(self.drop_per_round, pool.shape[-1] - left, even.shape[-1])
            redundancy, _ = dual.best_match(similarity, even, odd)
            survivors = redundancy.sort(dim=-1, descending=True, stable=True).indices[:, drop:]
            pool = torch.cat((even.gather(-1, survivors), odd), dim=-1)
        return pool
