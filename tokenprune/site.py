"""Where a cut is made, how much may stay after it, and what of a model a plan may depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenprune.budget import Budget

SiteKind = Literal["pixels", "tower", "encoder", "input", "layer", "decode"]
Point = Literal["in", "mid"]

#: Kinds of sites in running order.
SITE_KINDS: tuple[SiteKind, ...] = ("pixels", "tower", "encoder", "input", "layer", "decode")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a cut is made.

    Args:
        kind: `pixels` before the vision encoder, `tower` inside it, `encoder` between encoder and projector, `input`
            at the LLM input, `layer` at a decoder layer, `decode` at every decoding step: the decision is a view of
            the KV cache for this step and for layers `>= layer`, and dropped tokens come back at the next step.
        layer: Encoder layer (`tower`) or decoder layer (`layer`, `decode`), 0-based.
        point: `in` entering the layer (layers `0..layer-1` see every token), `mid` between its attention and its MLP
            (the layer's attention and KV cache see every token, its MLP and what follows do not).
    """

    kind: SiteKind
    layer: int = 0
    point: Point = "in"

    def __str__(self) -> str:
        if self.kind in ("pixels", "encoder", "input"):
            return self.kind
        return f"{self.kind}:{self.layer}" + (".mid" if self.point == "mid" else "")

    @property
    def decoder_layer(self) -> int:
        """The decoder layer at which the cut lies; 0 for everything before the decoder."""
        return self.layer if self.kind in ("layer", "decode") else 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key: the order in which a forward pass meets sites."""
        return SITE_KINDS.index(self.kind), self.layer, int(self.point == "mid")


@dataclass(frozen=True, slots=True)
class Stop:
    """One cut: where, and how many of the *original* visual tokens of each unit may stay after it.

    Args:
        site: Where.
        budget: How many may stay.
        drop_all: Withdraw every visual token here (K = 0), whatever the budget says.
        auto: The count follows from the data; the budget is what the view reports, not a promise.
        kv_from: Cut the KV caches of the decoder layers `kv_from..` that have already run, too; `None` leaves them.
    """

    site: Site
    budget: Budget
    drop_all: bool = False
    auto: bool = False
    kv_from: int | None = None

    def keep(self, tokens: int) -> int:
        """Tokens that stay of `tokens` original ones."""
        return 0 if self.drop_all else self.budget.count(tokens)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a plan may depend on: the model's shape, not its weights."""

    family: str
    num_layers: int
    encoder_layers: int
    has_cls: bool
    encoder_read_layer: int
    """Encoder layer (0-based) whose output the projector reads; its attention is the default of `cls_attention`."""
