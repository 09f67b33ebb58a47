"""Pruner entries with `from: FILE`: the options that `tokenprune calibrate` wrote are read in place.

They become options of the entry like any others, so that a cell's identity sees them and not the name of a file. What
the entry says itself comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigError
from tokenprune.sweep.config.yaml_source import Source, read_yaml

KEY = "from"


def with_calibrated(source: Source, folder: Path) -> Source:
    """The sweep file with every `from` replaced by the options in the file that it names.

    Args:
        source: A parsed sweep file; what is not understood is passed on as it is.
        folder: Where relative paths start, the sweep file's own.

    Raises:
        ConfigError: A file cannot be read, or has not exactly one entry of the pruner's name; all of them at once.
    """
    given = source.data.get("pruners")
    items = [given] if isinstance(given, Mapping) else given
    if not isinstance(items, list) or not any(isinstance(item, Mapping) and KEY in item for item in items):
        return source
    entries, problems = [], []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping) or KEY not in item:
            entries.append(item)
            continue
        try:
            entries.append(_merged(item, folder))
        except ConfigError as error:
            position = source.position(("pruners", index, KEY))
            problems.append(f"{position}: pruners.{index}.{KEY}: {error.message}")
    if problems:
        raise ConfigError("\n".join(problems), hint="`tokenprune calibrate NAME --out FILE` writes such files")
    return dataclasses.replace(source, data={**source.data, "pruners": entries})


def _merged(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    name, file = item.get("name"), item[KEY]
    if not isinstance(name, str) or not isinstance(file, str):
        raise ConfigError("an entry that reads a file says `name` and `from: FILE`")
    listed = read_yaml(folder / file).data.get("pruners")
    known = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    found = [entry for entry in known if entry.get("name") == name]
    if len(found) != 1:
        names = ", ".join(f"`{entry.get('name')}`" for entry in known) or "none"
        raise ConfigError(f"`{folder / file}` has {len(found)} entries for `{name}`, not one (it lists {names})")
    entry = {**found[0], **{key: value for key, value in item.items() if key != KEY}}
    options = [part.get("options") or {} for part in (found[0], item)]
    if not all(isinstance(part, Mapping) for part in options):
        return entry  # the check of the whole file says what is wrong
    return {**entry, "options": {**options[0], **options[1]}}
