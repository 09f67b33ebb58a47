"""The principled variant of IWP: the real softmax, normaliser included, instead of its un-normalised kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.pruner import Decision, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_iwp.selection import MMR_VARIANTS, ChunkedSelection, one_of

if TYPE_CHECKING:
    from torch import Tensor

FIDELITY = """\
Our own derivation, not a published method: three things that IWP leaves out of the softmax are put back.
magnitude: how far the attention output really moves when the token alone is dropped, a/(1-a) ||v - o||, root mean
square over text rows and heads; the value is centred at the output, so sinks and a shared mean value do not count.
duplication: two keys are equal where the layer's own queries cannot tell them apart (query covariance as the metric);
values are centred at their mean.
mass_correction: on; a kept token speaks for its dropped twins."""


@pruner(
    "iwp-exact",
    summary="IWP with the normaliser: leave-one-out magnitude, query-covariance key metric, mass correction",
    source=Source(title="Derived from softmax attention by the tokenprune authors"),
    axes=Axes(
        site="entering decoder layer 2",
        magnitude="leave-one-out, a/(1-a) ||v - o||",
        duplication="cos(v - mean) Gauss(k; query covariance)",
        selector="progressive chunked MMR",
        merge="mass correction",
    ),
    formula=(
        "argmax_i lambda rank(rho_i) - (1-lambda) max_{j in S} cos(v_i-v,v_j-v) exp(-(k_i-k_j)' Sigma (k_i-k_j)/(2d)); "
        "log w_j on the kept keys"
    ),
    needs=("qkv", "attention"),
    fidelity=FIDELITY,
    variants=(
        *MMR_VARIANTS,
        {"layer": 1},
        {"rows": "last"},
        {"covariance_rows": "text"},
        {"covariance_rows": "visual"},
    ),
)
@dataclass(frozen=True)
class IwpExact(ChunkedSelection):
    """Keep the tokens whose loss would move the attention output most and that no kept token can stand for.

    Args:
        rows: Whose attention output counts: `text` or `last`.
        covariance_rows: Whose queries define the key metric: `text`, `visual` or `all` (both).
    """

    site: ClassVar[SiteKind] = "layer"

    mass_correction: bool = True
    rows: str = "text"
    covariance_rows: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("rows", self.rows, ("text", "last"))
        one_of("covariance_rows", self.covariance_rows, ("text", "visual", "all"))

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Exact leave-one-out magnitude and metric duplication at the layer that the cut enters."""
        attention, mask = view.attention(self.rows)  # type: ignore[arg-type]
        output, _ = view.attention_output(self.rows)  # type: ignore[arg-type]
        values = view.values()
        magnitude = dual.leave_one_out(attention, values, output, mask)
        queries, real = self._metric_queries(view)
        duplication = dual.metric_duplication(values, view.keys(rope=True), queries, real, tau=self.tau)
        return self.select(magnitude.clamp_min(1e-30).log(), duplication, view.keep)

    def _metric_queries(self, view: View) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) that define the key metric, and their mask (B, R)."""
        import torch

        names = ("text", "visual") if self.covariance_rows == "all" else (self.covariance_rows,)
        found = [view.queries(name, rope=True) for name in names]  # type: ignore[arg-type]
        return torch.cat([queries for queries, _ in found], dim=2), torch.cat([mask for _, mask in found], dim=1)
