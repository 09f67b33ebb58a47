"""The tested releases of transformers, and the error for internals that differ from what the engine expects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from packaging.version import Version

from tokenprune.errors import IncompatibleError

#: Oldest and newest release of transformers with which the families' proofs and the matrix ran (`make range`).
TESTED = ("5.20.0", "5.24.0")

#: Names of the KV cache among the arguments of models and layers: since 5.24, and before.
CACHE_NAMES = ("cache", "past_key_values")


#: First release in which `prefill_chunk_size` keeps the pictures of the prompt.
PIECES_WITH_PICTURES = "5.23.0"

#: First release in which `prefill_chunk_size` splits the new turn only, and does not read the conversation again.
PIECES_OF_A_TURN = "5.21.0"


def older_than(release: str) -> bool:
    """Whether the installed transformers is older than a release."""
    return Version(metadata.version("transformers")) < Version(release)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, under the name of any tested release, or `None`."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def tested_range() -> str:
    """The tested releases of transformers, as a phrase."""
    return f"{TESTED[0]} to {TESTED[1]}"


def is_tested(version: str) -> bool:
    """Whether a release of transformers is in the tested range."""
    return Version(TESTED[0]) <= Version(version) <= Version(TESTED[1])


class UnknownInternalError(IncompatibleError):
    """An internal of transformers differs from what the engine expects; names the installed and tested releases.

    Args:
        found: What is missing or different, as a clause.
        otherwise: What may help besides another release, as a clause.
    """

    def __init__(self, found: str, *, otherwise: str = "") -> None:
        hint = f"install a tested release (`pip install transformers=={TESTED[1]}`); `tokenprune doctor` examines it"
        super().__init__(
            f"{found}; transformers {metadata.version('transformers')} is installed, tested is {tested_range()}",
            hint=f"{hint}; or {otherwise}" if otherwise else hint,
        )
        self.found = found


def internal(module: str, name: str) -> Any:
    """An internal of transformers, which is not public API.

    Args:
        module: Name of the module.
        name: Name in the module.

    Raises:
        UnknownInternalError: The installed transformers has no such part.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownInternalError(f"transformers has no `{module}.{name}`") from error
