"""iLLaVA, decoder part: the least attended tokens fold into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "illava",
    summary="Attention of the last prompt token, top-k; the rest folds into one row, weighed by rank",
    source=Source(
        title="iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal Models",
        authors="Hu et al.",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2412.06263",
        code="https://github.com/hulianyuyy/iLLaVA",
    ),
    axes=Axes(
        site="entering decoder layer 8 of 32",
        magnitude="a of the last prompt token, layer K-1",
        merge="one mean of all dropped, weights linear in rank",
    ),
    formula="top-(K-1) of mean_heads a_last,i in layer K-1; last row = sum of rank weight x h over the others",
    needs=("attention",),
    sites=("layer",),
    fidelity=(
        "The decoder part only: merging in layers 5 to 8 of the vision encoder needs a cut inside the encoder, which "
        "is not part of this. The folded row stands in the place of the best of the folded, as published. Its weights "
        "grow with the attention; published, they run the other way, the least attended token weighs most: "
        "`published=true`. Rows stay in the model's precision (theirs: weights in half). Original positions are kept, "
        "as published. `relative=true` scales the layer to the model's depth; `relative=false` refuses a shallower "
        "model."
    ),
)
@dataclass(frozen=True)
class ILLaVA(Pruner):
    """Keep what the last prompt token attends to, fold the rest into one row.

    Args:
        layer: Decoder layer that the cut enters, of 32; the score comes from the layer before.
        relative: Scale `layer` to the model's depth.
        published: The least attended token weighs most in the folded row.
    """

    layer: int = 8
    relative: bool = True
    published: bool = False

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop."""
        layer = decoder_layers("illava", "layer", (self.layer,), facts, self.relative)[0]
        return (Stop(Site("layer", layer), budget.after_cut(layer, facts.num_layers, tokens)),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Kept rows as they are, the folded one in its place among them."""
        score = self.score(view, stop.site.layer)
        ranked = dual.top_k(score, view.tokens)
        anchors = ranked[:, : view.keep].sort(dim=-1).values
        if view.keep == view.tokens:
            return Decision.keep(anchors)
        merge = dual.one_hot(anchors, view.tokens)
        folded = self.folded(ranked[:, view.keep - 1 :], view.tokens)
        row = (anchors == ranked[:, view.keep - 1 : view.keep]).unsqueeze(-1)
        merge = folded.unsqueeze(1).where(row, merge)
        return Decision(tuple(Kept(places, merge=rows) for places, rows in zip(anchors, merge, strict=True)))

    def folded(self, members: Tensor, tokens: int) -> Tensor:
        """Weights of the folded row over all tokens, from its members by falling attention (B, M), (B, N)."""
        import torch

        count = members.shape[-1]
        weight = torch.arange(count, 0, -1, device=members.device, dtype=torch.float32)
        weight = (weight.flip(0) if self.published else weight) / weight.sum()
        return torch.zeros(members.shape[0], tokens, device=members.device).scatter(
            -1, members, weight.expand(members.shape)
        )

    def score(self, view: View, layer: int) -> Tensor:
        """Head mean of the last row's attention in the layer before the cut, (B, N)."""
        attention, _ = view.attention("last", layer=layer - 1)
        return attention.mean(dim=1).squeeze(1)
