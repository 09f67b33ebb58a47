"""Pruner entries of a sweep file: short forms, compositions without code, and lists of values for ablations.

    - iwp                                              a name
    - iwp: {layer: 0, trade_off: [0.3, 0.7]}           a name with options; a list of values makes one entry each
    - mine: {magnitude: cls, selector: top-k}          no pruner's name, but axes: a composition with that label
    - {name: iwp, options: {layer: 0}, label: early}   the long form; `ablate: {layer: [0, 2]}` expands any option

An option whose own value is a list (its default is a tuple) is expanded only where every item is a list, and one
without a kind of its own (its default is `None`) only under `ablate`.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenprune.composition import AXES
from tokenprune.plugins import Host, default_host
from tokenprune.sweep.config.yaml_source import Location

COMPOSED = "composed"
"""The pruner that an entry with axes becomes."""

_LONG_FORM = ("name", "options", "label", "ablate")
_CLOSE = 0.75
"""How like an axis a misspelt one must look, for the entry to be read as a composition."""


@dataclass(frozen=True)
class Entries:
    """Entries in the long form, and where in the file each came from.

    Args:
        data: What stands in place of the file's `pruners`.
        origins: Per entry, its place among the file's entries, and the key of a short form (else empty).
        problems: What is wrong with the lists of values.
    """

    data: Any
    origins: tuple[tuple[int, str], ...] = ()
    problems: tuple[tuple[Location, str], ...] = ()

    def place(self, location: Location) -> Location:
        """A location among the entries as a location in the file."""
        if len(location) < 2 or location[0] != "pruners" or not isinstance(location[1], int):
            return location
        if location[1] >= len(self.origins):
            return location
        index, key = self.origins[location[1]]
        rest = tuple(location[2:])
        if key and rest[:1] in (("name",), ("options",)):
            rest = (key, *rest[1:])
        return ("pruners", index, *rest)


def expand_entries(value: Any, host: Host | None) -> Entries:
    """Bring the value of the key `pruners` into the long form, one entry per pruner.

    Args:
        value: A name, an entry, or a list of them; what is not understood is passed on as it is.
        host: Knows whose name is a pruner's, and what its options are; `None` takes what is installed.
    """
    items = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(items, list | tuple) or all(isinstance(item, str) for item in items):
        return Entries(value)
    reader = _Reader(host or default_host())
    for index, item in enumerate(items):
        reader.read(index, item)
    return Entries(reader.entries, tuple(reader.origins), tuple(reader.problems))


@dataclass
class _Reader:
    """Collects the entries of a file."""

    host: Host
    entries: list[Any] = field(default_factory=list)
    origins: list[tuple[int, str]] = field(default_factory=list)
    problems: list[tuple[Location, str]] = field(default_factory=list)

    def read(self, index: int, item: Any) -> None:
        """One item of the file."""
        entry, key = _long_form(item)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("options", {}), Mapping):
            self._add(item, index, "")
            return
        entry = self._composition(dict(entry))
        lists = dict(self._lists(entry, ("pruners", index, key or "options")))
        ablate = entry.pop("ablate", {})
        if not isinstance(ablate, Mapping) or not all(isinstance(values, list) for values in ablate.values()):
            self.problems.append((("pruners", index, "ablate"), "not lists of values (for example `{layer: [0, 2]}`)"))
            ablate = {}
        lists |= ablate
        for name, values in lists.items():
            if not values:
                self.problems.append((("pruners", index, key or "options", name), "an empty list of values"))
        base = entry.get("label") or entry.get("name")
        for point in itertools.product(*lists.values()):
            changed = dict(zip(lists, point, strict=True))
            made = {**entry, "options": {**entry.get("options", {}), **changed}} if changed else entry
            if changed and (entry.get("label") or entry.get("name") == COMPOSED):
                made["label"] = f"{base}[{','.join(f'{name}={value}' for name, value in changed.items())}]"
            self._add(made, index, key)

    def _composition(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry itself, or a composition where its name is no pruner's and its options are axes."""
        name, options = entry.get("name"), {**entry.get("options", {}), **_mapping(entry.get("ablate"))}
        if not isinstance(name, str) or name in self.host.pruners or not _has_axis(options):
            return entry
        return {**entry, "name": COMPOSED, "label": entry.get("label") or name}

    def _lists(self, entry: Mapping[str, Any], location: Location) -> Iterator[tuple[str, list[Any]]]:
        """Options that are lists of values, not values that are lists."""
        defaults = self._defaults(entry.get("name"))
        for name, value in entry.get("options", {}).items():
            if not isinstance(value, list) or name not in defaults or defaults[name] is None:
                continue
            if not isinstance(defaults[name], tuple) or (value and all(isinstance(item, list) for item in value)):
                yield name, value

    def _defaults(self, name: Any) -> Mapping[str, Any]:
        return self.host.pruners.get(name).defaults if name in self.host.pruners else {}

    def _add(self, entry: Any, index: int, key: str) -> None:
        self.entries.append(entry)
        self.origins.append((index, key))


def _long_form(item: Any) -> tuple[Any, str]:
    """An item as a mapping with `name`, and the key of a short form."""
    if isinstance(item, str):
        return {"name": item}, ""
    if isinstance(item, Mapping) and len(item) == 1:
        ((key, options),) = item.items()
        if key not in _LONG_FORM and (options is None or isinstance(options, Mapping)):
            return {"name": key, "options": dict(options or {})}, str(key)
    return item, ""


def _has_axis(options: Mapping[str, Any]) -> bool:
    """Whether an option is an axis, or looks like a misspelt one."""
    return any(difflib.get_close_matches(str(name), AXES, n=1, cutoff=_CLOSE) for name in options)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
