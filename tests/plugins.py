"""The plugins that tests see: the project's own and the tests' stand-ins, whatever else is installed."""

from __future__ import annotations

LOAD = "TOKENPRUNE_LOAD_PLUGINS"
"""Variable that holds the distributions whose plugins are loaded; the tests set it before they start."""

OWN = ("tokenprune-iwp", "tokenprune-zoo")
STAND_INS = ("tokenprune-toy", "tokenprune-bad", "tokenprune-deepseek-vl")
"""Distributions that tests put on the path for a while."""

ALLOWED = ",".join((*OWN, *STAND_INS))

CORE = ("tokenprune.baselines", "tokenprune.families", "tokenprune.checkpoints", "tokenprune.sweep.executors.executor")
"""What a host must load for a sweep without trackers, reports and tasks."""
