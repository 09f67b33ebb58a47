"""What only Linux has is not needed to import tokenprune, to look around, to explain, or to sweep in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import environment
from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import default_host
from tokenprune.sweep import SweepStore
from tokenprune.sweep.config.schema import default_config
from tokenprune.sweep.executors import local as pool
from tokenprune.tracking import server

LINUX = ("fcntl", "resource", "pwd", "grp", "termios")
IMPORTS = """
import importlib, json, pkgutil, sys, warnings
import psutil  # it has a module of its own for each system; the one of Linux needs what is hidden here
warnings.simplefilter("ignore")
names = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(names))  # an import of a module that is None fails
import tokenprune
for module in pkgutil.walk_packages(tokenprune.__path__, "tokenprune."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from tokenprune.cli.app import main
print(main(["list", "trackers"]))
"""
COMMANDS = """
import builtins, json, sys
names, picture, directory = json.loads(sys.argv[1]), *sys.argv[2:]
whole = builtins.__import__

def ours_fail(name, globals=None, *more, **named):  # models of other packages need them here
    if name.partition(".")[0] in names and (globals or {}).get("__name__", "").startswith("tokenprune"):
        raise ImportError(f"no module {name} here")
    return whole(name, globals, *more, **named)

builtins.__import__ = ours_fail
from tokenprune.cli.app import main
small = ["--pruners", "none,grid", "--budgets", "25%", "--limit", "2", "--executor", "inline", "--no-tracker"]
print(
    main(["explain", "--image", picture, "--question", "which?", "--pruners", "grid", "--out", directory + "/out.png"]),
    main(["sweep", *small, "--out", directory + "/run", "--device", "cpu", "--quiet"]),
    main(["runs", "status", directory + "/run"]),
)
"""


def said(code: str, *arguments: str | Path) -> str:
    """The last line that a process of its own prints."""
    words = [sys.executable, "-c", code, json.dumps(LINUX), *map(str, arguments)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.thorough
def test_every_module_is_imported_without_what_only_linux_has() -> None:
    assert said(IMPORTS) == "0"


@pytest.mark.slow
def test_explain_and_a_sweep_in_one_process_need_nothing_that_only_linux_has(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (56, 56), "red").save(picture)
    assert said(COMMANDS, picture, tmp_path) == "0 0 0"
    assert (tmp_path / "out.png").is_file()
    assert (tmp_path / "run" / "report" / "report.html").is_file()


def test_worker_processes_are_refused_where_pipes_cannot_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_POSIX", False)
    with pytest.raises(PrerequisiteError, match="runs on Linux and macOS only") as caught:
        pool.LocalExecutor(SweepStore(tmp_path), default_config(), default_host(), pool.LocalOptions())
    assert "--executor inline" in caught.value.hint


def test_a_server_is_ended_where_there_are_no_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_POSIX", False)
    monkeypatch.delattr(os, "killpg")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server._end(process)
    assert process.returncode is not None
