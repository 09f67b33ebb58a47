"""Whether torchvision works beside the installed torch: most processors of transformers do not load without it."""

from __future__ import annotations

import importlib
from importlib import metadata

from packaging.version import Version

#: Torchvision 0.(N + 15).p is built for torch 2.N.p.
_AHEAD = 15


def partner(torch_version: str) -> str:
    """The release of torchvision that is built for a release of torch 2."""
    version = Version(torch_version)
    return f"0.{version.minor + _AHEAD}.{version.micro}"


def torchvision_problem() -> str | None:
    """Why torchvision cannot be used here, or `None` where it can: it is missing, or built for another torch."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return "torchvision is not installed"
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - a build for another torch fails in ways of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"torchvision {version} does not work with torch {metadata.version('torch')} ({reason})"
    return None


def torchvision_hint() -> str:
    """The pair to install, for the torch that is there."""
    torch = Version(metadata.version("torch")).base_version
    pair = f"torch=={torch} torchvision=={partner(torch)}"
    return f"install the two that belong together, from one index: `pip install {pair}`"
