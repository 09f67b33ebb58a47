"""How every command behaves: help, usage errors, colours, streams, exit codes, start-up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

import tokenprune
from tests.cli.commands import Commands, environment, inside
from tokenprune.cli import app as application
from tokenprune.cli.app import build_app
from tokenprune.cli.options import executor_options
from tokenprune.errors import ExitCode, PrerequisiteError
from tokenprune.plugins import Host, load_host
from tokenprune.sweep.executors.slurm_executor import SlurmOptions

COMMANDS = [
    "list",
    "show",
    "plugins",
    "doctor",
    "sweep",
    "report",
    "budget",
    "explain",
    "calibrate",
    "lens",
    "families",
    "check",
    "ui",
]
HEAVY = {"torch", "transformers", "mlflow", "matplotlib", "jinja2", "scipy", "sklearn", "pandas", "ruamel"}


def test_every_command_is_tested_here() -> None:
    app = build_app(load_host(()))
    assert sorted(command.name or "" for command in app.registered_commands) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(run: Commands, command: str) -> None:
    shown = run(command, "--help")
    assert shown.code == 0
    assert f"Example: tokenprune {command}" in " ".join(shown.out.split())
    assert "--json" in shown.out
    assert max(len(line.rstrip()) for line in shown.out.splitlines()) <= 80


def test_no_command_shows_the_help(run: Commands) -> None:
    shown = run()
    assert shown.code == 0
    assert all(command in shown.out for command in COMMANDS)


def test_the_version(run: Commands) -> None:
    assert run("--version").out == f"{tokenprune.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "no such command 'lst'"),
        (["list", "prunners"], "invalid value for 'part'"),
        (["list", "--jsn"], "no such option: --jsn"),
        (["show"], "missing argument"),
        (["sweep", "--limit", "none"], "invalid value for '--limit'"),
        (["sweep", "--limit", "0"], "invalid value for '--limit'"),
        (["explain"], "missing option '--image'"),
        (["report"], "missing argument"),
        (["doctor", "now"], "got unexpected extra argument"),
    ],
)
def test_a_usage_error_is_one_line_and_a_hint_and_exits_with_two(run: Commands, words: list[str], message: str) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.lower().startswith(f"error: {message}"), ran.err
    assert "--help` shows what is allowed" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--json"], ["show", "random"], ["plugins"]])
def test_looking_around_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import json, sys; from tokenprune.cli.app import main; "
        f"code = main({words!r}); print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0
    assert "tokenprune.baselines" in modules
    assert HEAVY & {name.partition(".")[0] for name in modules} == set()


def test_colours_follow_no_color() -> None:
    assert "\x1b[" in inside("show", "nope", FORCE_COLOR="1").err
    assert "\x1b[" not in inside("show", "nope").err
    assert "\x1b[3" not in inside("show", "nope", FORCE_COLOR="1", NO_COLOR="1").err


def test_a_closed_pipe_is_not_a_crash() -> None:
    command = f"{sys.executable} -m tokenprune list --json | head -n 1"
    done = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def _with_command(monkeypatch: pytest.MonkeyPatch, action) -> None:
    """Give the application a command of a plugin's."""

    def add_commands(self: Host, app: typer.Typer) -> None:
        app.command("extra")(action)

    monkeypatch.setattr(application, "load_host", lambda: load_host(()))
    monkeypatch.setattr(Host, "add_commands", add_commands)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PrerequisiteError("no weights", hint="train it"), 2, "error: no weights\n\nhint: train it\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, "error: interrupted\n"),
    ],
)
def test_what_a_command_raises_becomes_a_message_and_a_code(
    run: Commands, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def action() -> None:
        raise error

    _with_command(monkeypatch, action)
    ran = run("extra")
    assert (ran.code, ran.out, ran.err) == (code, "", text)


def test_ctrl_c_in_the_middle_of_an_import_is_no_bug(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def action() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as pressed:
            raise ImportError("numpy is broken") from pressed

    _with_command(monkeypatch, action)
    ran = run("extra")
    assert (ran.code, ran.out, ran.err) == (130, "", "error: interrupted\n")


def test_a_bug_is_shown_in_full_with_its_own_code(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def action() -> None:
        raise ZeroDivisionError("a bug")

    _with_command(monkeypatch, action)
    ran = run("extra")
    assert ran.code == ExitCode.UNEXPECTED
    assert "Traceback" in ran.err
    assert "error: unexpected ZeroDivisionError: a bug" in ran.err


def test_a_plugin_can_add_a_command(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_command(monkeypatch, lambda: typer.echo("from a plugin"))
    assert run("extra").out == "from a plugin\n"
    assert "extra" in run("--help").out


def test_options_of_executors_reach_their_schema_as_they_were_typed() -> None:
    assert executor_options(["partition=007", "jobs=2", "mem-gb=16"]) == {
        "partition": "007",
        "jobs": "2",
        "mem_gb": "16",
    }
    read = SlurmOptions(**executor_options(["partition=007", "jobs=2"]))
    assert (read.partition, read.jobs) == ("007", 2)
