"""Real distributions for the host tests: a module and a dist-info folder on `sys.path`, as pip leaves them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

GOOD_PLUGIN = """
from tokenprune import hookimpl
from tokenprune.registry import Axes, PrunerSpec, Source


@hookimpl
def register_pruners(register):
    register(
        PrunerSpec(
            name="{pruner}",
            target="{module}:Pruner",
            summary="made for a test",
            source=Source("a test"),
            axes=Axes(site="input"),
            defaults={{"strength": 0.5, "layer": 2, "exact": False, "sizes": (1, 2), "note": None, "mode": "mean"}},
        )
    )
"""


@dataclass
class Site:
    """A folder on `sys.path` into which distributions are put."""

    folder: Path
    modules: list[str]

    def install(
        self, name: str, code: str, *, version: str = "1.0", entry_point: str = "", module: str = "", value: str = ""
    ) -> str:
        """Lay down one distribution; returns the name of its module."""
        module = module or name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(code, encoding="utf-8")
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        entry_point = entry_point or name.removeprefix("tokenprune-")
        (info / "entry_points.txt").write_text(f"[tokenprune]\n{entry_point} = {value or module}\n", encoding="utf-8")
        self.modules.append(module)
        return module

    def install_good(self, name: str, pruner: str, *, header: str = "", **facts: str) -> str:
        """A plugin that registers one pruner."""
        module = facts.get("module") or name.replace("-", "_")
        return self.install(name, header + GOOD_PLUGIN.format(pruner=pruner, module=module), **facts)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty site folder in front of `sys.path`; its modules are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("TOKENPRUNE_LOAD_PLUGINS", raising=False)
    monkeypatch.delenv("TOKENPRUNE_DISABLE_PLUGINS", raising=False)
    made = Site(folder, [])
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
