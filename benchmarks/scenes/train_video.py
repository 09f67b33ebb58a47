"""The model of `scenes-video`, trained on from the shipped one: `python -m benchmarks.scenes.train_video`.

The vision tower stays as it is, so both models see alike and share the joint image-text space. As in `train.py`,
every step is skipped where its file is there, and the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.scenes.export import export_again
from benchmarks.scenes.films import MODEL, TRAIN_SHARDS, VISUAL, read_films
from benchmarks.scenes.motion import FilmStage
from benchmarks.scenes.recipe import VIDEO_PHASES
from benchmarks.scenes.together import run_together
from benchmarks.scenes.train import HERE, run_module
from benchmarks.scenes.train_language import Pool, run_phase
from tokenprune.tasks.scenes.video import VIDEO_ANSWERS, ScenesVideoTask

TARGET: Final = MODEL.with_name("scenes-video")
START: Final = "shipped"
"""Name of the checkpoint that the first phase begins with."""


def video_pool(work: Path) -> Pool:
    """The films of the task `scenes-video`."""
    return Pool(partial(read_films, work), TRAIN_SHARDS, VIDEO_ANSWERS, VISUAL, FilmStage, validated=64, group=16)


def write_start(work: Path) -> None:
    """The language parts of the shipped model, as a checkpoint to begin with."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL)
    torch.save({"model": FilmStage(model).state_dict(), "total": 0}, work / f"{START}.pt")


def main() -> None:
    """Render, train, export, evaluate and write the card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work" / "video")
    parser.add_argument("--model", type=Path, default=TARGET, help="where the checkpoint goes")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    args = parser.parse_args()
    run_module("films", str(args.work))
    write_start(args.work)
    before = START
    for number, (name, phase) in enumerate(VIDEO_PHASES):
        if not (args.work / f"{name}.pt").exists():
            arguments = (args.work, name, phase, before, number, video_pool(args.work))
            run_together(args.processes, partial(run_phase, *arguments))
        before = name
    export_again(MODEL, args.work / f"{before}.pt", args.model)
    shutil.copyfile(args.work / "log.jsonl", HERE / "training-log-video.jsonl")
    run_module("evaluate", str(args.model), "--task", ScenesVideoTask.name, "--count", "500", "--batch", "20", "--card")


if __name__ == "__main__":
    main()
