"""What it saves to run cells together: each cell as a process, one after another, and shared; the last line is JSON.

python -m benchmarks.sharing.bench_sweep [--limit 105] [--out benchmarks/sharing/results.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from tokenprune.plugins import load_host
from tokenprune.sweep import SweepStore, load_config
from tokenprune.sweep.config.schema import SweepConfig
from tokenprune.sweep.plan.cells import plan_cells

SWEEP = Path(__file__).with_name("sweep.yaml")
SAME = ("id", "prediction", "score", "error", "final_tokens", "layer_average_tokens")
"""What must be equal for every question of every cell."""


def main() -> None:
    """Run the sweep three times and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", type=Path, default=SWEEP, help="sweep file")
    parser.add_argument("--limit", type=int, help="questions per cell, in place of the file's")
    parser.add_argument("--out", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    host = load_host()
    config = load_config(arguments.sweep, host)
    if arguments.limit:
        config = config.model_copy(update={"limit": arguments.limit})
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("apart", "sequential", "shared")}
        shared = run_in_one(config, folders["shared"])
        sequential = run_in_one(config.model_copy(update={"share": 1}), folders["sequential"])
        apart = run_apart(config, folders["apart"])
        found = {name: answers(folder) for name, folder in folders.items()}
        cells = len(found["apart"])
    summary = {
        "apart_s": round(apart, 1),
        "sequential_s": round(sequential["seconds"], 1),
        "shared_s": round(shared["seconds"], 1),
        "identical": found["apart"] == found["sequential"] == found["shared"],
        "tracking_share": round(shared["tracking_wait_s"] / shared["seconds"], 4),
    }
    print(f"{cells} cells of {config.limit} questions on {torch.get_num_threads()} thread(s)")
    print(f"shared / sequential = {summary['shared_s'] / summary['sequential_s']:.2f}")
    print(f"shared / apart = {summary['shared_s'] / summary['apart_s']:.2f}")
    print(f"in the trackers' hooks, most of it beside the work: {shared['tracking_s']:.1f} s")
    if arguments.out:
        facts = {"cells": cells, "questions": config.limit, "share": config.share, "threads": torch.get_num_threads()}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        arguments.out.write_text(json.dumps({**facts, **versions, **summary}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))


def run_apart(config: SweepConfig, directory: Path) -> float:
    """Every cell as a process of its own, untracked; seconds."""
    store = SweepStore(directory)
    started = time.perf_counter()
    with store.lock():
        cells = plan_cells(config, load_host())
        store.open_sweep(config.to_json(), cells)
    for cell in cells:
        subprocess.run([sys.executable, "-m", "benchmarks.sharing.one_cell", str(directory), cell.id], check=True)
    return time.perf_counter() - started


def run_in_one(config: SweepConfig, directory: Path) -> dict[str, Any]:
    """All cells by one command with one worker, tracked; its seconds, and those that it waited for the trackers."""
    file = directory.with_suffix(".yaml")
    file.write_text(json.dumps(config.to_json()), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "tokenprune", "sweep", str(file), "--out", str(directory), "--json", "--quiet"]
    started = time.perf_counter()
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    outcome = json.loads(told.stdout)["sweep"]
    return {"seconds": seconds, "tracking_wait_s": outcome["tracking_wait_s"], "tracking_s": outcome["tracking_s"]}


def answers(directory: Path) -> dict[str, Any]:
    """What every question of every cell gave; `None` for a cell without a result."""
    store = SweepStore(directory)
    return {
        cell.id: [[row.get(key) for key in SAME] for row in store.samples(cell.id)] if store.result(cell.id) else None
        for cell in store.plan()
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
