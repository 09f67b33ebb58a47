"""Run the command line in this process, or as its own process with stand-in plugins."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.plugins import ALLOWED, LOAD
from tokenprune.cli.app import main

TOY = Path(__file__).resolve().parent.parent / "sweep" / "toy"


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


class Commands:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Ran:
        self._capsys.readouterr()
        code = main(words)
        captured = self._capsys.readouterr()
        return Ran(code, captured.out, captured.err)


def inside(*words: str | Path, **changes: str) -> Ran:
    """Run a command in this process with the toy plugin, for fixtures that several tests share.

    A process of its own takes ten seconds to start; use `process` only if the start itself is what a test proves.
    """
    out, err = io.StringIO(), io.StringIO()
    wanted = environment(**changes)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.syspath_prepend(TOY)
        for name in set(os.environ) - set(wanted):
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        code = main([str(word) for word in words])
    return Ran(code, out.getvalue(), err.getvalue())


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command's own process: offline, single threaded, with the toy plugin, fixed width."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "TOKENPRUNE_"))}
    paths = [str(TOY), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        LOAD: ALLOWED,
        "COLUMNS": "80",
        **changes,
    }


def process(*words: str | Path, **changes: str) -> Ran:
    """Run a command as its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "tokenprune", *words],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
