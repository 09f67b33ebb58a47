"""`tokenprune calibrate`: find the options of a pruner that depend on the model, and write them for sweep files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.budget import Budget
from tokenprune.cli.options import Account, AsJson, ModelName, PrunerName, PrunerOptions, key_values
from tokenprune.cli.output import Invocation, invocation_of
from tokenprune.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from tokenprune.evaluation.calibration import PromptCalibrator
    from tokenprune.registry import PrunerSpec


def calibrate(
    context: typer.Context,
    name: PrunerName,
    budget: Annotated[
        list[str] | None, typer.Option(help="`25%`, `0.25` or `64`; may be repeated. Without: 25%.")
    ] = None,
    account: Annotated[Account, typer.Option(help="What the budgets count.")] = Account.KEPT,
    model: ModelName = "scenes",
    task: Annotated[str, typer.Option(help="Task with the samples.")] = "scenes",
    limit: Annotated[int, typer.Option(help="Samples, the last ones of the task (sweeps take the first).", min=1)] = 16,
    option: PrunerOptions = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="YAML file to write.")] = Path("tables.yaml"),
    as_json: AsJson = False,
) -> None:
    """Find the options of a pruner that depend on the model, from its prefills of a few samples.

    The file holds an entry for the key `pruners` of a sweep file; `{name: NAME, from: FILE}` there reads it.

    Example: tokenprune calibrate fitprune --budget 64 --budget 25% --out tables.yaml
    """
    invocation = invocation_of(context)
    spec = invocation.host.pruners.get(name)
    if not spec.calibrates:
        able = ", ".join(f"`{other.name}`" for other in invocation.host.pruners if other.calibrates) or "none"
        raise IncompatibleError(f"`{name}` has no options to calibrate", hint=f"pruners that have some: {able}")
    options = spec.validate(key_values("--option", option, example="eta=0.001"))
    budgets = [Budget.parse(text, account=account.value) for text in budget or ["25%"]]
    if not out.parent.is_dir():
        raise ConfigError(f"cannot write `{out}`: its folder does not exist", hint="give --out a folder that exists")
    calibrator = _calibrator(invocation, model, task, limit, device)
    found = _found(spec, options, calibrator, budgets)
    entry = {"name": name, "label": f"{name} (calibrated)", "options": {**options, **found}}
    text = _yaml({"pruners": [entry]})
    command = shlex.join(["tokenprune", *invocation.arguments])
    try:
        out.write_text(f"# {command}\n{text}", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write `{out}`: {error.strerror}", hint="give --out a file that can be written"
        ) from error
    if as_json:
        invocation.output.json({"file": str(out), "account": account.value, "pruners": [entry]})
    else:
        invocation.output.text(text.rstrip("\n"))
    invocation.output.say(f"file: {out}; in a sweep file: `pruners: [{{name: {name}, from: {out.name}}}]`")


def _calibrator(invocation: Invocation, model: str, task: str, limit: int, device: str) -> PromptCalibrator:
    """The model and the last samples of the task."""
    invocation.host.tasks.get(task)  # a wrong name is an error before a model is loaded
    from tokenprune.checkpoints import load_model
    from tokenprune.evaluation.calibration import PromptCalibrator

    samples = invocation.host.tasks.get(task).build()
    loaded = load_model(model, device=device, host=invocation.host)
    chosen = range(max(0, len(samples) - limit), len(samples))
    return PromptCalibrator.of(loaded, samples, chosen, invocation.host)


def _found(
    spec: PrunerSpec, options: Mapping[str, Any], calibrator: PromptCalibrator, budgets: Sequence[Budget]
) -> dict[str, Any]:
    """The options that the calibrations of the budgets find, one after the other; each gets those found before."""
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
