"""Read a YAML 1.2 file and remember where every key and item stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigError

Location = Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file: plain data, and the positions of its parts.

    Args:
        name: What messages call it (a path, or `command line`).
        data: Plain mappings, lists and scalars.
        marked: The same with positions, or `None` where there are none.
    """

    name: str
    data: dict[str, Any]
    marked: Any = None

    def position(self, location: Location) -> str:
        """`file:line:column` of a key or item; the nearest enclosing one where it is not in the file."""
        line, column = _find(self.marked, location)
        return f"{self.name}:{line}:{column}" if line else self.name


def read_yaml(path: Path) -> Source:
    """Parse one YAML file (YAML 1.2: `no` is a text, `1e-3` a number; a duplicate key is an error).

    Raises:
        ConfigError: The file is missing, is not valid YAML, or is not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read `{path}`: {error}", hint="give the path of a YAML file") from error
    try:
        marked = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: {error.problem or error.context}", hint="mend the YAML there") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: {error}", hint="mend the YAML there") from error
    if marked is None:
        marked = {}
    if not isinstance(marked, dict):
        raise ConfigError(f"{path}:1:1: a sweep file must be a mapping of keys", hint="for example `budgets: [25%]`")
    return Source(str(path), _plain(marked), marked)


def _plain(value: Any) -> Any:
    """The same data in plain Python types (ruamel's own scalars carry formatting)."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def _find(marked: Any, location: Location) -> tuple[int, int]:
    """Line and column (1-based) of the deepest part of `location` that exists; (0, 0) where nothing does."""
    found = (0, 0)
    node = marked
    for part in location:
        marks = getattr(node, "lc", None)
        if marks is None:
            break
        try:
            line, column = marks.item(part) if isinstance(node, list) else marks.key(part)
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
        found = (line + 1, column + 1)
    return found
