"""Fail unless a sweep directory's tracking store holds finished MLflow runs for all of its cells.

Usage: count_runs.py DIRECTORY --at-least N
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlflow import MlflowClient


def main() -> int:
    """Count the finished runs that carry an accuracy; returns 0 where there are enough of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--at-least", type=int, required=True)
    options = parser.parse_args()
    store = (options.directory / "mlflow.db").resolve()
    if not store.is_file():
        print(f"error: the sweep left no tracking store at {store}", file=sys.stderr)
        return 1
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    scored = [run for run in runs if run.info.status == "FINISHED" and "quality/accuracy" in run.data.metrics]
    print(f"{len(runs)} MLflow runs, {len(scored)} finished with an accuracy (at least {options.at_least} wanted)")
    return 0 if len(scored) >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
