"""A sweep under random kills ends complete, and identical to an undisturbed one; the last line is a JSON summary."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

SWEEP = Path(__file__).with_name("sweep.yaml")
PARENT_SHARE = 0.15
"""Of the kills while cells run, how many meet the whole command instead of one worker."""

EDGE_SHARE = 0.08
"""Of all kills, how many come while the store is made; as many when a command starts, and when all cells are done."""

MAKING_S, STARTING_S, ENDING_S = 1.5, 4.0, 6.0
"""Seconds within which those come: of the new store, of the command, of the last cell (or of a later command)."""

DEADLINE_S = 3600.0
PHASES = ("start", "store", "cells", "end")
FACTS = ("quality", "against_none", "tokens", "lens", "batch_size")


@dataclass
class Killer:
    """Runs one sweep command again and again, and kills it or its workers: as it starts, while cells run, as it ends.

    Args:
        directory: The sweep directory.
        random: Where the moments come from.
        cells: How many cells the sweep has.
        making: Kills of the command while it makes its MLflow store.
        starting: Kills of the command in its first seconds.
        thresholds: Counts of finished cells at which a worker or the command is killed.
        ending: Kills of the command when all cells are done: in the report, the summary, or a later command.
    """

    directory: Path
    random: Random
    cells: int = 0
    making: int = 0
    starting: int = 0
    thresholds: list[int] = field(default_factory=list)
    ending: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    commands: int = 0

    def run(self) -> None:
        """Until the sweep is complete, with as many kills as there should be."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            process = self.start(*(("runs", "retry", self.directory) if self.started() else ("sweep", SWEEP)))
            early = time.monotonic() + self.random.uniform(0, STARTING_S) if self.starts_badly() else None
            while process.poll() is None:
                if time.monotonic() > deadline:
                    process.kill()
                    raise SystemExit(f"not finished after {DEADLINE_S:.0f} s")
                self.look(process, early)
                time.sleep(0.02)
            if process.returncode == 0 and not (self.starting or self.thresholds or self.ending):
                return
            if process.returncode not in (-signal.SIGKILL, 0, 3):
                raise SystemExit(f"the sweep ended with code {process.returncode}")

    def look(self, process: subprocess.Popen[bytes], early: float | None) -> None:
        """Kill something if its moment has come."""
        workers = children(process.pid)
        if self.making:
            if self.store_is_made():  # nobody was quick enough: those come before there is a worker
                self.starting, self.making = self.starting + self.making, 0
            elif any(self.directory.glob(".mlflow-new-*/*.db")):
                time.sleep(self.random.uniform(0, MAKING_S))
                self.making -= self.kill_command(process, "store" if not self.store_is_made() else "start")
        elif early is not None:
            if time.monotonic() >= early:
                self.starting -= self.kill_command(process, "cells" if workers else "start")
        elif self.thresholds and workers and self.done() >= self.thresholds[0]:
            self.thresholds.pop(0)
            time.sleep(self.random.uniform(0, 0.5))
            self.strike(process, workers)
        elif self.ending and not self.thresholds and self.done() >= self.cells:
            time.sleep(self.random.uniform(0, ENDING_S))
            self.ending -= self.kill_command(process, "end")

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Give the command."""
        self.commands += 1
        out = () if words[0] == "runs" else ("--out", self.directory)
        command = [sys.executable, "-m", "tokenprune", *map(str, words), *map(str, out), "--quiet"]
        log = self.directory.with_suffix(".log").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    def starts_badly(self) -> bool:
        """Whether this command is killed at its start: about every second one, and at last as many as are left."""
        return self.starting > 0 and not self.making and (not self.thresholds or self.random.random() < 0.5)

    def started(self) -> bool:
        """Whether there is a sweep to continue."""
        return (self.directory / "sweep.json").is_file()

    def store_is_made(self) -> bool:
        """Whether the MLflow store is in its place."""
        return (self.directory / "mlflow.db").is_file()

    def done(self) -> int:
        """Cells with a result."""
        return sum(1 for _ in (self.directory / "cells").glob("*/result.json"))

    def strike(self, process: subprocess.Popen[bytes], workers: list[int]) -> None:
        """Kill a worker, or the command, and wait until it is dead, so that nothing is killed and counted twice."""
        if self.random.random() < PARENT_SHARE:
            self.kill_command(process, "cells")
            return
        victim = self.random.choice(workers)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return
        while victim in children(process.pid):
            time.sleep(0.01)
        self.kills["worker"] += 1
        self.phases["cells"] += 1

    def kill_command(self, process: subprocess.Popen[bytes], phase: str) -> bool:
        """Kill the command; false where it had ended by itself."""
        process.kill()
        if process.wait() != -signal.SIGKILL:
            return False
        self.kills["command"] += 1
        self.phases[phase] += 1
        return True


def environment() -> dict[str, str]:
    """Offline, one thread per process, and the sweep's own MLflow store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def children(parent: int) -> list[int]:
    """Worker processes of a sweep command."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[1]) == parent and b"tokenprune.sweep.worker.worker_main" in words:
            found.append(int(folder.name))
    return found


def facts(directory: Path) -> dict[str, Any]:
    """What a sweep measured, cell by cell, without times and places."""
    from tokenprune.sweep import SweepStore

    store = SweepStore(directory)
    found = {}
    for cell in store.plan():
        result = store.result(cell.id)
        kept = None if result is None else {name: result[name] for name in FACTS}
        found[cell.id] = (kept, store.samples(cell.id))
    return found


def runs_of(directory: Path) -> Counter[str]:
    """How often each cell is in MLflow, complete."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    counts: Counter[str] = Counter()
    token = None
    while True:
        page = client.search_runs(experiments, "tags.`tokenprune.kind` = 'cell'", max_results=1000, page_token=token)
        counts.update(run.data.tags["tokenprune.cell_id"] for run in page if run.info.status == "FINISHED")
        token = page.token
        if not token:
            return counts


def main() -> int:
    """Run both sweeps and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    calm, wild = options.out.resolve() / "calm", options.out.resolve() / "wild"

    clock = time.perf_counter()
    Killer(calm, Random(0)).run()
    calm_s = time.perf_counter() - clock
    expected = facts(calm)
    print(f"{len(expected)} cells undisturbed in {calm_s:.0f} s", file=sys.stderr)

    random = Random(options.seed)
    edge = max(1, round(options.kills * EDGE_SHARE))
    moments = sorted(random.choices(range(len(expected) - 5), k=options.kills - 3 * edge))
    killer = Killer(wild, random, len(expected), making=edge, starting=edge, thresholds=moments, ending=edge)
    clock = time.perf_counter()
    killer.run()
    wild_s = time.perf_counter() - clock
    found, logged = facts(wild), runs_of(wild)
    events = [json.loads(line) for line in (wild / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = {
        "cells": len(expected),
        "kills": sum(killer.kills.values()),
        "worker_kills": killer.kills["worker"],
        "command_kills": killer.kills["command"],
        "kills_at": {phase: killer.phases[phase] for phase in PHASES},
        "stores_set_aside": len(list(wild.glob("mlflow.db.broken-*"))),
        "commands": killer.commands,
        "second_attempts": sum(1 for event in events if event["event"] == "cell_start" and event["attempt"] > 1),
        "set_aside": sum(1 for event in events if event["event"] == "cell_failed"),
        "complete": all(kept is not None for kept, _ in found.values()),
        "identical": found == expected,
        "once_in_mlflow": logged == Counter(dict.fromkeys(expected, 1)),
        "seconds_undisturbed": round(calm_s, 1),
        "seconds": round(wild_s, 1),
    }
    print(json.dumps(summary))
    return 0 if summary["complete"] and summary["identical"] and summary["once_in_mlflow"] else 1


if __name__ == "__main__":
    sys.exit(main())
