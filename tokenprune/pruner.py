"""The pruner contract: where to cut (`plan`), and which rows stay (`decide`).

A pruner sees a `View` and answers with a `Decision`; it never touches a model, a cache, a mask or a position id.
This module imports no torch, so that listing pruners stays fast; tensors appear in annotations only, and the maths
is reached through `tokenprune.dual`, which loads on first use.

Shape letters: B units with the same number of visual tokens, N visual tokens before, K kept, D hidden,
H query heads, G key-value heads, d head width, R rows (queries), C encoder width, P joint image-text width.

A *unit* is one image (or one tile, or one frame) of one sample; the engine groups units of equal N and K into one
view, so that maths runs batched and a ragged batch still gets exact counts.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from tokenprune.budget import Budget
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.registry import Axes, PrunerSpec, Source

if TYPE_CHECKING:
    from torch import Tensor

SiteKind = Literal["pixels", "encoder", "input", "layer"]
PositionPolicy = Literal["keep", "compact"]
Rows = Literal["last", "text", "visual"]

#: What a spec may declare, and the view accessor that it opens.
NEEDS: Mapping[str, str] = {
    "hidden": "hidden(): hidden states at the site, (B, N, D)",
    "qkv": "keys(), values(), queries(): decoder projections with or without RoPE, at the site's own layer or another",
    "attention": "attention(), attention_output(): decoder attention of named rows, (B, H, R, N) and (B, H, R, d)",
    "final_norm": "final_hidden(): hidden states of visual and text tokens under the decoder's final norm",
    "encoder": "encoder_features(): what the projector reads, (B, N, C)",
    "encoder_attention": "cls_attention(), received_attention(), encoder_keys(): inside the vision encoder",
    "projected": "projected(): the LLM input embeddings of the visual tokens, (B, N, D)",
    "joint": "joint_image(), joint_text(): joint image-text space of a CLIP pair, (B, N, P) and (B, P)",
    "text": "text_embeddings(): LLM input embeddings of the text after the image",
    "geometry": "coordinates(), grid(): rows and columns of the visual tokens",
    "fingerprint": "fingerprints(): one integer per unit made from its content, for reproducible randomness",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where a cut is made.

    `pixels` before the vision encoder, `encoder` between encoder and projector, `input` at the LLM input,
    `layer` entering decoder layer `layer` (0-based; layers `0..layer-1` see every token).
    """

    kind: SiteKind
    layer: int = 0

    def __str__(self) -> str:
        return f"layer:{self.layer}" if self.kind == "layer" else self.kind

    @property
    def decoder_layer(self) -> int:
        """First decoder layer that runs with the shorter sequence."""
        return self.layer if self.kind == "layer" else 0


@dataclass(frozen=True, slots=True)
class Stop:
    """One cut: where, and how many of the *original* visual tokens of each unit may stay after it."""

    site: Site
    budget: Budget
    drop_all: bool = False
    """Withdraw every visual token here (K = 0), whatever the budget says."""

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


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of one unit, in the order in which it is emitted.

    Args:
        anchors: (K,) int64, the index in `0..N-1` whose position each emitted row takes over; distinct.
        merge: (K, N) weights of the rows (dense or sparse), `row = merge @ hidden`; `None` keeps rows as they are.
        log_weights: (K,) float, added to the attention logits of the kept keys (log of the multiplicity), or `None`.
        labels: Reason per kept row, for pictures and diagnostics (`("important", "diverse", ...)`), or `None`.
    """

    anchors: Tensor
    merge: Tensor | None = None
    log_weights: Tensor | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One `Kept` per unit of the view, in the view's order; ragged by construction."""

    units: tuple[Kept, ...]
    resize: tuple[int, int] | None = None
    """At site `pixels` only: the token grid (rows, columns) to which the image is resized."""

    @classmethod
    def keep(cls, indices: Tensor, log_weights: Tensor | None = None) -> Decision:
        """Keep rows `indices` (B, K) as they are, in raster order (indices and weights are sorted here)."""
        order = indices.argsort(dim=-1)
        anchors = indices.gather(-1, order)
        weights = None if log_weights is None else log_weights.gather(-1, order)
        return cls(
            tuple(
                Kept(row, log_weights=None if weights is None else weights[index]) for index, row in enumerate(anchors)
            )
        )


class View(Protocol):
    """What a pruner may ask about B units of N visual tokens each. Values are detached and float32.

    Every accessor raises `UndeclaredNeedError` where the spec does not declare the need, and `IncompatibleError`
    where the model cannot give it. Where text lengths differ between units, text-like results are padded at the
    end of their row axis and come with a boolean mask (True = real).
    """

    site: Site
    facts: ModelFacts
    units: int
    """B."""
    tokens: int
    """N: visual tokens of each unit that are still there."""
    original_tokens: int
    """Visual tokens of each unit before the first cut."""
    keep: int
    """K: rows that the stop's budget allows."""

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D); at `encoder` the encoder's features, (B, N, C)."""
        ...

    def projected(self) -> Tensor:
        """LLM input embeddings of the visual tokens still there, (B, N, D)."""
        ...

    def keys(self, *, rope: bool, layer: int | None = None) -> Tensor:
        """Keys of the visual tokens, (B, G, N, d).

        Args:
            rope: With the rotary position embedding or without.
            layer: Decoder layer; `None` is the layer that the cut enters (its projections are computed ahead).
                Layers before the site are as they ran. Only layers `<=` the site's own are available.
        """
        ...

    def values(self, *, layer: int | None = None) -> Tensor:
        """Values of the visual tokens, (B, G, N, d)."""
        ...

    def queries(self, rows: Rows = "text", *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) of the named rows with their mask (B, R).

        `text`: every text token after the unit's image; `last`: the last prompt token (R = 1);
        `visual`: the visual tokens of the unit themselves (R = N).
        """
        ...

    def attention(
        self,
        rows: Rows = "last",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Literal["causal", "visual"] = "causal",
    ) -> tuple[Tensor, Tensor]:
        """Attention probabilities (B, H, R, N) of the named rows on the unit's visual tokens, and the mask (B, R).

        Recomputed from queries and keys for these rows only. `support="causal"` normalises over the whole causal
        row (so rows sum to less than 1), `"visual"` over the unit's visual tokens.
        """
        ...

    def attention_output(self, rows: Rows = "last", *, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Attention output (B, H, R, d) of the named rows before the output projection, and the mask (B, R).

        Over the whole causal row (text before and after the image too), with RoPE, as the model itself computes it:
        together with `attention(support="causal")` it gives the exact error of every subset (leave-one-out too).
        """
        ...

    def final_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states entering the site under the decoder's *final* norm.

        Returns:
            Visual (B, N, D), text after the image (B, T, D), mask (B, T).
        """
        ...

    def text_keys(self, *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys of the text after the image, (B, G, T, d), and the mask (B, T)."""
        ...

    def encoder_features(self) -> Tensor:
        """What the projector would read of the tokens still there, before any merge, (B, N, C)."""
        ...

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """Attention of the CLS query on the patches in encoder layer `layer`, (B, H, N); rows sum to less than 1."""
        ...

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Mean attention that each patch receives from all encoder rows, head mean, (B, N)."""
        ...

    def encoder_keys(self, layer: int | None = None) -> Tensor:
        """Raw encoder keys of the patches, (B, H, N, d)."""
        ...

    def joint_image(self) -> Tensor:
        """Joint-space embeddings of the patches, not normalised, (B, N, P)."""
        ...

    def joint_text(self) -> Tensor:
        """Joint-space embedding of the question, (B, P)."""
        ...

    def text_embeddings(self) -> tuple[Tensor, Tensor]:
        """LLM input embeddings of the text after the image, (B, T, D), and the mask (B, T)."""
        ...

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the unit's original token grid."""
        ...

    def coordinates(self) -> Tensor:
        """Row and column of each visual token still there, (B, N, 2), float."""
        ...

    def indices(self) -> Tensor:
        """Original index of each visual token still there, (B, N), int64."""
        ...

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit made from its content (not from its place in the batch)."""
        ...


State = dict[str, Any]
"""Scratch shared by the stops of one forward pass of one pruner; empty at the first stop."""


@dataclass(frozen=True)
class Pruner(ABC):
    """A training-free pruner: frozen options, `plan` and `decide`.

    Subclass as a frozen dataclass whose fields are the options, and decorate with `@pruner(...)`.
    """

    spec: ClassVar[PrunerSpec]
    positions: ClassVar[PositionPolicy] = "keep"
    """Position ids of the survivors: `keep` the original ones or `compact` them; a session may override it."""

    @abstractmethod
    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """Say where to cut and how many may stay.

        Args:
            facts: Shape of the model.
            budget: What the user asked for.
            tokens: Visual tokens per unit that the plan is made for (needed to solve average budgets).

        Raises:
            BudgetError: The budget cannot be met; the message gives the floor.
            IncompatibleError: The model lacks something, for example the layer to cut at.
        """

    @abstractmethod
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Choose what stays at one stop, for every unit of the view."""


@dataclass(frozen=True)
class OneCut(Pruner):
    """A pruner with a single cut: set `site`, implement `decide`."""

    site: ClassVar[SiteKind] = "input"

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop, at the class's site or at the option `layer` where there is one."""
        site = Site(self.site, getattr(self, "layer", 0) if self.site == "layer" else 0)
        if site.decoder_layer >= facts.num_layers:
            raise IncompatibleError(
                f"`{self.spec.name}` cuts at decoder layer {site.layer}, but the model has {facts.num_layers} layers",
                hint=f"set its option `layer` to at most {facts.num_layers - 1}",
            )
        return (Stop(site, budget.after_cut(site.decoder_layer, facts.num_layers, tokens)),)


@dataclass(frozen=True)
class ScoredPruner(OneCut):
    """Keep the K best of one score: implement `score`, the rest is inherited."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """One number per visual token, (B, N); higher is kept first, ties go to the lower index."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Top-k of the score."""
        from tokenprune import dual

        return Decision.keep(dual.top_k(self.score(view), view.keep))


AnyPruner = TypeVar("AnyPruner", bound=type[Pruner])


def pruner(
    name: str,
    *,
    summary: str,
    source: Source,
    axes: Axes,
    needs: Sequence[str] = (),
    sites: Sequence[SiteKind] = (),
    formula: str = "",
    fidelity: str = "",
    baseline: bool = False,
) -> Callable[[AnyPruner], AnyPruner]:
    """Class decorator: attach the light spec, with the dataclass fields as options and defaults.

    Raises:
        ConfigError: A need is not one of `NEEDS`, or a field has no default.
    """

    def attach(cls: AnyPruner) -> AnyPruner:
        unknown = sorted(set(needs) - set(NEEDS))
        if unknown:
            raise ConfigError(f"pruner `{name}` declares unknown needs {unknown}", hint=f"known: {', '.join(NEEDS)}")
        cls.spec = PrunerSpec(
            name=name,
            target=f"{cls.__module__}:{cls.__qualname__}",
            summary=summary,
            source=source,
            axes=axes,
            formula=formula,
            sites=tuple(sites) or ((cls.site,) if issubclass(cls, OneCut) else ()),
            needs=tuple(needs),
            defaults={entry.name: _default(name, entry) for entry in dataclasses.fields(cls)},
            fidelity=fidelity,
            baseline=baseline,
        )
        return cls

    return attach


def _default(name: str, entry: dataclasses.Field[Any]) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    raise ConfigError(f"option `{entry.name}` of pruner `{name}` has no default", hint="give the field a default")


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What one stop did to one unit."""

    sample: int
    image: int
    site: str
    decoder_layer: int
    before: int
    asked: int
    kept: int
    indices: tuple[int, ...]
    """Original indices of the anchors, in emission order."""
    merged: bool
    log_weights: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PruneRecord:
    """What one prefill did: per unit and stop, per layer, and in the cache."""

    pruner: str
    units: tuple[UnitRecord, ...]
    visual_tokens: tuple[tuple[int, ...], ...]
    """Per sample, the visual tokens that each decoder layer ran with, (samples, L)."""
    sequence_lengths: tuple[tuple[int, ...], ...]
    """Per sample, all tokens (text too) that each decoder layer ran with = that layer's KV entries, (samples, L)."""
    original_visual_tokens: tuple[int, ...]
    decide_ms: float = 0.0
    """Wall time spent in views and decisions (synchronised), in milliseconds."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def entering(self) -> tuple[int, ...]:
        """Account (i): visual tokens that enter the LLM, per sample."""
        return tuple(row[0] for row in self.visual_tokens)

    def layer_average(self) -> tuple[float, ...]:
        """Account (ii): visual tokens averaged over the decoder layers, per sample."""
        return tuple(sum(row) / len(row) for row in self.visual_tokens)

    def kv_tokens(self) -> tuple[float, ...]:
        """Account (iii): visual tokens left in the KV cache, averaged over the layers, per sample.

        Equal to account (ii) unless caches are cut after their layer ran.
        """
        return self.layer_average()

    def final(self) -> tuple[int, ...]:
        """Visual tokens left after the last cut, per sample."""
        return tuple(row[-1] for row in self.visual_tokens)
