"""`python -m tests.sweep.run_one CONFIG DIRECTORY`: what `tokenprune sweep` does, as a process that can be killed."""

from __future__ import annotations

import sys

from tokenprune.plugins import load_host
from tokenprune.sweep import load_config, run_sweep

if __name__ == "__main__":
    host = load_host()
    outcome = run_sweep(load_config(sys.argv[1], host), directory=sys.argv[2], host=host)
    print(outcome.status, outcome.skipped, len(outcome.problems))
