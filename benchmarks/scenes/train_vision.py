"""Run stage 1: `python -m benchmarks.scenes.train_vision WORK --minutes 25`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.scenes.configs import READ_LAYER
from benchmarks.scenes.data import TRAIN_SHARDS, Shard, read_shard
from benchmarks.scenes.optimiser import Optimiser, Schedule
from benchmarks.scenes.vision import VisionStage, patch_targets, to_pixel_values


def _validate(stage: VisionStage, shard: Shard, count: int = 512) -> dict[str, float]:
    stage.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        values = to_pixel_values(shard.pixels[:count])
        _, report = stage(values, patch_targets(torch.from_numpy(shard.objects[:count])))
    stage.train()
    return report


def main() -> None:
    """Train, log to `log.jsonl`, write `vision.pt` at the end and every 500 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, default=None)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    rng = np.random.default_rng([args.seed, 7])
    stage = VisionStage()
    optimiser = Optimiser([stage], args.muon_lr, args.adam_lr)
    schedule = Schedule(args.steps, 100, int(args.decay * args.steps))
    checkpoint = args.work / "vision.pt"
    step = 0
    if args.init is not None:
        stage.load_state_dict(torch.load(args.init)["model"])
    elif checkpoint.exists():
        saved = torch.load(checkpoint)
        stage.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step = int(saved["step"])
    for layer in stage.clip.vision_model.encoder.layers[:READ_LAYER]:
        layer.forward = torch.compile(layer.forward)
    shards: dict[int, Shard] = {}
    validation = read_shard(args.work, "validation", 0)
    assert validation is not None
    start = time.time()
    while step < args.steps:
        if step % 50 == 0 and len(shards) < TRAIN_SHARDS:
            for number in set(range(TRAIN_SHARDS)) - set(shards):
                shard = read_shard(args.work, "train", number)
                if shard is not None:
                    shards[number] = shard
        parts = [
            (shards[number], rng.integers(len(shards[number].scenes)))
            for number in rng.choice(sorted(shards), size=args.batch)
        ]
        pixels = np.stack([shard.pixels[index] for shard, index in parts])
        objects = torch.from_numpy(np.stack([shard.objects[index] for shard, index in parts]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, report = stage(to_pixel_values(pixels), patch_targets(objects))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optimiser.step(schedule(step))
        step += 1
        if step % 50 == 0 or step <= 3:
            line = {"stage": "vision", "step": step, "seconds": time.time() - start}
            line |= {"loss": float(loss.detach()), "norm": norm, "shards": len(shards)}
            if step % 250 == 0:
                report = _validate(stage, validation)
                line["validation"] = True
            line |= {name: round(value, 4) for name, value in report.items()}
            with (args.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if step % 250 == 0 or step == args.steps:
            saved = {
                "model": stage.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
            }
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)


if __name__ == "__main__":
    main()
