"""The whole recipe of the shipped model: `python -m benchmarks.scenes.train`.

Every step leaves a file in the work folder and is skipped where that is there, and long steps resume
from their last checkpoint, so the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import torch

from benchmarks.scenes.configs import MODELS
from benchmarks.scenes.export import export
from benchmarks.scenes.recipe import PHASES, VISION_DECAY, VISION_STEPS
from benchmarks.scenes.train_language import picture_pool, run_phase

HERE: Final = Path(__file__).parent
MODEL: Final = MODELS / "scenes"


def run_module(name: str, *arguments: str) -> None:
    """Run a step as a process of its own, so that its memory is given back."""
    subprocess.run([sys.executable, "-m", f"benchmarks.scenes.{name}", *arguments], check=True)


def main() -> None:
    """Render, train both stages, export, evaluate and write the card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--model", type=Path, default=MODEL, help="where the checkpoint goes")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = str(args.work)
    run_module("data", work)
    # A finished vision stage returns at once: its checkpoint says how far it is.
    run_module("train_vision", work, "--steps", str(VISION_STEPS), "--decay", str(VISION_DECAY))
    run_module("features", work)
    before: str | None = None
    for number, (name, phase) in enumerate(PHASES):
        if not (args.work / f"{name}.pt").exists():
            run_phase(args.work, name, phase, before, number, picture_pool(args.work))
        before = name
    assert before is not None
    export(args.work, before, args.model)
    shutil.copyfile(args.work / "log.jsonl", HERE / "training-log.jsonl")
    run_module("evaluate", str(args.model), "--count", "4200", "--card")


if __name__ == "__main__":
    main()
