"""IWP for tokenprune: prune to a subset of the implicit weight's rank-1 updates."""

from __future__ import annotations

from collections.abc import Callable

import tokenprune
from tokenprune.registry import PrunerSpec
from tokenprune_iwp.exact import IwpExact
from tokenprune_iwp.iwp import Iwp
from tokenprune_iwp.oracle import Oracle

__version__ = "0.1.0"
__all__ = ["Iwp", "IwpExact", "Oracle", "register_pruners"]


@tokenprune.hookimpl
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Add `iwp`, `iwp-exact` and `oracle`."""
    for pruner in (Iwp, IwpExact, Oracle):
        register(pruner.spec)
