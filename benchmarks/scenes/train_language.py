"""Run one phase of stage 2; `train.py` strings the phases of the recipe together."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.scenes.configs import PATCHES
from benchmarks.scenes.data import TRAIN_SHARDS
from benchmarks.scenes.features import FeatureShard, read_features
from benchmarks.scenes.language import LanguageStage, build_llava, merge_tallies
from benchmarks.scenes.optimiser import Optimiser
from benchmarks.scenes.packing import choose_tokens, draw_questions, pack_questions
from benchmarks.scenes.vision import PatchTargets, patch_targets
from tokenprune.tasks.scenes.questions import FAMILIES

EVEN = (1.0,) * len(FAMILIES)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one setting.

    Attributes:
        steps: How many steps.
        kept: Visual tokens per picture.
        batch: Pictures per step.
        questions: Questions per picture.
        easy: Share of pictures with few objects.
        weights: How often each family is asked, in the order of FAMILIES.
        muon_lr: Rate of the hidden matrices.
        adam_lr: Rate of the rest.
        warmup: Steps of linear warm-up.
        decay_from: Share of the phase after which the rate falls linearly to 2 %.
    """

    steps: int
    kept: int = 64
    batch: int = 16
    questions: int = 12
    easy: float = 0.0
    weights: tuple[float, ...] = field(default=EVEN)
    muon_lr: float = 2e-3
    adam_lr: float = 1.5e-3
    warmup: int = 50
    decay_from: float = 1.0

    def factor(self, step: int) -> float:
        """Rate factor at a step of this phase."""
        start = self.decay_from * self.steps
        fall = 1.0 if step < start else 1 - (step - start) / max(1.0, self.steps - start)
        return max(0.02, min(1.0, (step + 1) / self.warmup, fall))


class Feed:
    """Batches of features, objects and questions from the shards that are there by now."""

    def __init__(self, work: Path, seed: int) -> None:
        self._work = work
        self._rng = np.random.default_rng([seed, 11])
        self._shards: dict[int, FeatureShard] = {}
        self._generator = torch.Generator().manual_seed(seed)
        validation = read_features(work, "validation", 0)
        assert validation is not None
        self.validation = validation
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were finished since."""
        for number in set(range(TRAIN_SHARDS)) - set(self._shards):
            shard = read_features(self._work, "train", number)
            if shard is not None:
                self._shards[number] = shard

    def draw(self, phase: Phase) -> tuple[torch.Tensor, PatchTargets, torch.Tensor, object]:
        """Features (B, N, D), patch targets, kept tokens (B, K) and the pack of one batch."""
        easy = [s for s in self._shards.values() if s.easy]
        hard = [s for s in self._shards.values() if not s.easy]
        picks = []
        for _ in range(phase.batch):
            group = easy if easy and self._rng.random() < phase.easy else hard
            shard = group[int(self._rng.integers(len(group)))]
            picks.append((shard, int(self._rng.integers(len(shard.scenes)))))
        return self._assemble(picks, phase, self._rng)

    def validate(self, phase: Phase, start: int, size: int) -> object:
        """The same batch every time for the same arguments."""
        picks = [(self.validation, index) for index in range(start, start + size)]
        return self._assemble(picks, phase, np.random.default_rng([start, 13]))

    def _assemble(self, picks, phase, rng):  # type: ignore[no-untyped-def]
        features = np.stack([shard.features[index] for shard, index in picks])
        objects = torch.from_numpy(np.stack([shard.objects[index] for shard, index in picks]))
        targets = patch_targets(objects)
        inside = (targets.name >= 0).float() + targets.anchor
        kept = choose_tokens(inside, phase.kept, self._generator)
        weights = np.array(phase.weights) / sum(phase.weights)
        asked = [draw_questions(shard.scenes[index], weights, phase.questions, rng) for shard, index in picks]
        return torch.from_numpy(features), targets, kept, pack_questions(asked, rng)


def align(stage: LanguageStage, feed: Feed, steps: int) -> float:
    """Teach the projector to write the words of what a patch shows."""
    parameters = list(stage.projector.parameters())
    adam = torch.optim.AdamW(parameters, lr=3e-3)
    phase = Phase(steps=steps, batch=16, questions=1)
    value = 0.0
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        features, targets, _, _ = feed.draw(phase)
        loss = stage.align(features.float(), targets)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        value = float(loss.detach())
    return value


def run_phase(work: Path, name: str, phase: Phase, init: str | None, seed: int) -> None:
    """Train one phase and leave its weights in `<name>.pt`; resumes from `<name>.part.pt`."""
    torch.manual_seed(seed)
    model = build_llava()
    stage = LanguageStage(model)
    for layer in stage.decoder.layers:
        layer.forward = torch.compile(layer.forward)
    feed = Feed(work, seed)
    optimiser = Optimiser([stage], phase.muon_lr, phase.adam_lr)
    part, step, total = work / f"{name}.part.pt", 0, 0
    log = (work / "log.jsonl").open("a", buffering=1)
    if part.exists() or init is not None:
        saved = torch.load(part if part.exists() else work / f"{init}.pt")
        stage.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        total = int(saved["total"])
        step = int(saved["step"]) if part.exists() else 0
    else:
        value = align(stage, feed, 150)
        log.write(json.dumps({"stage": "align", "loss": round(value, 4)}) + "\n")
    log.write(json.dumps({"stage": name, "phase": asdict(phase), "from": step}) + "\n")

    def save(path: Path) -> None:
        state = {"model": stage.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state | {"step": step, "total": total}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def validate() -> dict[str, float]:
        stage.eval()
        tallies = []
        for start in range(0, 512, 64):
            features, _, kept, pack = feed.validate(phase, start, 64)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                tallies.append(stage.loss(features.float(), kept, pack)[1])
        stage.train()
        return merge_tallies(tallies)

    begin, tallies, losses = time.time(), [], []
    while step < phase.steps:
        features, _, kept, pack = feed.draw(phase)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, tally = stage.loss(features.float(), kept, pack)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optimiser.step(phase.factor(step))
        step, total = step + 1, total + 1
        tallies.append(tally)
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            line = {"stage": name, "step": step, "total": total}
            line |= {"seconds": round(time.time() - begin, 1), "norm": round(norm, 3)}
            line |= {"loss": round(sum(losses) / len(losses), 4), **merge_tallies(tallies)}
            log.write(json.dumps(line) + "\n")
            tallies, losses = [], []
            feed.refresh()
        if step % 250 == 0 or step == phase.steps:
            line = {"stage": name, "total": total, "validation": validate()}
            log.write(json.dumps(line) + "\n")
            save(part)
    save(work / f"{name}.pt")
    part.unlink(missing_ok=True)


def main() -> None:
    """Run one phase from the command line, for experiments."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("name")
    parser.add_argument("--init", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", type=json.loads, default={"steps": 100})
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    settings = dict(args.phase)
    if "weights" in settings:
        settings["weights"] = tuple(settings["weights"])
    if settings.get("kept", 0) > PATCHES:
        parser.error(f"a picture has {PATCHES} tokens")
    run_phase(args.work, args.name, Phase(**settings), args.init, args.seed)


if __name__ == "__main__":
    main()
