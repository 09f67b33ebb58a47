"""A sweep: a grid of (model, task, pruner, budget, seed), run cell by cell, with the directory as the truth.

Its names load on first use: the host loads `tokenprune.sweep.executors.executor` for every command, also for `--help`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
