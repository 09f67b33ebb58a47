"""How stable the order of the pruners is when only the seed changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenprune.report.stats.scores import Scores


@dataclass(frozen=True, slots=True)
class Seeded:
    """One pruner with several seeds: accuracy and rank in the table, lowest and highest over the seeds."""

    label: str
    accuracy: tuple[float, float]
    ranks: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stability:
    """Rank stability at one budget.

    Args:
        seeds: Number of seeds.
        seeded: The pruners that depend on the seed.
        kendall_w: Agreement of the seeds on the order of those pruners, 0 none to 1 full; `None` where not defined.
        reason: Why it is not defined.
        left_out: Pruners that are in none of these tables because some of their seeds have no result, in words.
    """

    seeds: int
    seeded: tuple[Seeded, ...]
    kendall_w: float | None
    reason: str = ""
    left_out: tuple[str, ...] = ()


def rank_stability(scores: Mapping[str, Scores], planned: Mapping[str, int]) -> Stability | None:
    """Compare the tables that each seed alone would have given; a pruner without seeds is the same in all of them.

    Args:
        scores: Pruners of one table by label.
        planned: Cells of each pruner, one per seed; a pruner that lacks some of them is left out.

    Returns:
        `None` where no pruner ran with several seeds.
    """
    left_out = tuple(
        f"{label} is left out: {len(found.seeds)} of {planned[label]} seeds have a result"
        for label, found in scores.items()
        if len(found.seeds) < planned[label]
    )
    scores = {label: found for label, found in scores.items() if len(found.seeds) >= planned[label]}
    most = max((found.seeds for found in scores.values()), key=len, default=())
    seeded = [label for label, found in scores.items() if len(found.seeds) > 1]
    if not seeded:
        return None
    table = np.array(
        [
            found.by_seed.mean(axis=1) if label in seeded else np.full(len(most), found.values.mean())
            for label, found in scores.items()
        ]
    ).round(9)  # equal answers have means that differ in their last bits
    ranks = 1 + (table[None, :, :] > table[:, None, :]).sum(axis=1)  # (pruners, seeds); equal accuracies share a rank
    places = [place for place, label in enumerate(scores) if label in seeded]
    rows = tuple(
        Seeded(
            label,
            (float(table[place].min()), float(table[place].max())),
            (int(ranks[place].min()), int(ranks[place].max())),
        )
        for label, place in zip(seeded, places, strict=True)
    )
    if len(seeded) < 2:
        return Stability(len(most), rows, None, "only one pruner depends on the seed", left_out)
    agreement = kendall_w(table[places].T.tolist())
    reason = "" if agreement is not None else "every seed ties all of them"
    return Stability(len(most), rows, agreement, reason, left_out)


def kendall_w(judgements: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance with the correction for ties (Kendall and Babington Smith 1939).

    Args:
        judgements: One row per judge, one number per item.

    Returns:
        1 where all judges order alike, 0 where they agree no more than chance; `None` where every judge ties all items.
    """
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(np.asarray(judgements, dtype=np.float64), axis=1))
    judges, items = ranks.shape
    spread = float(((ranks.sum(axis=0) - judges * (items + 1) / 2.0) ** 2).sum())
    ties = 0.0
    for row in ranks:
        _, counts = np.unique(row, return_counts=True)
        ties += float((counts**3 - counts).sum())
    full = judges**2 * (items**3 - items) - judges * ties
    return 12.0 * spread / full if full > 0 else None
