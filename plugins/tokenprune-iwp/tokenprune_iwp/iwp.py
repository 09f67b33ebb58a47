"""IWP in its published form, as far as it is publicly known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune import dual
from tokenprune.pruner import Decision, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_iwp.selection import MMR_VARIANTS, ChunkedSelection, one_of

SOURCE = Source(
    title="IWP (implicit weight pruning)",
    authors="D.-J. Lee, S. Baek, J. Kim",
    venue="arXiv 2604.00757",
    url="https://arxiv.org/abs/2604.00757",
)

FIDELITY = """\
No code is published; written from the equations that are publicly known. What the source leaves open, and our choice:
rows: the queries of all text tokens after the image; `last` and `visual` are options.
row_pooling: log of the mean over rows of the kernel, each row normalised over the visual tokens (`normalise`).
head_pooling: mean of log magnitudes over key-value heads (all query heads of a group pooled as rows).
rope_in_magnitude / rope_in_duplication: off / on, as published.
trade_off (lambda): 0.3, chosen by measurement (benchmarks/selectors).
magnitude_scale: ranks of the log magnitude, because it spans decades and the duplication lies in [0, 1].
overlap: largest duplication with the chosen set (MMR), `mean` is an option.
duplication: mean over key-value heads of the normalised kernel, negative value cosines count as 0.
schedule, first_chunk, growth, suppression: chunks that grow from 2 by half, with suppression inside, chosen by
measurement: the error of exact MMR in a fraction of its steps; exact, fixed and shrinking chunks are options.
tau: 1 as published; 0 takes the bandwidth from the median nearest-neighbour distance.
layer: the cut enters decoder layer 2, with that layer's own projections.
mass_correction: off, it is not part of the method."""


@pruner(
    "iwp",
    summary="Implicit-weight pruning: query-key kernel x value norm against value cosine x key Gaussian, chunked MMR",
    source=SOURCE,
    axes=Axes(
        site="entering decoder layer 2",
        magnitude="kappa(q, k) ||v||, without RoPE",
        duplication="cos(v) Gauss(k), with RoPE",
        selector="progressive chunked MMR",
    ),
    formula=(
        "argmax_i lambda rank(log kappa(q,k_i) ||v_i||) "
        "- (1-lambda) max_{j in S} cos(v_i,v_j) exp(-||k_i-k_j||^2/(2 sqrt d))"
    ),
    needs=("qkv",),
    fidelity=FIDELITY,
    variants=(
        *MMR_VARIANTS,
        {"layer": 1},
        {"rows": "last"},
        {"rows": "visual"},
        {"row_pooling": "mean"},
        {"row_pooling": "max"},
        {"head_pooling": "max"},
        {"head_pooling": "logmeanexp"},
        {"normalise": False},
        {"rope_in_magnitude": True},
        {"rope_in_duplication": False},
    ),
)
@dataclass(frozen=True)
class Iwp(ChunkedSelection):
    """Keep the updates that are large for the text's queries and not yet there.

    Args:
        rows: Whose queries measure the magnitude: `text`, `last` or `visual`.
        row_pooling: `logmeanexp`, `mean` or `max` over the rows.
        head_pooling: `mean`, `max` or `logmeanexp` over the key-value heads.
        normalise: Divide each row by its sum over the visual tokens before pooling.
        rope_in_magnitude: Keep the rotary embedding in the magnitude.
        rope_in_duplication: Keep the rotary embedding in the duplication.

    Source: Lee et al., arXiv 2604.00757, eq. 9-12 and appendix A.
    """

    site: ClassVar[SiteKind] = "layer"

    rows: str = "text"
    row_pooling: str = "logmeanexp"
    head_pooling: str = "mean"
    normalise: bool = True
    rope_in_magnitude: bool = False
    rope_in_duplication: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("rows", self.rows, ("text", "last", "visual"))
        one_of("row_pooling", self.row_pooling, ("logmeanexp", "mean", "max"))
        one_of("head_pooling", self.head_pooling, ("mean", "max", "logmeanexp"))

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Magnitude and duplication from the layer that the cut enters, then chunked MMR."""
        queries, mask = view.queries(self.rows, rope=self.rope_in_magnitude)  # type: ignore[arg-type]
        values = view.values()
        magnitude = dual.kernel_magnitude(
            queries,
            view.keys(rope=self.rope_in_magnitude),
            values,
            mask,
            normalise=self.normalise,
            rows=self.row_pooling,  # type: ignore[arg-type]  # checked above
            heads=self.head_pooling,  # type: ignore[arg-type]
        )
        duplication = dual.value_key_duplication(values, view.keys(rope=self.rope_in_duplication), tau=self.tau)
        return self.select(magnitude, duplication, view.keep)
