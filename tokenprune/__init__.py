"""tokenprune: training-free visual-token pruning for vision-language models, compared honestly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tokenprune.budget import Budget
from tokenprune.hookspecs import hookimpl
from tokenprune.plugins import load_host

if TYPE_CHECKING:
    from tokenprune.engine import pruned
    from tokenprune.pruner import PruneRecord

__version__ = "0.1.0"
__all__ = ["Budget", "PruneRecord", "__version__", "hookimpl", "load_host", "pruned"]

#: Names that need torch are imported on first use, so that `tokenprune --help` stays fast.
_LAZY = {"pruned": "tokenprune.engine", "PruneRecord": "tokenprune.pruner"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `tokenprune` has no attribute `{name}`")
