"""`tokenprune calibrate`: find the options of a pruner that depend on the model, and write them for sweep files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.budget import Budget
from tokenprune.cli.output import Session, session_of
from tokenprune.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from tokenprune.evaluation.calibration import PromptCalibrator
    from tokenprune.registry import PrunerSpec


class Account(StrEnum):
    """What the budgets count."""

    KEPT = "kept"
    AVERAGE = "average"


def calibrate(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A pruner's name.")],
    budget: Annotated[
        list[str] | None, typer.Option(help="`25%`, `0.25` or `64`; may be repeated. Without: 25%.")
    ] = None,
    account: Annotated[Account, typer.Option(help="What the budgets count.")] = Account.KEPT,
    model: Annotated[str, typer.Option(help="Model: short name, directory or hub name.")] = "scenes",
    task: Annotated[str, typer.Option(help="Task with the samples.")] = "scenes",
    limit: Annotated[int, typer.Option(help="Samples, the last ones of the task (sweeps take the first).", min=1)] = 16,
    option: Annotated[list[str] | None, typer.Option(help="Another option of the pruner, `KEY=VALUE`.")] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="YAML file to write.")] = Path("tables.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the options of a pruner that depend on the model, from its prefills of a few samples.

    The file holds an entry for the key `pruners` of a sweep file; or say `{name: NAME, from: FILE}` there.

    Example: tokenprune calibrate fitprune --budget 64 --budget 25% --out tables.yaml
    """
    session = session_of(context)
    spec = session.host.pruners.get(name)
    if not spec.calibrates:
        able = ", ".join(f"`{other.name}`" for other in session.host.pruners if other.calibrates) or "none"
        raise IncompatibleError(f"`{name}` has no options to calibrate", hint=f"pruners that have some: {able}")
    options = spec.validate(parse_options(option or []))
    budgets = [Budget.parse(text, account=account.value) for text in budget or ["25%"]]
    if not out.parent.is_dir():
        raise ConfigError(f"cannot write `{out}`: its folder does not exist", hint="give --out a folder that exists")
    calibrator = _calibrator(session, model, task, limit, device)
    found = _found(spec, options, calibrator, budgets)
    entry = {"name": name, "label": f"{name} (calibrated)", "options": {**options, **found}}
    text = _yaml({"pruners": [entry]})
    command = shlex.join(["tokenprune", *session.arguments])
    try:
        out.write_text(f"# {command}\n{text}", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write `{out}`: {error.strerror}", hint="give --out a file that can be written"
        ) from error
    if as_json:
        session.output.json({"file": str(out), "account": account.value, "pruners": [entry]})
    else:
        session.output.text(text.rstrip("\n"))
    session.output.say(f"file: {out}; in a sweep file: `pruners: [{{name: {name}, from: {out.name}}}]`")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts, values as in YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            options[key.strip()] = YAML(typ="safe").load(value)
        except YAMLError:
            equals = ""
        if not equals or not key.strip():
            raise ConfigError(f"not an option: `{pair}`", hint="for example `--option eta=0.001`")
    return options


def _calibrator(session: Session, model: str, task: str, limit: int, device: str) -> PromptCalibrator:
    """The model and the last samples of the task."""
    session.host.tasks.get(task)  # a wrong name is told before a model is loaded
    from tokenprune.checkpoints import load_model
    from tokenprune.evaluation.calibration import PromptCalibrator
    from tokenprune.evaluation.model_cache import Bench

    samples = session.host.tasks.get(task).build()
    loaded = load_model(model, device=device, host=session.host)
    bench = Bench(session.host, device)
    chosen = range(max(0, len(samples) - limit), len(samples))
    return PromptCalibrator.of(loaded, [bench.encode(loaded, [samples[index]]) for index in chosen], session.host)


def _found(
    spec: PrunerSpec, options: Mapping[str, Any], calibrator: PromptCalibrator, budgets: Sequence[Budget]
) -> dict[str, Any]:
    """What the calibration of each budget in turn gives; each sees what was found before it."""
    found: dict[str, Any] = {}
    for budget in budgets:
        found |= spec.build({**options, **found}).calibrate(calibrator, budget)
    return found


def _yaml(data: Mapping[str, Any]) -> str:
    """Mappings as blocks, lists in one line."""
    from io import StringIO

    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = None
    writer.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    writer.dump(data, text)
    return text.getvalue()
