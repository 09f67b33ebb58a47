"""What the cells of one row cost: every figure with its quartiles, the floor beside it, and whether to believe it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.evaluation.cost.spread import TOLERANCE
from tokenprune.evaluation.environment import place_of

TIMES = ("encoder_ms", "prefill_ms", "first_token_ms", "decode_ms_per_token", "total_ms", "energy_j")
"""Figures that the floor has, too, each with quartiles."""

_SPREADS = (*TIMES, "overhead_ms", "overhead_share", "over_unpruned", "over_floor", "floor_over_unpruned")
_REPEATED = frozenset(_SPREADS) - {"energy_j"}
"""What is measured in every turn; energy is from a few windows of a second, which have no interval."""
_FIGURES = ("peak_mem_mib", "kv_mib", "prefill_tflops")


@dataclass(frozen=True, slots=True)
class Quartiles:
    """A median with its quartiles, and the 95 % interval of the median; without one if there were too few repeats."""

    median: float
    q1: float
    q3: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def counted(self) -> float:
        """What a ratio counts as in fronts and figures: 1 if its interval holds 1, else the median."""
        return 1.0 if self.interval is not None and self.interval[0] <= 1.0 <= self.interval[1] else self.median

    def within(self, width: float) -> bool:
        """Whether the interval is known and no wider than this on either side, on average."""
        return self.interval is not None and (self.interval[1] - self.interval[0]) / 2.0 <= width


@dataclass(frozen=True, slots=True)
class CostSummary:
    """What one row costs. Over several seeds each figure is the median of those measured in one place.

    Args:
        spreads: Figures with quartiles, by name as in `efficiency.Cost`; what was not measured is not there.
        figures: Figures without.
        unpruned: The times of the unpruned model in the same turns.
        floor: The same of the unpruned model on a prompt of the kept length.
        repeats: Timed runs of each cell, at least.
        precise: Whether the ratios are known as well as was asked for; `None` where nobody looked.
        tolerance: Relative uncertainty that was asked for.
        busy: The largest share that other work had of the device, where it is above the limit of what counts; else 0,
            and `None` where it is not known.
        unknown: Why it is not known.
        kernels: Fused attention kernels, of the pruned run and of the floor.
        same_kernels: Whether both ran with the same ones.
        where: Device, processor, versions, threads, attention implementation and clock, in words.
        cells: Cells with a result; the figures are of those that were neither refused nor measured elsewhere.
        refused: Cells whose cost was refused, or could not be measured.
        refusal: Why.
        elsewhere: Cells that were measured in other places, by place: they are not in the figures.
        unmeasured: By figure, why it is not there.
    """

    spreads: Mapping[str, Quartiles]
    figures: Mapping[str, float]
    unpruned: Mapping[str, Quartiles]
    floor: Mapping[str, Quartiles]
    floor_figures: Mapping[str, float]
    repeats: int
    precise: bool | None
    tolerance: float
    busy: float | None
    unknown: str
    kernels: tuple[str, ...]
    same_kernels: bool
    where: str
    cells: int
    refused: int
    refusal: str
    elsewhere: Mapping[str, int]
    unmeasured: Mapping[str, str]

    def unsure(self, name: str, beside: Mapping[str, Quartiles] | None = None) -> bool:
        """Whether a figure is known less well than was asked for; the part of the pruner relative to the prefill.

        Args:
            name: Name of the figure.
            beside: `unpruned` or `floor` for one of theirs.
        """
        spreads = self.spreads if beside is None else beside
        if name not in spreads or name not in _REPEATED:
            return False
        whole = spreads.get("prefill_ms", spreads[name]) if name == "overhead_ms" else spreads[name]
        return not spreads[name].within(self.tolerance * (1.0 if name == "overhead_share" else abs(whole.median)))


def summarise_costs(results: Sequence[Mapping[str, Any] | None]) -> CostSummary | None:
    """The costs of the cells of one row, as their results hold them; `None` where nothing was to be measured.

    A figure that one of the measured cells lacks is left out; so cells of older versions have no floor, and no figures
    beside the unpruned model. Where seeds ran in several places, those of the most common one count.

    Args:
        results: One per cell; `None` for a cell whose cost was not to be measured.
    """
    found = [cost for cost in results if cost]
    if not found:
        return None
    refusals = [str(cost["error"]) for cost in found if "error" in cost]
    measured = [cost for cost in found if "error" not in cost]
    places = Counter(map(_where, measured)).most_common()
    where = places[0][0] if places else ""
    costs = [cost for cost in measured if _where(cost) == where]
    floors = [cost.get("floor") or {} for cost in costs]
    kernels = sorted({name for cost in costs for name in cost.get("kernels", ())})
    theirs = sorted({name for floor in floors for name in floor.get("kernels", ())})
    precisions = [cost["precision"] for cost in costs if cost.get("precision")]
    prefills = [cost["prefill_ms"]["repeats"] for cost in costs if cost.get("prefill_ms")]
    busy, unknown = _busy(costs)
    return CostSummary(
        spreads=_spreads(costs, _SPREADS),
        figures=_figures(costs),
        unpruned=_spreads([cost.get("unpruned") or {} for cost in costs], TIMES),
        floor=_spreads(floors, TIMES),
        floor_figures=_figures(floors, "tokens"),
        repeats=min(prefills, default=0),
        precise=all(each["met"] for each in precisions) if precisions else None,
        tolerance=max((float(each["tolerance"]) for each in precisions), default=TOLERANCE),
        busy=busy,
        unknown=unknown,
        kernels=tuple(kernels),
        same_kernels=not any(floors) or kernels == theirs,
        where=where,
        cells=len(results),
        refused=len(refusals),
        refusal=next(iter(refusals), ""),
        elsewhere=dict(places[1:]),
        unmeasured={name: str(why) for cost in costs for name, why in cost.get("unmeasured", {}).items()},
    )


def _spreads(costs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Quartiles]:
    found = {}
    for name in names:
        values = [cost.get(name) for cost in costs]
        if values and all(values):
            parts = (_middle([value.get(part) for value in values if value]) for part in ("low", "high"))
            known = ([float(value[part]) for value in values if value] for part in ("median", "q1", "q3"))
            found[name] = Quartiles(*map(statistics.median, known), *parts)
    return found


def _middle(values: Sequence[float | None]) -> float | None:
    """The median over the seeds; `None` if one of them has none."""
    return None if None in values else statistics.median(float(value) for value in values if value is not None)


def _figures(costs: Sequence[Mapping[str, Any]], *more: str) -> dict[str, float]:
    values = {name: [cost.get(name) for cost in costs] for name in (*_FIGURES, *more)}
    return {
        name: statistics.median(float(value) for value in found if value is not None)
        for name, found in values.items()
        if found and None not in found
    }


def _busy(costs: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """The largest share of other work, and why it is not known: one busy cell is enough, whatever the others are."""
    found = [cost.get("busy") or {} for cost in costs]
    if any(each.get("busy") for each in found):
        shares = [share for each in found for when in ("before", "during") for share in each.get(when, {}).values()]
        return max(shares), ""
    unknown = [each for each in found if each.get("busy") is None]
    if not unknown:
        return 0.0, ""
    reasons = dict.fromkeys(str(why) for each in unknown for why in each.get("unknown", {}).values())
    return None, "; ".join(reasons) or "nobody looked"


def _where(cost: Mapping[str, Any]) -> str:
    threads = cost.get("threads")
    parts = [
        cost.get("device"),
        place_of(cost.get("environment")),
        f"{threads} {'thread' if threads == 1 else 'threads'}" if threads else None,
        f"attention {cost['attention']}" if cost.get("attention") else None,
        cost.get("clock"),
    ]
    return ", ".join(str(part) for part in parts if part)
