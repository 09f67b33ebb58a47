"""The parts of a pruner's plan: the site of a cut, its budget, and the model facts that a plan may use."""

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
            at the LLM input, `layer` at a decoder layer, `decode` at every decoding step. A `decode` decision hides
            cached tokens from layers `>= layer` for one step; they are available again at the next step.
        layer: Encoder layer (`tower`) or decoder layer (`layer`, `decode`), 0-based.
        point: `in` cuts before the layer: layers `0..layer-1` run with every token. `mid` cuts between the layer's
            attention and its MLP: its attention and KV cache still hold every token, its MLP and later layers do not.
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
        """The decoder layer of the cut; 0 for every cut before the decoder."""
        return self.layer if self.kind in ("layer", "decode") else 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key: the order in which a forward pass reaches sites."""
        return SITE_KINDS.index(self.kind), self.layer, int(self.point == "mid")


@dataclass(frozen=True, slots=True)
class Stop:
    """One planned cut: where, and how many of the *original* visual tokens of each unit may stay after it.

    Args:
        site: Where to cut.
        budget: How many tokens may stay.
        drop_all: Drop every visual token here (K = 0), whatever the budget says.
        auto: The number of kept tokens follows from the data; the budget is only what the view reports.
        kv_from: Also cut the KV caches of the layers from `kv_from` on that have already run; `None` leaves them.
    """

    site: Site
    budget: Budget
    drop_all: bool = False
    auto: bool = False
    kv_from: int | None = None

    def keep(self, tokens: int) -> int:
        """How many of `tokens` original tokens stay."""
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
