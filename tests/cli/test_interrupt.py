"""Ctrl-C in a terminal, under every executor: no worker stays behind, and the printed command continues the sweep."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import environment, inside
from tests.processes import DEADLINE_S, alive, heeding, wait_for


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(("--executor", "inline"), signal.SIGINT, id="inline", marks=pytest.mark.thorough),
        pytest.param(("--executor", "local", "--workers", "2"), signal.SIGINT, id="local", marks=pytest.mark.thorough),
        pytest.param(
            ("--executor", "local", "--workers", "2"),
            signal.SIGTERM,
            id="local, as supervisors stop it",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            (*("--executor", "slurm", "--executor-option", "cluster=local"), *("--executor-option", "jobs=2")),
            signal.SIGINT,
            id="slurm",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            ("--executor", "ray", "--executor-option", "actors=2"), signal.SIGINT, id="ray", marks=pytest.mark.slow
        ),
    ],
)
def test_ctrl_c_stops_every_worker_and_the_printed_command_continues(
    tiny_model: Path, tmp_path: Path, words: tuple[str, ...], told: signal.Signals
) -> None:
    gate, directory, path = tmp_path / "gate", tmp_path / "run", tmp_path / "slow.yaml"
    gate.touch()
    path.write_text(
        f"models: [{tiny_model}]\ntasks: [{{name: toy, options: {{size: 2}}}}]\nbudgets: [50%]\nshare: 1\n"
        f"pruners: [none, random, {{name: first, options: {{gate: {gate}}}, label: stuck}}]\n"
        "efficiency: false\nlens: false\noverlays: 0\ndevice: cpu\n"
    )
    typed = ["tokenprune", "sweep", str(path), "--out", str(directory), *words]
    began = subprocess.Popen(
        [sys.executable, "-m", *typed],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heeding,
    )
    try:
        wait_for(lambda: len(list(directory.glob("cells/*/result.json"))) == 2 or began.poll() is not None, "results")
        assert began.poll() is None, began.communicate()
        workers = {json.loads(found.read_text())["worker"]["pid"] for found in directory.glob("cells/*/result.json")}
        if told is signal.SIGINT:
            os.killpg(began.pid, told)  # a terminal sends it to everything that the command started
        else:
            began.send_signal(told)
        _, err = began.communicate(timeout=DEADLINE_S)
    finally:
        began.kill()
    assert began.returncode == 130, err
    assert "2 done, 0 failed, 0 refused, 1 pending" in err
    assert "error: interrupted; what is finished is kept" in err
    assert f"continue with `{shlex.join(typed)}`" in err
    # submitit's stand-in for Slurm runs in the same terminal and tells of Ctrl-C itself; nobody else may
    assert "Traceback" not in err or ("slurm" in words and "submitit/local" in err)
    wait_for(lambda: not any(alive(pid) for pid in workers), "end of the workers")
    gate.unlink()
    again = inside(*typed[1:])
    assert again.code == 0, again.err
    assert "3 done, 0 failed, 0 refused, 0 pending" in again.err
    assert "2 finished before, 1 to run" in again.err


def test_ctrl_c_before_the_sweep_begins_prints_the_command_too(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "slow.yaml"
    path.write_text(f"models: [{tiny_model}]\ntasks: [toy]\npruners: [random]\nbudgets: [50%]\ndevice: cpu\n")
    typed = ["tokenprune", "sweep", str(path), "--out", str(tmp_path / "run")]
    code = (
        "import sys; import tokenprune.sweep.runner as runner; from tokenprune.cli.app import main\n"
        "def interrupted(*arguments): raise KeyboardInterrupt\n"
        "runner.plan_cells = interrupted\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *typed[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert [line for line in done.stderr.splitlines() if line] == [
        "error: interrupted; what is finished is kept",
        f"hint: continue with `{shlex.join(typed)}`",
    ]
