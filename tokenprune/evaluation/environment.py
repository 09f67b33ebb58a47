"""What a cell was run with: versions, device and settings that may change its answers or its cost.

Every result holds its own block `environment`, written by the worker that ran it. A cell's id does not change with the
versions of torch and transformers, so an upgrade does not lose a sweep. What differs between the results of a sweep is
told when it continues, and in every report.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenprune
from tokenprune.plugins import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    import torch

OWN = "tokenprune"
"""Owner of what ships with the framework. On the package index another project has this name."""

PACKAGES = (OWN, "torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow")
"""What every answer goes through."""

_DIGITS = 8
_HEADLINE = ("torch", "transformers", OWN)


@dataclass(frozen=True, slots=True)
class Environment:
    """What a worker ran a cell with.

    Args:
        python: Version of Python.
        platform: System, architecture and C library.
        processor: Name of the processor.
        cpus: Processors of the machine.
        device: Type of the torch device: `cpu`, `cuda`.
        device_name: Name of the GPU; empty on the CPU.
        capability: Vector instructions that torch uses on the CPU, or the compute capability of the GPU.
        cuda: CUDA release that torch was built for, where the device is a GPU.
        threads: CPU threads of torch.
        attention: Attention kernel of the model.
        dtype: Floating type of the model's weights.
        matmul_precision: Torch's precision of float32 matrix products.
        packages: Version of each of `PACKAGES`; of tokenprune with a hash of its source.
        plugins: The same of the distributions that the pruner and the family come from.
    """

    python: str
    platform: str
    processor: str
    cpus: int
    device: str
    device_name: str
    capability: str
    cuda: str
    threads: int
    attention: str
    dtype: str
    matmul_precision: str
    packages: Mapping[str, str]
    plugins: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


class Installed:
    """Versions of distributions on this machine; each is looked up once."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def __call__(self, distribution: str) -> str:
        """Version of a distribution, or an empty text.

        Of tokenprune and of plugins it has a hash of the source (`0.1.0 (1a2b3c4d)`), because two states of a checkout
        have one version.
        """
        if distribution not in self._found:
            version, source = version_of(distribution), _source_digest(distribution)
            self._found[distribution] = f"{version} ({source})".strip() if source else version
        return self._found[distribution]


def environment_of(
    device: torch.device, attention: str, dtype: str, owners: Iterable[str], installed: Installed
) -> Environment:
    """The environment of this process.

    Args:
        device: Where the model is.
        attention: Its attention kernel.
        dtype: Its floating type.
        owners: Distributions of the pruner and the family.
        installed: Looks versions up.
    """
    import torch

    gpu = device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        platform=" ".join(filter(None, (platform.system(), platform.machine(), "-".join(platform.libc_ver())))),
        processor=_processor(),
        cpus=os.cpu_count() or 1,
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if gpu else "",
        capability=_capability(device),
        cuda=str(torch.version.cuda or "") if gpu else "",
        threads=torch.get_num_threads(),
        attention=attention,
        dtype=dtype,
        matmul_precision=torch.get_float32_matmul_precision(),
        packages={name: installed(name) for name in PACKAGES},
        plugins={name: installed(name) for name in sorted({*owners} - {OWN})},
    )


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or an empty text; of tokenprune that of the code that runs."""
    if distribution == OWN:
        return tokenprune.__version__
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def facts_of(block: object) -> dict[str, str]:
    """A block `environment` as flat names and texts, without what is empty; nothing for a result without a block."""
    facts: dict[str, str] = {}
    for name, value in block.items() if isinstance(block, Mapping) else ():
        entries = value if isinstance(value, Mapping) else {str(name).replace("_", " "): value}
        facts.update({str(key): str(each) for key, each in entries.items() if each not in ("", None)})
    return {name: facts[name] for name in sorted(facts, key=_rank)}


def versions_in(block: Mapping[str, Any]) -> dict[str, str]:
    """The versions that a block says, of Python, packages and plugins."""
    parts = [block[part] for part in ("packages", "plugins") if isinstance(block.get(part), Mapping)]
    found = {"python": block.get("python", ""), **{name: version for part in parts for name, version in part.items()}}
    return {name: str(found[name]) for name in sorted(found, key=_rank)}


def versions_here(names: Iterable[str], installed: Installed) -> dict[str, str]:
    """The versions of the same on this machine."""
    return {name: platform.python_version() if name == "python" else installed(name) for name in names}


def place_of(block: object) -> str:
    """Processor and main versions, for a line that says where something was measured; empty without a block."""
    facts = facts_of(block)
    named = [f"{name} {facts[name]}" for name in _HEADLINE if name in facts]
    return ", ".join([*filter(None, [facts.get("processor")]), *named])


def _rank(name: str) -> int:
    """Place of a fact: what most often explains a difference comes first."""
    return PACKAGES.index(name) if name in PACKAGES else len(PACKAGES)


def _capability(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return ".".join(map(str, torch.cuda.get_device_capability(device)))
    return str(torch.backends.cpu.get_cpu_capability())


def _processor() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _source_digest(distribution: str) -> str:
    """Hash of the Python files of a plugin or of tokenprune itself; empty for anything else."""
    digest = hashlib.sha256()
    files = [(path.relative_to(root), path) for root in _roots(distribution) for path in root.rglob("*.py")]
    files += [(Path(path.name), path) for path in _modules(distribution)]
    for name, path in sorted(files):
        digest.update(name.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:_DIGITS] if files else ""


def _roots(distribution: str) -> list[Path]:
    """Folders of the packages that a distribution's plugins are in."""
    return [path.parent for path in _origins(distribution) if path.name == "__init__.py"]


def _modules(distribution: str) -> list[Path]:
    """Single files that are plugins."""
    return [path for path in _origins(distribution) if path.name != "__init__.py"]


def _origins(distribution: str) -> list[Path]:
    if distribution == OWN:
        return [Path(tokenprune.__file__)]
    try:
        points = metadata.distribution(distribution).entry_points
    except metadata.PackageNotFoundError:
        return []
    found = []
    for name in dict.fromkeys(point.module.partition(".")[0] for point in points if point.group == ENTRY_POINT_GROUP):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin))
    return found
