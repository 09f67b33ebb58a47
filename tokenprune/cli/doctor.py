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
from tokenprune.cli.output import Session, session_of, table
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine this installation; exits with 1 where something is bad.

    Example: tokenprune doctor --json
    """
    session = session_of(context)
    findings = [*_versions(), *_devices(), *_models(session), *_plugins(session), _store()]
    if as_json:
        session.output.json({"findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        rows = [[finding.subject, finding.verdict, finding.text] for finding in findings]
        session.output.show(table(["subject", "verdict", "what was found"], rows))
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(ExitCode.UNEXPECTED)


def _versions() -> list[Finding]:
    findings = [
        Finding("tokenprune", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    for package in _PACKAGES:
        try:
            findings.append(Finding(package, "ok", metadata.version(package)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(package, "bad", f"not installed in {sys.prefix}"))
    return findings


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


def _models(session: Session) -> list[Finding]:
    from tokenprune.models.loading import model_path

    findings = []
    for spec in session.host.models:
        path = Path(model_path(spec.name, session.host))
        weights = sorted(path.glob("*.safetensors"))
        if weights:
            size = sum(file.stat().st_size for file in weights) / 2**20
            findings.append(Finding(f"model {spec.name}", "ok", f"{size:.1f} MiB of weights"))
        elif path.is_absolute():
            findings.append(Finding(f"model {spec.name}", "bad", f"no weights in {path}"))
        else:
            findings.append(Finding(f"model {spec.name}", "note", f"comes from the hub: {path}"))
    return findings


def _plugins(session: Session) -> list[Finding]:
    verdicts: dict[str, Verdict] = {"loaded": "ok", "blocked": "note", "partial": "bad", "failed": "bad"}
    return [
        Finding(
            f"plugin {report.name}",
            verdicts[report.outcome],
            f"{report.outcome} from {report.distribution} {report.version}".strip()
            + (f": {report.reason}" if report.reason else ""),
        )
        for report in session.host.reports
    ]


def _store() -> Finding:
    uri: Any = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return Finding("tracking store", "note", f"MLFLOW_TRACKING_URI is set: every sweep goes to {uri}")
    return Finding("tracking store", "ok", "one sqlite file in each sweep directory")
