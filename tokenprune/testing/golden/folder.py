"""Check a folder of golden files, each with the adapter of its method."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import default_host
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


def adapters() -> dict[str, str]:
    """Modules of adapters by the method that they are for.

    They are part of the source of a plugin, not of what is installed of it: the folder `tests/golden` beside the
    plugin's package, or beside its single module, is a package, with a folder `<method>` that holds `adapter.py`.
    """
    return {
        path.parent.name: f"{name}.{path.parent.name}.adapter"
        for name, folder in _packages().items()
        for path in sorted(folder.glob("*/adapter.py"))
    }


@functools.cache
def _packages() -> dict[str, Path]:
    """The golden packages of the installed plugins, importable by these names, and their folders."""
    found: dict[str, Path] = {}
    for _, plugin in default_host().manager.list_name_plugin():
        plugin_package = str(getattr(plugin, "__name__", "")).partition(".")[0]
        spec = importlib.util.find_spec(plugin_package) if plugin_package else None
        if spec is None or spec.origin is None:
            continue
        package = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        file, name = package.parent / "tests" / "golden" / "__init__.py", f"{plugin_package}_golden"
        if not file.is_file():
            continue
        golden = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        if golden is not None and golden.loader is not None:
            sys.modules[name] = importlib.util.module_from_spec(golden)
            golden.loader.exec_module(sys.modules[name])
            found[name] = file.parent
    return found


def covered_methods() -> tuple[str, ...]:
    """Folder names for which there is an adapter."""
    return tuple(sorted(adapters()))


def check_file(path: Path) -> Verdict:
    """Run the adapter of the file's method; a fault in reading or running counts as a difference."""
    method = path.parent.name
    name = f"{method}/{path.stem}"
    known = adapters()
    if method not in known:
        return Verdict(name, covered=False)
    adapter = importlib.import_module(known[method])
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
