"""The axis `merge`: what becomes of the dropped tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.composition.options import Options
from tokenprune.composition.parts import Part, by_name
from tokenprune.correction import mass_corrected
from tokenprune.pruner import Decision, Kept

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual import Duplication


@dataclass(frozen=True, kw_only=True)
class Merge(Part):
    """What becomes of the dropped tokens.

    Args:
        emit: (kept indices (B, K), similarity, options) -> decision; `None` leaves the dropped ones out. The
            similarity is that of the axis `duplication`, or the cosine of the centred hidden states where it has none.
    """

    emit: Callable[[Tensor, Duplication, Options], Decision] | None


def _nearest_mean(picks: Tensor, similarity: Duplication, options: Options) -> Decision:
    kept = picks.sort(dim=-1).values
    maps = dual.mean_map(dual.assign(similarity, kept), kept)
    return Decision(tuple(Kept(row, merge=rows) for row, rows in zip(kept, maps, strict=True)))


def _mass_correction(picks: Tensor, similarity: Duplication, options: Options) -> Decision:
    return mass_corrected(Decision.keep(picks), similarity, cap=options.mass_cap)


MERGES = by_name(
    (
        Merge(name="none", meaning="they are gone", term="", emit=None),
        Merge(
            name="nearest-mean",
            meaning="each is averaged into the kept token that it is most similar to",
            term="row_j = mean of j and of the dropped ones nearest to it",
            emit=_nearest_mean,
        ),
        Merge(
            name="mass-correction",
            meaning="the kept token most similar to it gets its share of the attention",
            term="log w_j on the kept keys, w_j = 1 + dropped ones nearest to j",
            reads=("mass_cap",),
            emit=_mass_correction,
        ),
    )
)
