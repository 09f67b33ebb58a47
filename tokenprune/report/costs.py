"""What the cells of one row cost: every figure with its quartiles, the floor beside it, and whether to believe it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TIMES = ("encoder_ms", "prefill_ms", "first_token_ms", "decode_ms_per_token", "total_ms", "energy_j")
"""Figures that the floor has, too, each with quartiles."""

_SPREADS = (*TIMES, "overhead_ms", "overhead_share", "over_floor")
_FIGURES = ("peak_mem_mib", "kv_mib", "prefill_tflops")


@dataclass(frozen=True, slots=True)
class Quartiles:
    """A median with its quartiles."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True, slots=True)
class CostSummary:
    """What one row costs. Over several seeds each figure is the median of theirs.

    Args:
        spreads: Figures with quartiles, by name as in `tokenprune.metrics.efficiency.Cost`; what was not measured is
            not there.
        figures: Figures without.
        floor: The same of the unpruned model on a prompt of the kept length.
        repeats: Timed runs of each cell, at least.
        precise: Whether the medians are known as well as was asked for; `None` where nobody looked.
        busy: The largest share that other work had of the device, where it is above the limit of what counts; else 0,
            and `None` where it is not known.
        kernels: Fused attention kernels, of the pruned run and of the floor.
        same_kernels: Whether both ran with the same ones.
        where: Device, threads, attention implementation and clock, in words.
        unmeasured: By figure, why it is not there.
    """

    spreads: Mapping[str, Quartiles]
    figures: Mapping[str, float]
    floor: Mapping[str, Quartiles]
    floor_figures: Mapping[str, float]
    repeats: int
    precise: bool | None
    busy: float | None
    kernels: tuple[str, ...]
    same_kernels: bool
    where: str
    unmeasured: Mapping[str, str]


def summarise_costs(costs: Sequence[Mapping[str, Any]]) -> CostSummary | None:
    """The costs of the cells of one row, as their results hold them; `None` where there is none.

    A figure that one of the cells lacks is left out; cells written before there was a floor have none.
    """
    if not costs:
        return None
    floors = [cost.get("floor") or {} for cost in costs]
    kernels = sorted({name for cost in costs for name in cost.get("kernels", ())})
    theirs = sorted({name for floor in floors for name in floor.get("kernels", ())})
    precisions = [cost["precision"]["met"] for cost in costs if cost.get("precision")]
    prefills = [cost["prefill_ms"]["repeats"] for cost in costs if cost.get("prefill_ms")]
    return CostSummary(
        spreads=_spreads(costs, _SPREADS),
        figures=_figures(costs),
        floor=_spreads(floors, TIMES),
        floor_figures=_figures(floors, "tokens"),
        repeats=min(prefills, default=0),
        precise=all(precisions) if precisions else None,
        busy=_busy(costs),
        kernels=tuple(kernels),
        same_kernels=not any(floors) or kernels == theirs,
        where=_where(costs[0]),
        unmeasured={name: str(why) for cost in costs for name, why in _missing(cost)},
    )


def _spreads(costs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Quartiles]:
    found = {}
    for name in names:
        values = [cost.get(name) for cost in costs]
        if all(values):
            parts = ([float(value[part]) for value in values if value] for part in ("median", "q1", "q3"))
            found[name] = Quartiles(*map(statistics.median, parts))
    return found


def _figures(costs: Sequence[Mapping[str, Any]], *more: str) -> dict[str, float]:
    values = {name: [cost.get(name) for cost in costs] for name in (*_FIGURES, *more)}
    return {
        name: statistics.median(float(value) for value in found if value is not None)
        for name, found in values.items()
        if None not in found
    }


def _busy(costs: Sequence[Mapping[str, Any]]) -> float | None:
    found = [cost.get("busy") or {} for cost in costs]
    if any(each.get("busy") is None for each in found):
        return None
    shares = [share for each in found for when in ("before", "during") for share in each[when].values()]
    return max(shares) if any(each["busy"] for each in found) else 0.0


def _missing(cost: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Why figures are not there; a cost that was refused has none at all."""
    return [("cost", cost["error"])] if "error" in cost else list(cost.get("unmeasured", {}).items())


def _where(cost: Mapping[str, Any]) -> str:
    threads = cost.get("threads")
    parts = [
        cost.get("device"),
        f"{threads} {'thread' if threads == 1 else 'threads'}" if threads else None,
        f"attention {cost['attention']}" if cost.get("attention") else None,
        cost.get("clock"),
    ]
    return ", ".join(str(part) for part in parts if part)
