"""Options that several commands take: how they are declared, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.errors import ConfigError

if TYPE_CHECKING:
    from tokenprune.sweep import SweepConfig


class Account(StrEnum):
    """What a budget counts."""

    KEPT = "kept"
    AVERAGE = "average"


class ProgressForm(StrEnum):
    """How a sweep shows its progress on stderr."""

    AUTO = "auto"
    LIVE = "live"
    LINES = "lines"
    JSON = "json"
    NONE = "none"


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SweepDirectory = Annotated[Path, typer.Argument(help="Sweep directory.")]
PrunerName = Annotated[str, typer.Argument(help="A pruner's name.")]
PrunerOptions = Annotated[
    list[str] | None, typer.Option("--option", "--options", help="An option of the pruner, `NAME=VALUE`; repeatable.")
]
ModelName = Annotated[str, typer.Option(help="Model: short name, directory or hub name.")]

ExecutorName = Annotated[str, typer.Option(help="How cells are run: `tokenprune list executors`.")]
ExecutorOptions = Annotated[
    list[str] | None, typer.Option(help="`NAME=VALUE` for the executor, for example `address=auto`; repeatable.")
]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes of this machine, in place of one per device.", min=1)
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--tracker", help="Where the sweep is logged: `tokenprune list trackers`; repeatable."),
]
NoTracker = Annotated[
    bool, typer.Option("--no-tracker", help="Log it nowhere, like `--tracker none`; the report is written.")
]
Rerun = Annotated[
    bool, typer.Option("--rerun", help="Run cells again that were run with other versions of torch, a plugin, ...")
]
Progress = Annotated[ProgressForm, typer.Option(help="How progress is shown on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def comma_list(option: str, text: str) -> list[str]:
    """The entries of a comma list.

    Raises:
        ConfigError: An entry is empty.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise ConfigError(f"{option} has an empty entry: `{text}`", hint=f"for example `{option} first,second`")
    return entries


def chosen_pruners(config: SweepConfig, text: str) -> list[dict[str, Any]]:
    """The pruners of `--pruners`: the file's own entries of these names or labels, others with their defaults.

    Raises:
        ConfigError: An entry of the list is empty.
    """
    chosen: list[dict[str, Any]] = []
    for name in comma_list("--pruners", text):
        listed = [
            entry.model_dump()
            for entry in config.pruners
            if name in (entry.title, entry.name, entry.title.partition("[")[0])
        ]
        chosen += listed or [{"name": name}]
    return chosen


def key_values(option: str, words: Sequence[str] | None, *, example: str, as_typed: bool = False) -> dict[str, Any]:
    """`NAME=VALUE` words as a mapping; values are read as in a sweep file (YAML).

    Args:
        option: The option that takes the words, for the message.
        words: What the user typed; `None` is nothing.
        example: A right word, for the hint.
        as_typed: Leave the values as text, for options whose schema reads them: `007` may be a name.

    Raises:
        ConfigError: A word has another form.
    """
    if not words:
        return {}
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            values[name.strip()] = text if as_typed else YAML(typ="safe").load(text)
        except YAMLError:
            equals = ""
        if not (equals and name.strip()):
            raise ConfigError(f"{option} must be `NAME=VALUE`, got `{word}`", hint=f"for example `{option} {example}`")
    return values


def executor_options(words: Sequence[str] | None, workers: int | None = None) -> dict[str, Any]:
    """The keywords of an executor that `--executor-option` and `--workers` give.

    Raises:
        ConfigError: A word is not `NAME=VALUE`.
    """
    options = key_values("--executor-option", words, example="address=auto", as_typed=True)
    named = {name.replace("-", "_"): value for name, value in options.items()}
    return named if workers is None else {"workers": workers, **named}


def sweep_changes(
    *,
    budgets: str = "",
    model: str = "",
    task: str = "",
    device: str = "",
    limit: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """What options change in a sweep file: its top-level keys with their new values.

    Raises:
        ConfigError: An entry of a comma list is empty.
    """
    changes = {
        "budgets": comma_list("--budgets", budgets) if budgets else None,
        "models": [model] if model else None,
        "tasks": [task] if task else None,
        "device": comma_list("--device", device) if device else None,
        "limit": limit,
        "batch_size": batch_size,
    }
    return {key: value for key, value in changes.items() if value is not None}


def tracker_change(names: Sequence[str] | None, none: bool) -> dict[str, Any]:
    """What `--tracker` and `--no-tracker` change in a sweep file; empty if the user gave neither.

    Raises:
        ConfigError: The user gave both.
    """
    if names and none:
        raise ConfigError("--tracker and --no-tracker exclude each other", hint="leave one of them out")
    return {"trackers": list(names or ())} if names or none else {}
