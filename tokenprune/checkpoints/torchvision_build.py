"""Check that torchvision works with the installed torch: most processors of transformers need it."""

from __future__ import annotations

import importlib
from importlib import metadata

from packaging.version import Version

#: Torchvision 0.(N + 15).p is built for torch 2.N.p.
_AHEAD = 15


def partner(torch_version: str) -> str:
    """The release of torchvision for a release of torch 2."""
    version = Version(torch_version)
    return f"0.{version.minor + _AHEAD}.{version.micro}"


def torchvision_problem() -> str | None:
    """Why torchvision cannot be used (missing, or built for another torch), or `None` if it can."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return "torchvision is not installed"
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - a build for another torch may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"torchvision {version} does not work with torch {metadata.version('torch')} ({reason})"
    return None


def torchvision_hint() -> str:
    """The hint that names the torchvision release for the installed torch."""
    torch = Version(metadata.version("torch")).base_version
    pair = f"torch=={torch} torchvision=={partner(torch)}"
    return f"install the matching pair from one index: `pip install {pair}`"
