"""The baselines of every comparison: no pruning, random choice, a grid, average pooling, down-sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenprune.baselines.avgpool import AveragePooling
from tokenprune.baselines.downsample import DownSampling
from tokenprune.baselines.grid import GridPruning
from tokenprune.baselines.none import NoPruning
from tokenprune.baselines.random import RandomPruning
from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenprune.registry import PrunerSpec


@hookimpl
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Register the baselines."""
    for baseline in (NoPruning, RandomPruning, GridPruning, AveragePooling, DownSampling):
        register(baseline.spec)
