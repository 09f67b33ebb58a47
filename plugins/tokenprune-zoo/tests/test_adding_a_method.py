"""A method is added in the places that CONTRIBUTING names, and nothing else is asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenprune_zoo
from recorded_stops import __file__ as neighbour

PACKAGE, TESTS = Path(tokenprune_zoo.__file__).parent, Path(neighbour).parent
METHOD = '''"""Latest: the tokens that come last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune.pruner import ScoredPruner, SiteKind, View, pruner
from tokenprune.registry import Axes, Source

if TYPE_CHECKING:
    from torch import Tensor


@pruner(
    "latest",
    summary="the tokens with the largest norm, or the smallest",
    source=Source("an example", url="https://example.org"),
    axes=Axes(site="LLM input", magnitude="norm of the projected features"),
    formula="top-K of ||z_i||",
    needs=("projected",),
    fidelity="An example of the tests: nothing was published that it could differ from, so there is nothing to say.",
    variants=({"smallest": True},),
)
@dataclass(frozen=True)
class Latest(ScoredPruner):
    site: ClassVar[SiteKind] = "input"
    smallest: bool = False

    def score(self, view: View) -> Tensor:
        norms = view.projected().float().norm(dim=-1)
        return -norms if self.smallest else norms
'''


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_a_file_and_a_line_are_enough_for_every_law(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "tokenprune_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("test_checks.py", "recorded_stops.py"):
        shutil.copy(TESTS / name, tmp_path / name)
    (tmp_path / "tokenprune_zoo" / "latest.py").write_text(METHOD, encoding="utf-8")
    init = tmp_path / "tokenprune_zoo" / "__init__.py"
    line = "from tokenprune_zoo.mustdrop import MustDrop as MustDrop\n"
    text = init.read_text(encoding="utf-8")
    assert line in text
    init.write_text(text.replace(line, "from tokenprune_zoo.latest import Latest as Latest\n" + line), encoding="utf-8")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "latest",
            "--noconftest",
            "test_checks.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) > 40, run.stdout


@pytest.mark.parametrize("method", tokenprune_zoo.METHODS, ids=lambda method: method.spec.name)
def test_a_method_is_one_file_and_one_line(method: type) -> None:
    module = method.__module__.rsplit(".", 1)[1]
    assert method.spec.name.replace("-", "_") == module  # type: ignore[attr-defined]
    lines = (PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if module in line.split(".")[-1].split()] == [
        f"from tokenprune_zoo.{module} import {method.__name__} as {method.__name__}"
    ]
