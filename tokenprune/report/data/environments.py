"""What the cells of a sweep were run with, and which rows of a table were run with something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from tokenprune.evaluation.environment import facts_of
from tokenprune.report.text import counted
from tokenprune.sweep.store.sweep_data import CellRecord

What = Literal["answers", "cost"]
"""A cell's questions and its cost may have been run with different things."""

UNKNOWN = "?"
"""Name of the environment of results that do not say theirs."""

_WHAT: Mapping[What, str] = {
    "answers": "answered in different environments, so differences between these rows may come from there",
    "cost": "measured in different environments, so times and ratios are not to be compared across them",
}


@dataclass(frozen=True, slots=True)
class Shared:
    """One environment, and the cells that were run with it.

    Args:
        name: A letter; `?` for results that do not say what they were run with.
        facts: What it is, by name (`torch`, `processor`, `threads`, ...); of plugins only what these cells used.
        differs: The facts that are not the same in all environments of the sweep.
        answered: Ids of the cells that were answered with it.
        measured: Ids of the cells whose cost was measured with it.
    """

    name: str
    facts: Mapping[str, str]
    differs: Mapping[str, str]
    answered: tuple[str, ...]
    measured: tuple[str, ...]

    def label(self) -> str:
        """The letter, and what differs."""
        return f"{self.name} ({_words(self.differs) if self.name != UNKNOWN else 'not recorded'})"


def environments_of(entries: Iterable[CellRecord]) -> tuple[Shared, ...]:
    """The environments of a sweep's results, in the order of the plan; those that differ in no fact are one."""
    found = [(entry.cell.id, what, facts) for entry in entries for what, facts in _blocks(entry)]
    names = dict.fromkeys(name for _, _, facts in found for name in facts)
    differing = [name for name in names if len({facts[name] for _, _, facts in found if name in facts}) > 1]
    groups: dict[tuple[tuple[str, str], ...] | None, list[tuple[str, What, dict[str, str]]]] = {}
    for cell_id, what, facts in found:
        key = tuple((name, facts[name]) for name in differing if name in facts) if facts else None
        groups.setdefault(key, []).append((cell_id, what, facts))
    known = [key for key in groups if key is not None]
    letters: dict[object, str] = {key: _letter(place) for place, key in enumerate(known)}
    return tuple(
        Shared(
            name=letters.get(key, UNKNOWN),
            facts={name: value for _, _, facts in members for name, value in facts.items()},
            differs=dict(key or ()),
            answered=tuple(cell_id for cell_id, what, _ in members if what == "answers"),
            measured=tuple(cell_id for cell_id, what, _ in members if what == "cost"),
        )
        for key, members in groups.items()
    )


def environment_notes(environments: Sequence[Shared], groups: Mapping[str, Sequence[CellRecord]]) -> tuple[str, ...]:
    """Notes on one table: which rows were run in which environment, if not all in one.

    Args:
        environments: Those of the sweep.
        groups: The cells of each row by its label.
    """
    if len(environments) < 2:
        return ()
    texts: dict[str, list[str]] = {}
    for what, sentence in _WHAT.items():
        members = {
            each.label(): frozenset(each.answered if what == "answers" else each.measured) for each in environments
        }
        rows = {
            label: [row for row, entries in groups.items() if any(entry.cell.id in ids for entry in entries)]
            for label, ids in members.items()
        }
        shown = [f"{label}: {', '.join(found)}" for label, found in rows.items() if found]
        if len(shown) > 1:
            texts.setdefault("; ".join(shown), []).append(sentence)
    return tuple(f"{'; '.join(sentences)}: {rows}" for rows, sentences in texts.items())


def environment_sentence(environments: Sequence[Shared]) -> str:
    """What all cells were run with, or that it is not one thing; empty if there is no result."""
    if not environments:
        return ""
    if len(environments) > 1:
        labels = ", ".join(each.label() for each in environments)
        return f"Run in {counted(len(environments), 'different environment')}: {labels}."
    only = environments[0]
    return (
        f"Run with {_words(only.facts)}." if only.name != UNKNOWN else "What the cells were run with is not recorded."
    )


def _blocks(entry: CellRecord) -> Iterator[tuple[What, dict[str, str]]]:
    result = entry.result
    if result is None:
        return
    yield "answers", facts_of(result.get("environment"))
    cost = result.get("cost") or {}
    if cost and "error" not in cost:
        yield "cost", facts_of(cost.get("environment"))


def _letter(place: int) -> str:
    return ascii_uppercase[place] if place < len(ascii_uppercase) else f"E{place + 1}"


def _words(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
