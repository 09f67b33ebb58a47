"""Check a folder of golden files, each with the adapter of its method."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenprune.errors import PrerequisiteError
from tokenprune.testing.golden import adapters
from tokenprune.testing.golden.case import Case


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one file.

    Args:
        name: `<method>/<case>`.
        covered: An adapter exists for the method.
        differences: What differs; empty where all is equal.
    """

    name: str
    covered: bool
    differences: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Covered and equal."""
        return self.covered and not self.differences

    def line(self) -> str:
        """One line for people."""
        if self.passed:
            return f"ok           {self.name}"
        if not self.covered:
            return f"NOT COVERED  {self.name}"
        return f"DIFFERS      {self.name}: {'; '.join(self.differences)}"


def covered_methods() -> tuple[str, ...]:
    """Folder names for which there is an adapter."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(adapters.__path__)))


def check_file(path: Path) -> Verdict:
    """Run the adapter of the file's method; a fault in reading or running counts as a difference."""
    name = f"{path.parent.name}/{path.stem}"
    if path.parent.name not in covered_methods():
        return Verdict(name, covered=False)
    adapter = importlib.import_module(f"{adapters.__name__}.{path.parent.name}")
    try:
        return Verdict(name, covered=True, differences=tuple(adapter.check(Case.read(path))))
    except Exception as error:  # noqa: BLE001 - one bad file must not hide the others
        return Verdict(name, covered=True, differences=(f"{type(error).__name__}: {error}",))


def check_folder(folder: Path) -> Iterator[Verdict]:
    """All files `<method>/<case>.safetensors` of a folder, in order of name.

    Raises:
        PrerequisiteError: There is none.
    """
    files = sorted(folder.glob("*/*.safetensors"))
    if not files:
        raise PrerequisiteError(
            f"`{folder}` has no golden files", hint="expected <method>/<case>.safetensors below this folder"
        )
    return map(check_file, files)
