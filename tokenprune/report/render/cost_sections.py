"""What every pruner costs at each budget, beside the unpruned model on the whole prompt and on a shorter one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tokenprune.report.data.costs import CostSummary, Quartiles
from tokenprune.report.data.notes import Note, Section, marked, timing_notes
from tokenprune.report.data.rows import Row, Table
from tokenprune.report.text import NOTHING, UNSURE, counted, number, percent, quartiles, ratio, subject_at

_HEADER = (
    "pruner",
    "prefill ms",
    "quartiles",
    "unpruned ms",
    "x none",
    "floor ms",
    "x floor",
    "pruner ms",
    "pruner %",
    "encoder ms",
    "first token ms",
    "decode ms",
    "floor decode ms",
    "peak MiB",
    "KV MiB",
    "GFLOPs",
    "floor GFLOPs",
    "energy J",
    "repeats",
)


def cost_sections(tables: Sequence[Table]) -> list[Section]:
    """One table per budget where something was measured; what holds for several is said once, below the last one."""
    made = [section for table in tables for section in _of(table)]
    seen: set[Note] = set()
    found = []
    for section in reversed(made):
        notes = tuple(note for note in section.notes if note.mark or note not in seen)
        seen.update(section.notes)
        found.append(replace(section, notes=notes))
    return found[::-1]


def _of(table: Table) -> Iterator[Section]:
    title = f"{table.model}, {table.task}: cost at {subject_at(table.budget)}"
    measured = [(row, row.cost) for row in table.rows if row.cost is not None and row.cost.spreads]
    refused = [(row.label, row.cost.refusal) for row in table.rows if row.cost is not None and row.cost.refused]
    if not measured:
        if refused:
            yield Section(title, ("pruner", "not measured"), tuple(refused), names=("pruner", "not measured"))
        return
    lines = [(row.label, *_line(row, cost)) for row, cost in measured]
    used = [place for place in range(len(_HEADER)) if any(line[place] != NOTHING for line in lines)]
    yield Section(
        title,
        tuple(_HEADER[place] for place in used),
        tuple(tuple(line[place] for place in used) for line in lines),
        notes=(*timing_notes(table.rows), *_missing(table.rows), *_notes(measured)),
    )


def _line(row: Row, cost: CostSummary) -> tuple[str, ...]:
    def ours(name: str, digits: int) -> str:
        text = number(cost.spreads[name].median if name in cost.spreads else None, digits)
        return text if text == NOTHING or not cost.unsure(name) else text + UNSURE

    def theirs(found: Mapping[str, Quartiles], name: str, digits: int) -> str:
        text = number(found[name].median if name in found else None, digits)
        return text if text == NOTHING or not cost.unsure(name, found) else text + UNSURE

    tera = cost.floor_figures.get("prefill_tflops")
    return (
        marked(number(row.prefill_ms, 1), row, "prefill_ms"),
        quartiles(row.prefill_ms_quartiles, 1),
        theirs(cost.unpruned, "prefill_ms", 1),
        marked(ratio(row.over_unpruned, row.over_unpruned_interval), row, "over_unpruned"),
        theirs(cost.floor, "prefill_ms", 1),
        marked(ratio(row.over_floor, row.over_floor_interval), row, "over_floor"),
        ours("overhead_ms", 1),
        marked(percent(row.overhead_share), row, "overhead_share"),
        ours("encoder_ms", 1),
        ours("first_token_ms", 1),
        ours("decode_ms_per_token", 2),
        theirs(cost.floor, "decode_ms_per_token", 2),
        number(row.peak_mem_mib, 1),
        number(row.kv_mib, 2),
        number(row.prefill_gflops, 2),
        number(None if tera is None else 1000.0 * tera, 2),
        ours("energy_j", 2),
        f"{cost.repeats}{'' if cost.precise is not False else UNSURE}",
    )


def _missing(rows: Sequence[Row]) -> Iterator[Note]:
    """Cells that are not in the figures of their row: refused, measured elsewhere, or not measured."""
    for row in rows:
        cost = row.cost
        if cost is None:
            continue
        of = "" if cost.cells == 1 else f" for {cost.refused} of {counted(cost.cells, 'seed')}"
        if cost.refused:
            yield Note(f"{row.label}: cost not measured{of}: {cost.refusal}")
        for where, count in cost.elsewhere.items():
            yield Note(f"{row.label}: {count} of {counted(cost.cells, 'seed')} measured elsewhere, not shown: {where}")


def _notes(measured: Sequence[tuple[Row, CostSummary]]) -> Iterator[Note]:
    costs = [cost for _, cost in measured]
    places = list(dict.fromkeys(cost.where for cost in costs))
    if len(places) == 1:
        yield Note(f"one sample, median: {places[0]}")
    for where in places if len(places) > 1 else ():
        labels = ", ".join(row.label for row, cost in measured if cost.where == where)
        yield Note(f"one sample, median: {where}: {labels}")
    if any("over_unpruned" in cost.spreads for cost in costs):
        yield Note(
            "x none: prefill divided by that of the unpruned model in the same turns, with the 95 % interval of the "
            "median; below 1 is a speed-up. Milliseconds of different rows were taken at different times",
            ("x none",),
        )
    if any(cost.floor for cost in costs):
        yield Note(
            "floor: the unpruned model on a prompt that already has the kept length, as many visual tokens as the "
            "layer average; x floor: prefill divided by that of the floor, in the same way",
            ("floor ms", "x floor", "floor decode ms", "floor GFLOPs"),
        )
    if not all(cost.same_kernels for cost in costs):
        used = sorted({name for cost in costs for name in cost.kernels})
        names = ", ".join(used) or "none"
        yield Note(f"pruned runs and floor ran with different attention kernels ({names} when pruned)")
    reasons = dict.fromkeys(f"{name}: {why}" for cost in costs for name, why in cost.unmeasured.items())
    yield from (Note(f"not measured: {reason}") for reason in reasons)
