"""The axis `selector`: how magnitude and duplication are traded, K indices of N."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenprune import dual
from tokenprune.composition.options import Options
from tokenprune.composition.parts import Part, by_name
from tokenprune.view import View

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual import Duplication

Use = Literal["ignored", "optional", "required"]
Pick = Callable[["Tensor", "Duplication | None", int, Options], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Selector(Part):
    """A selector. Its term is a template: `{m}` magnitude, `{s}` the scaled magnitude, `{d}` duplication.

    Args:
        pick: (magnitude (B, N), duplication, K, options) -> distinct indices (B, K).
        where: What the letters of the term stand for, a template too.
        magnitude: Whether a magnitude is used.
        duplication: Whether a duplication is used.
        signed: It wants the negative entries of the duplication.
        normalised: It compares duplications with each other, so that sizes must not be in them.
        weighs: The magnitude is a weight and must not be negative.
        score: (view, options) -> (B, N), in place of a magnitude, for a selector with one of its own.
    """

    pick: Pick
    where: str = ""
    magnitude: Use = "ignored"
    duplication: Use = "ignored"
    signed: bool = False
    normalised: bool = True
    weighs: bool = False
    score: Callable[[View, Options], Tensor] | None = None

    def formula(self, magnitude: str, scaled: str, duplication: str) -> str:
        """The term with the other parts' terms in it."""
        term = f"{self.term}, {self.where}" if self.where else self.term
        return term.format(m=magnitude, s=scaled, d=duplication)

    @property
    def text(self) -> str:
        """The term with `m` for the magnitude and `D` for the duplication."""
        return self.term.format(m="m_i", s="m_i", d="D_ij")


def _scaled(magnitude: Tensor, options: Options) -> Tensor:
    return dual.scaled(magnitude, options.magnitude_scale)  # type: ignore[arg-type]  # checked when built


def _top_k(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    return dual.top_k(magnitude, keep)


def _mmr(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    if duplication is None:  # nothing to trade against
        return dual.top_k(magnitude, keep)
    overlap = options.overlap
    return dual.mmr(_scaled(magnitude, options), duplication, keep, trade_off=options.trade_off, overlap=overlap)  # type: ignore[arg-type]


def _chunked_mmr(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    if duplication is None:  # nothing to trade against
        return dual.top_k(magnitude, keep)
    return dual.chunked_mmr(
        _scaled(magnitude, options),
        duplication,
        keep,
        trade_off=options.trade_off,
        overlap=options.overlap,  # type: ignore[arg-type]  # checked when built
        schedule=options.schedule,  # type: ignore[arg-type]
        first=options.first_chunk,
        growth=options.growth,
        suppression=options.suppression,
    )


def _max_min(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    return dual.max_min(_given(duplication), keep)


def _dpp(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    return dual.dpp_greedy(_scaled(magnitude, options), _given(duplication), keep)


def _coverage(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    return dual.coverage(_scaled(magnitude, options), _given(duplication), keep)


def _weighted_gain(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    return dual.weighted_gain(_scaled(magnitude, options), _given(duplication), keep)


def _pivots(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    import torch

    own = dual.top_k(magnitude, max(1, min(options.pivots, keep // 2)))
    count = own.shape[-1]
    left = keep - count
    picks = [left // count + (1 if pivot < left % count else 0) for pivot in range(count)]
    similarity = _given(duplication).block(None, own).transpose(-1, -2)
    taken = dual.pivot_dissimilar(similarity, dual.member_mask(own, magnitude.shape[-1]), picks)
    return torch.cat((own, taken), dim=-1)


def _stride(magnitude: Tensor, duplication: Duplication | None, keep: int, options: Options) -> Tensor:
    import torch

    tokens = magnitude.shape[-1]
    places = ((torch.arange(keep, dtype=torch.float64) + 0.5) * tokens / keep).long()
    return places.to(magnitude.device).expand(magnitude.shape[0], -1)


def drawn(view: View, seed: int) -> Tensor:
    """Uniform numbers (B, N) from each unit's content and a seed, the same for a token wherever the unit stands."""
    import torch

    rows = []
    for fingerprint in view.fingerprints():
        generator = torch.Generator().manual_seed((fingerprint ^ (seed * 0x9E3779B97F4A7C15)) % 2**63)
        rows.append(torch.rand(view.original_tokens, generator=generator))
    return torch.stack(rows).to(view.indices().device).gather(1, view.indices())


def _given(duplication: Duplication | None) -> Duplication:
    assert duplication is not None  # noqa: S101 - refused when built
    return duplication


_TRADE = ("magnitude_scale", "trade_off", "overlap")

SELECTORS = by_name(
    (
        Selector(
            name="top-k",
            meaning="the K largest magnitudes",
            term="top-k of {m}",
            magnitude="required",
            pick=_top_k,
        ),
        Selector(
            name="mmr",
            meaning="maximal marginal relevance, one token at a time",
            term="argmax_i lambda {s} - (1-lambda) max_{{j in S}} {d}",
            reads=_TRADE,
            magnitude="optional",
            duplication="optional",
            pick=_mmr,
        ),
        Selector(
            name="chunked-mmr",
            meaning="maximal marginal relevance, several tokens per step (IWP)",
            term="argmax_i lambda {s} - (1-lambda) max_{{j in S}} {d}, in chunks",
            reads=(*_TRADE, "schedule", "first_chunk", "growth", "suppression"),
            magnitude="optional",
            duplication="optional",
            pick=_chunked_mmr,
        ),
        Selector(
            name="max-min",
            meaning="repeatedly the token least similar to its most similar pick (DivPrune)",
            term="argmin_i max_{{j in S}} {d}",
            duplication="required",
            signed=True,
            pick=_max_min,
        ),
        Selector(
            name="dpp",
            meaning="greedy determinantal point process, the magnitude as relevance (CDPruner)",
            term="greedy argmax_S det(diag(r) D_S diag(r))",
            where="r_i = {s}, D_ij = {d}",
            reads=("magnitude_scale",),
            magnitude="optional",
            duplication="required",
            signed=True,
            normalised=False,
            weighs=True,
            pick=_dpp,
        ),
        Selector(
            name="coverage",
            meaning="greedy facility location, the magnitude weighs what is covered",
            term="greedy argmax_S sum_j w_j max_{{s in S}} D_sj",
            where="w_i = {s}, D_ij = {d}",
            reads=("magnitude_scale",),
            magnitude="optional",
            duplication="required",
            weighs=True,
            pick=_coverage,
        ),
        Selector(
            name="weighted-gain",
            meaning="magnitude of a token times the coverage that it adds (SCOPE)",
            term="argmax_i w_i sum_j max(0, D_ij - c_j)",
            where="w_i = {s}, D_ij = {d}",
            reads=("magnitude_scale",),
            magnitude="optional",
            duplication="required",
            signed=True,
            weighs=True,
            pick=_weighted_gain,
        ),
        Selector(
            name="pivots",
            meaning="pivots of the largest magnitude, each takes the tokens least similar to it (as DART)",
            term="pivots = largest {m}; each pivot in turn takes its lowest {d}",
            reads=("pivots",),
            magnitude="required",
            duplication="required",
            signed=True,
            pick=_pivots,
        ),
        Selector(
            name="stride",
            meaning="evenly spaced along the raster, whatever the tokens show",
            term="S = {{floor((i + 1/2) N / K)}}",
            pick=_stride,
        ),
        Selector(
            name="random",
            meaning="drawn from the unit's content and the seed",
            term="S ~ uniform over subsets of size K",
            needs=("fingerprint",),
            reads=("seed",),
            pick=_top_k,
            score=lambda view, options: drawn(view, options.seed),
        ),
    )
)
