"""DART: a few pivots, and the tokens that are least similar to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "dart",
    summary="Image and text pivots by key norm, each takes the tokens least similar to it",
    source=Source(
        title="Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        authors="Wen et al.",
        venue="EMNLP 2025",
        url="https://arxiv.org/abs/2502.11494",
        code="https://github.com/ZichenWen1/DART",
    ),
    axes=Axes(
        site="entering decoder layer K",
        magnitude="L1 norm of the keys (pivots only)",
        duplication="cosine of normed hidden states with the pivots",
        selector="pivots",
    ),
    formula="pivots = largest ||k||_1 of image and of text, layer K-1; each pivot in turn takes its lowest cosines",
    needs=("final_norm", "qkv"),
    fidelity=(
        "Hidden states go through the model's final norm, as published. Exactly K tokens are kept (theirs: pivots + "
        "pivots x floor(...), off by a few); what does not divide goes to the first pivots. Pivots choose in the order "
        "of their norms, image first; `published=true` takes the order of a CPython set of their sequence positions, "
        "for which `image_start` says how many tokens come before the image. Pivots are taken from the text after the "
        "image; a prompt with fewer text tokens has fewer pivots."
    ),
    variants=(
        {"pivot_image": 1, "pivot_text": 0},
        {"pivot_image": 20},
        {"pivot_text": 50},
        {"published": True},
        {"layer": 1, "published": True, "image_start": 3},
    ),
)
@dataclass(frozen=True)
class Dart(OneCut):
    """Keep the pivots and what is least like them.

    Args:
        layer: K, the decoder layer that the cut enters; keys come from layer K-1.
        pivot_image: Image pivots (kept); at most half of the budget, at least one.
        pivot_text: Text pivots.
        published: Let the pivots choose in the published order.
        image_start: Tokens before the image, read in the published order only.
    """

    site: ClassVar[SiteKind] = "layer"

    layer: int = 2
    pivot_image: int = 4
    pivot_text: int = 4
    published: bool = False
    image_start: int = 35

    def __post_init__(self) -> None:
        if self.layer < 1 or self.pivot_image < 1 or self.pivot_text < 0:
            raise ConfigError(
                "`dart` needs layer >= 1, pivot_image >= 1 and pivot_text >= 0, got "
                f"{self.layer}, {self.pivot_image} and {self.pivot_text}",
                hint="the published values are 2, 4 and 4",
            )

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Unit by unit, because the number of text tokens differs."""
        visual, text, mask = view.final_hidden()
        norms = view.keys(rope=True, layer=self.layer - 1).abs().sum(dim=(1, 3))
        text_norms = view.text_keys(rope=True, layer=self.layer - 1)[0].abs().sum(dim=(1, 3))
        return Decision(
            tuple(
                Kept(self._unit(visual[unit], text[unit][real], norms[unit], text_norms[unit][real], view.keep))
                for unit, real in enumerate(mask)
            )
        )

    def _unit(self, visual: Tensor, text: Tensor, norms: Tensor, text_norms: Tensor, keep: int) -> Tensor:
        """Kept indices (K,) of one unit, ascending, from hidden states (N, D), (T, D) and key norms (N,), (T,)."""
        import torch

        tokens = visual.shape[0]
        own = dual.top_k(norms.unsqueeze(0), max(1, min(self.pivot_image, keep // 2)))[0]
        words = min(self.pivot_text, text.shape[0])
        said = dual.top_k(text_norms.unsqueeze(0), words)[0] if words else own[:0]
        order = _set_order(self.image_start + own, self.image_start + tokens + said) if self.published else None
        pivots = torch.cat((visual[own], text[said]))
        similarity = dual.l2_normalize(pivots) @ dual.l2_normalize(visual).T
        if order is not None:
            similarity = similarity[order]
        left, count = keep - own.shape[0], similarity.shape[0]
        picks = [left // count + (1 if pivot < left % count else 0) for pivot in range(count)]
        excluded = torch.zeros(tokens, dtype=torch.bool, device=visual.device).scatter(0, own, True)
        taken = dual.pivot_dissimilar(similarity.unsqueeze(0), excluded.unsqueeze(0), picks)[0]
        return torch.cat((own, taken)).sort().values


def _set_order(image: Tensor, text: Tensor) -> list[int]:
    """Order in which a CPython set of sequence positions lists the pivots, as places in (image, text)."""
    positions = [*image.tolist(), *text.tolist()]
    place = {position: index for index, position in enumerate(positions)}
    return [place[position] for position in set(positions)]
