"""What the cells of one row cost: figures with quartiles, the floor beside them, and whether to rely on them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.evaluation.cost.spread import TOLERANCE
from tokenprune.evaluation.environment import place_of
from tokenprune.report.text import BUSY, UNKNOWN, UNSURE, Note, counted

TIMES = ("encoder_ms", "prefill_ms", "first_token_ms", "decode_ms_per_token", "total_ms", "energy_j")
"""Figures with quartiles that the floor and the unpruned model have, too."""

MEASURED = (*TIMES, "overhead_ms", "overhead_share", "over_unpruned", "over_floor", "floor_over_unpruned")
"""All figures with quartiles, by name as in `efficiency.Cost`."""

_REPEATED = frozenset(MEASURED) - {"energy_j"}
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
        spreads: Figures with quartiles, of `MEASURED`; what was not measured is not there.
        figures: Figures without quartiles.
        unpruned: The times of the unpruned model in the same turns.
        floor: The same of the unpruned model on a prompt of the kept length.
        repeats: Timed runs of each cell, at least.
        precise: Whether the ratios are known as well as was asked for; `None` if that was not checked.
        tolerance: Relative uncertainty that was asked for.
        busy: The largest share that other work had of the device, if it is above the limit of what counts; else 0, and
            `None` if it is not known.
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

    @property
    def busy_mark(self) -> str:
        """A mark if the device had other work while this was measured, and another one if nothing tells."""
        if "prefill_ms" not in self.spreads:
            return ""
        return UNKNOWN if self.busy is None else BUSY if self.busy else ""

    def marks(self, name: str) -> str:
        """The marks beside a figure: of a busy device, and of a figure that is not known well."""
        return self.busy_mark + (UNSURE if self.unsure(name) else "")

    def unsure(self, name: str, spreads: Mapping[str, Quartiles] | None = None) -> bool:
        """Whether a figure is known less well than was asked for; the part of the pruner relative to the prefill.

        Args:
            name: Name of the figure.
            spreads: `unpruned` or `floor` for one of theirs.
        """
        spreads = self.spreads if spreads is None else spreads
        if name not in spreads or name not in _REPEATED:
            return False
        whole = spreads.get("prefill_ms", spreads[name]) if name == "overhead_ms" else spreads[name]
        return not spreads[name].within(self.tolerance * (1.0 if name == "overhead_share" else abs(whole.median)))


def summarise_costs(results: Sequence[Mapping[str, Any] | None]) -> CostSummary | None:
    """The costs of the cells of one row, as their results hold them; `None` if nothing was to be measured.

    A figure that one of the measured cells lacks is left out, such as the floor of an older version. If seeds ran in
    several places, those of the most common one count.

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
        spreads=_spreads(costs, MEASURED),
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


def timing_notes(costs: Sequence[CostSummary | None]) -> list[Note]:
    """What the marks beside the costs of some rows mean."""
    known = [cost for cost in costs if cost is not None and cost.spreads]
    notes = [Note("~1: the 95 % interval holds 1, so neither a speed-up nor a slow-down is known", mark="~1")]
    shares = [cost.busy for cost in known if cost.busy and cost.busy_mark]
    if shares:
        text = f"{BUSY}: other work had up to {100.0 * max(shares):.0f} % of the device when this was measured"
        notes.append(Note(text, mark=BUSY))
    unknown = dict.fromkeys(cost.unknown for cost in known if cost.busy_mark == UNKNOWN)
    if unknown:
        why = "; ".join(filter(None, unknown))
        notes.append(Note(f"{UNKNOWN}: whether other work had the device is not known: {why}", mark=UNKNOWN))
    if known:
        text = (
            f"{UNSURE}: not known to within {100.0 * max(cost.tolerance for cost in known):g} % (half the width of its "
            "95 % interval), or measured too few times for an interval"
        )
        notes.append(Note(text, mark=UNSURE))
    return notes


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
    parts = [
        cost.get("device"),
        place_of(cost.get("environment")),
        counted(cost["threads"], "thread") if cost.get("threads") else None,
        f"attention {cost['attention']}" if cost.get("attention") else None,
        cost.get("clock"),
    ]
    return ", ".join(str(part) for part in parts if part)
