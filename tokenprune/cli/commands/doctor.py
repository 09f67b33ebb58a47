"""`tokenprune doctor`: versions, devices, models, plugins and the tracking store, for reports of trouble."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tokenprune import __version__
from tokenprune.cli.options import AsJson
from tokenprune.cli.output import Invocation, invocation_of, table
from tokenprune.errors import ExitCode

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "mlflow", "pluggy", "typer", "rich")

Verdict = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Verdict
    text: str


def doctor(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", help="Examine a model in its place: short name, directory or hub name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine this installation, or a model; exits with 4 if something is bad.

    Example: tokenprune doctor --model llava-hf/llava-1.5-7b-hf
    """
    invocation = invocation_of(context)
    if model is not None:
        findings = _one_model(model, invocation)
    else:
        findings = [*_versions(), *_internals(), *_devices(), *_models(invocation), *_plugins(invocation), _store()]
    if as_json:
        invocation.output.json({"findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        rows = [[finding.subject, finding.verdict, finding.text] for finding in findings]
        invocation.output.show(table(["subject", "verdict", "what was found"], rows))
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(ExitCode.VERDICT)


def _versions() -> list[Finding]:
    findings = [
        Finding("tokenprune", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    for package in _PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            findings.append(Finding(package, "bad", f"not installed in {sys.prefix}"))
            continue
        findings.append(_transformers(version) if package == "transformers" else Finding(package, "ok", version))
    return [*findings, _torchvision()]


def _torchvision() -> Finding:
    """Whether it is there and works beside the installed torch."""
    from tokenprune.checkpoints.torchvision_build import torchvision_hint, torchvision_problem

    try:
        problem = torchvision_problem()
        if problem is None:
            return Finding("torchvision", "ok", metadata.version("torchvision"))
        return Finding("torchvision", "bad", f"{problem}; {torchvision_hint()}")
    except metadata.PackageNotFoundError:
        return Finding("torchvision", "bad", "it needs torch, which is not installed")


def _transformers(version: str) -> Finding:
    """The one package whose insides the engine uses, beside the releases that were tested."""
    from tokenprune.families.supported import is_tested, tested_range

    return Finding("transformers", "ok" if is_tested(version) else "note", f"{version}; tested: {tested_range()}")


def _internals() -> list[Finding]:
    """What the engine uses inside transformers, probed as at the start of every session."""
    try:
        from tokenprune.engine.patch.internals import INTERNALS
    except ImportError as error:
        return [Finding("engine", "bad", f"it cannot be imported: {error}")]
    return [
        Finding(f"engine: {each.name}", "bad" if problem else "ok", problem or f"{each.used_for}: as known")
        for each in INTERNALS
        for problem in (each.problem(),)
    ]


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("devices", "bad", f"torch cannot be imported: {error}")]
    findings = [Finding("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        return [*findings, Finding("gpu", "note", "none; sweeps run on the CPU")]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"cuda:{index}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"))
    return findings


def _models(invocation: Invocation) -> list[Finding]:
    from tokenprune.checkpoints.loading import model_path

    findings = []
    for spec in invocation.host.models:
        path = Path(model_path(spec.name, invocation.host))
        weights = sorted(path.glob("*.safetensors"))
        if weights:
            size = sum(file.stat().st_size for file in weights) / 2**20
            findings.append(Finding(f"model {spec.name}", "ok", f"{size:.1f} MiB of weights"))
        elif path.is_absolute():
            findings.append(Finding(f"model {spec.name}", "bad", f"no weights in {path}"))
        else:
            findings.append(Finding(f"model {spec.name}", "note", f"comes from the hub: {path}"))
    return findings


def _one_model(name: str, invocation: Invocation) -> list[Finding]:
    """What can be pruned in a model, and what is missing; only its config is read."""
    from tokenprune.checkpoints.examine import examine

    found = examine(name, invocation.host)
    findings = [Finding("model", "ok", f"{found.model}, model type `{found.model_type}`")]
    if found.family is not None:
        findings.append(Finding("family", "ok", f"{found.family}, described by {found.owner}"))
    elif found.parts:
        findings.append(Finding("family", "note", "not described: discovered, every run of placeholders is one image"))
    else:
        findings.append(Finding("family", "bad", "not described, and not discovered"))
    for part, (path, kind) in found.parts.items():
        findings.append(Finding(part, "bad" if kind is None else "ok", f"{path}: {kind or 'missing'}"))
    present = [f"{attribute} = {token}" for attribute, token in found.placeholders.items() if token is not None]
    absent = [attribute for attribute, token in found.placeholders.items() if token is None]
    if found.placeholders:
        findings.append(Finding("placeholders", "ok" if present else "bad", ", ".join(present) or "none of these"))
    findings += [Finding("placeholder", "note", f"the config has no {attribute}") for attribute in absent]
    if found.layer_types:
        counts = ", ".join(f"{count} x {kind}" for kind, count in found.layer_types.items())
        findings.append(Finding("layer types", "ok", counts))
    findings.append(Finding("videos", "ok" if found.video else "note", "yes" if found.video else "no"))
    findings.append(
        Finding(
            "processor", "bad" if found.processor is None else "ok", found.processor or f"{found.processor_problem}"
        )
    )
    if found.problem is not None:
        return [*findings, Finding("sites", "bad", found.problem)]
    return findings + [
        Finding(f"site {kind}", "note" if reason else "ok", reason or "can be cut")
        for kind, reason in found.refusals.items()
    ]


def _plugins(invocation: Invocation) -> list[Finding]:
    verdicts: dict[str, Verdict] = {"loaded": "ok", "blocked": "note", "partial": "bad", "failed": "bad"}
    return [
        Finding(
            f"plugin {report.name}",
            verdicts[report.outcome],
            f"{report.outcome} from {report.distribution} {report.version}".strip()
            + (f": {report.reason}" if report.reason else ""),
        )
        for report in invocation.host.reports
    ]


def _store() -> Finding:
    uri: Any = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return Finding("tracking store", "note", f"MLFLOW_TRACKING_URI is set: every sweep goes to {uri}")
    return Finding("tracking store", "ok", "one sqlite file in each sweep directory")
