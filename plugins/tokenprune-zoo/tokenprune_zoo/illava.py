"""iLLaVA: in the encoder and in the decoder, the least attended tokens fold into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.schedule import decoder_layers, encoder_cuts, require_encoder, solved_stops

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "illava",
    summary="Received attention in the encoder, the last prompt token's in the decoder; the rest folds into one row",
    source=Source(
        title="iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal Models",
        authors="Hu et al.",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2412.06263",
        code="https://github.com/hulianyuyy/iLLaVA",
    ),
    axes=Axes(
        site="encoder layers 5 to 8 of 24, between attention and MLP, and entering decoder layer 8 of 32",
        budget="ratio or tokens; N t^2 leave the encoder, N t^3 the decoder cut",
        magnitude="received attention of the encoder layer; a of the last prompt token, layer K-1",
        merge="one mean of all dropped, weights linear in rank",
    ),
    formula="per cut, top-(K-1) of received attention or a_last; last row = sum of rank weight x h over the others",
    needs=("attention", "encoder_attention"),
    sites=("tower", "layer"),
    fidelity=(
        "Published counts are 92 tokens less in each of four encoder layers (729 to 361, a half) and 0.70 of the rest "
        "in the decoder, which is t = 0.7 of this family: N t^2 tokens leave the encoder, each cut taking as many, "
        "and N t^3 the decoder cut; t follows from the budget. `vision=false` leaves the encoder part out. A folded "
        "row stands in the place of the best of the folded, as published. Its weights grow with the attention; "
        "published, they run the other way, the least attended token weighs most: `published=true`. Rows stay in the "
        "model's precision (theirs: weights in half), keys carry no sizes, as published. Original positions are kept, "
        "as published. `relative=true` scales the layers to the model's depth (a shallow encoder has fewer cuts); "
        "`relative=false` refuses a shallower model."
    ),
    variants=(
        {"published": True},
        {"layer": 1, "relative": False, "vision_layers": (0, 3)},
        {"vision": False},
        {"vision_layers": (2,)},
    ),
)
@dataclass(frozen=True)
class ILLaVA(Pruner):
    """Keep what the picture and then the last prompt token attend to, fold the rest into one row.

    Args:
        layer: Decoder layer that the cut enters, of 32; the score comes from the layer before.
        relative: Scale `layer` and `vision_layers` to the model's depth.
        published: The least attended token weighs most in the folded row.
        vision: Fold inside the encoder too.
        vision_layers: Encoder layers that fold, 0-based, of 24; each by its own attention.
    """

    layer: int = 8
    relative: bool = True
    published: bool = False
    vision: bool = True
    vision_layers: tuple[int, ...] = (5, 6, 7, 8)

    @property
    def needs(self) -> tuple[str, ...]:
        """Without the encoder part, decoder attention only."""
        return self.spec.needs if self.vision else ("attention",)

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """Equal steps inside the encoder, then one stop in the decoder."""
        layer = decoder_layers("illava", "layer", (self.layer,), facts, self.relative)[0]
        if not self.vision:
            return (Stop(Site("layer", layer), budget.after_cut(layer, facts.num_layers, tokens)),)
        require_encoder("illava", facts, "leave the encoder part out with `vision: false`")
        cuts = encoder_cuts("illava", "vision_layers", self.vision_layers, facts, self.relative)
        sites = (*(Site("tower", cut, "mid") for cut in cuts), Site("layer", layer))

        def counts(ratio: float) -> list[float]:
            gone = (1.0 - ratio**2) / len(cuts)
            return [*(tokens * (1.0 - gone * cut) for cut in range(1, len(cuts) + 1)), tokens * ratio**3]

        return solved_stops("illava", sites, counts, facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Kept rows as they are, the folded one in its place among them."""
        ranked = dual.top_k(self.score(view, stop.site), view.tokens)
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

    @staticmethod
    def score(view: View, site: Site) -> Tensor:
        """Received attention of the encoder layer, or of the last row in the decoder layer before the cut, (B, N)."""
        if site.kind == "tower":
            return view.received_attention(None)
        attention, _ = view.attention("last", layer=site.layer - 1)
        return attention.mean(dim=1).squeeze(1)
