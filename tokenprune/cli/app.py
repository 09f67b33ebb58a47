"""The Typer application: our own commands, those of plugins, and the one place that prints errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from tokenprune import __version__
from tokenprune.cli.commands import (
    budget,
    calibrate,
    check,
    doctor,
    explain,
    families,
    lens,
    listing,
    plugins,
    report,
    runs,
    show,
    sweep,
    ui,
)
from tokenprune.cli.output import Invocation, Output
from tokenprune.errors import ExitCode, TokenPruneError
from tokenprune.plugins import DEFAULT_PLUGINS, DISABLE_VARIABLE, Host, PluginReport, load_host

PROGRAM = "tokenprune"

_PANELS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Compare": {
        "sweep": sweep.sweep,
        "report": report.report,
        "ui": ui.ui,
        "budget": budget.budget,
        "explain": explain.explain,
        "lens": lens.lens,
        "calibrate": calibrate.calibrate,
    },
    "Look around": {
        "check": check.check,
        "list": listing.list_kinds,
        "show": show.show,
        "families": families.families,
        "plugins": plugins.plugins,
        "doctor": doctor.doctor,
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `ExitCode`); a user's mistake never shows a traceback.

    Args:
        arguments: Words after the program's name; `None` takes those of the process.
    """
    output = Output()
    words = tuple(sys.argv[1:] if arguments is None else arguments)
    try:
        host = load_host()
        command = typer.main.get_command(build_app(host))
        outcome = command.main(
            args=list(words),
            prog_name=PROGRAM,
            standalone_mode=False,  # errors are printed here, in one style
            obj=Invocation(host, output, words),
        )
    except TokenPruneError as error:
        output.error(error.message, error.hint)
        return error.exit_code
    except TyperException as error:
        output.error(_usage_message(error), _usage_hint(error))
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        output.error("interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost boundary; a bug is shown in full
        if _was_interrupted(error):
            output.error("interrupted")
            return ExitCode.INTERRUPTED
        output.talk.out(traceback.format_exc(), highlight=False)
        output.error(
            f"unexpected {type(error).__name__}: {error}",
            "this is a bug of tokenprune or of a plugin; report it with the text above and `tokenprune doctor`",
        )
        return ExitCode.UNEXPECTED
    return outcome if isinstance(outcome, int) else ExitCode.OK


def _was_interrupted(error: BaseException) -> bool:
    """Whether the cause is a Ctrl-C in the middle of an import, which libraries turn into an error of their own."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, KeyboardInterrupt):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def build_app(host: Host) -> typer.Typer:
    """The application with our own commands and those of the host's plugins."""
    app = typer.Typer(
        name=PROGRAM,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_top)
    app.add_typer(runs.app, name="runs", rich_help_panel="Compare")
    for panel, commands in _PANELS.items():
        for name, command in commands.items():
            app.command(name, rich_help_panel=panel)(command)
    host.add_commands(app)
    return app


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Compare training-free visual-token pruners for vision-language models."""
    invocation = context.find_object(Invocation)
    if invocation is None:
        return
    if version:
        invocation.output.text(__version__)
        raise typer.Exit(ExitCode.OK)
    if context.invoked_subcommand is None:
        invocation.output.text(context.get_help())
        raise typer.Exit(ExitCode.OK)
    if context.invoked_subcommand not in ("plugins", "doctor"):  # they show failures themselves
        for failure in invocation.host.failures():
            invocation.output.warning(_failure_line(failure), _failure_hint(failure))


def _failure_line(failure: PluginReport) -> str:
    title = f"{failure.distribution} {failure.version}".strip()
    outcome = "was not loaded" if failure.outcome == "failed" else "was loaded in part"
    return f"plugin `{failure.name}` ({title}) {outcome}: {failure.reason}"


def _failure_hint(failure: PluginReport) -> str:
    if failure.name in DEFAULT_PLUGINS:
        return "install tokenprune-vlm again; `tokenprune plugins --verbose` shows the traceback"
    return (
        "`tokenprune plugins --verbose` shows the traceback; "
        f"{DISABLE_VARIABLE}={failure.distribution} switches the plugin off"
    )


def _usage_message(error: TyperException) -> str:
    """Typer's sentence in our form: lower case, no full stop."""
    text = error.format_message().strip().rstrip(".").replace("Value error, ", "")  # pydantic's prefix
    return text[:1].lower() + text[1:]


def _usage_hint(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path if context is not None else PROGRAM} --help` shows what is allowed"
