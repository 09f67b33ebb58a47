"""Run one phase of stage 2; `train.py` strings the phases of the recipe together."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.scenes.configs import PATCHES
from benchmarks.scenes.data import COLUMNS, TRAIN_SHARDS
from benchmarks.scenes.features import read_features
from benchmarks.scenes.language import LanguageStage, build_llava, merge_tallies
from benchmarks.scenes.optimiser import Optimiser
from benchmarks.scenes.packing import Pack, choose_tokens, draw_questions, pack_questions
from benchmarks.scenes.together import average_gradients, rank
from benchmarks.scenes.vision import patch_owners, patch_targets
from tokenprune.tasks.scenes.questions import ANSWERS, FAMILIES, Question

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Pack]
EVEN = (1.0,) * len(FAMILIES)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one setting.

    Attributes:
        steps: How many steps.
        kept: Visual tokens per picture or video.
        batch: Pictures or videos per step and process.
        questions: Questions per picture or video.
        easy: Share of pictures with few objects.
        weights: How often each family is asked, in the order of the pool's families.
        muon_lr: Rate of the hidden matrices.
        adam_lr: Rate of the rest.
        warmup: Steps of linear warm-up.
        decay_from: Share of the phase after which the rate falls linearly to 2 %.
        every: Steps from one validation and checkpoint to the next.
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
    every: int = 250

    def factor(self, step: int) -> float:
        """Rate factor at a step of this phase."""
        start = self.decay_from * self.steps
        fall = 1.0 if step < start else 1 - (step - start) / max(1.0, self.steps - start)
        return max(0.02, min(1.0, (step + 1) / self.warmup, fall))


class Shard(Protocol):
    """A stretch of pictures or videos with their features."""

    @property
    def features(self) -> npt.NDArray[np.float16]:
        """Features in half precision; (S, N, D)."""
        ...

    @property
    def objects(self) -> npt.NDArray[np.float32]:
        """Object tables; (S, F, O, C) with the columns of a picture first, F = 1 without frames."""
        ...

    @property
    def easy(self) -> bool:
        """Whether there are few objects in each."""
        ...

    def __len__(self) -> int: ...
    def ask(self, index: int, family: str, answer: str, rng: np.random.Generator) -> Question | None:
        """A question about one of them, or None where it allows none."""
        ...


@dataclass(frozen=True)
class Pool:
    """What a model is trained on.

    Attributes:
        read: Reads a shard of a split by its number, None while it is not there.
        shards: How many there are to train on.
        answers: Every answer of every family.
        visual: Visual tokens N of one picture or video.
        stage: Wraps the model for training.
        validated: How many of the validation split are looked at.
        group: How many of them at a time.
    """

    read: Callable[[str, int], Shard | None]
    shards: int
    answers: Mapping[str, tuple[str, ...]]
    visual: int
    stage: Callable[[LlavaForConditionalGeneration], LanguageStage]
    validated: int
    group: int


def picture_pool(work: Path) -> Pool:
    """The pictures of the task `scenes`."""
    return Pool(partial(read_features, work), TRAIN_SHARDS, ANSWERS, PATCHES, LanguageStage, validated=512, group=64)


class Feed:
    """Batches of features, objects and questions from the shards that are there by now."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool = pool
        self._rng = np.random.default_rng([seed, 11])
        self._shards: dict[int, Shard] = {}
        self._generator = torch.Generator().manual_seed(seed)
        validation = pool.read("validation", 0)
        assert validation is not None, "make the validation shard first"
        self._validation = validation
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were finished since."""
        for number in set(range(self._pool.shards)) - set(self._shards):
            shard = self._pool.read("train", number)
            if shard is not None:
                self._shards[number] = shard

    def draw(self, phase: Phase) -> Batch:
        """Features (B, N, D), object tables (B, F, O, C), kept tokens (B, K) and the pack of one batch."""
        easy = [s for s in self._shards.values() if s.easy]
        hard = [s for s in self._shards.values() if not s.easy]
        picks = []
        for _ in range(phase.batch):
            group = easy if easy and self._rng.random() < phase.easy else hard
            shard = group[int(self._rng.integers(len(group)))]
            picks.append((shard, int(self._rng.integers(len(shard)))))
        return self._assemble(picks, phase, self._rng)

    def validate(self, phase: Phase) -> Iterator[Batch]:
        """The same batches every time for the same phase."""
        size = self._pool.group
        for start in range(0, self._pool.validated, size):
            picks = [(self._validation, index) for index in range(start, start + size)]
            yield self._assemble(picks, phase, np.random.default_rng([start, 13]))

    def _assemble(self, picks: list[tuple[Shard, int]], phase: Phase, rng: np.random.Generator) -> Batch:
        pool = self._pool
        features = np.stack([shard.features[index] for shard, index in picks])
        objects = torch.from_numpy(np.stack([shard.objects[index] for shard, index in picks]))
        # The frames of a video are so many pictures here, and one row of tokens there.
        _, outside, anchor = patch_owners(objects.flatten(0, 1)[..., :COLUMNS])
        inside = ((~outside).float() + anchor.float()).view(len(picks), pool.visual)
        kept = choose_tokens(inside, phase.kept, self._generator)
        weights = np.array(phase.weights) / sum(phase.weights)
        asked = [
            draw_questions(partial(shard.ask, index), pool.answers, weights, phase.questions, rng)
            for shard, index in picks
        ]
        return torch.from_numpy(features), objects, kept, pack_questions(asked, rng, visual=pool.visual)


def align(stage: LanguageStage, feed: Feed, steps: int) -> float:
    """Teach the projector to write the words of what a patch shows."""
    parameters = list(stage.projector.parameters())
    adam = torch.optim.AdamW(parameters, lr=3e-3)
    phase = Phase(steps=steps, batch=16, questions=1)
    value = 0.0
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        features, objects, _, _ = feed.draw(phase)
        loss = stage.align(features.float(), patch_targets(objects.flatten(0, 1)))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        value = float(loss.detach())
    return value


def run_phase(work: Path, name: str, phase: Phase, init: str | None, seed: int, pool: Pool) -> None:
    """Train one phase and leave its weights in `<name>.pt`; resumes from `<name>.part.pt`.

    Args:
        work: Folder of the checkpoints and the log.
        name: Name of the phase.
        phase: Its setting.
        init: Name of the checkpoint to begin with; from nothing where there is none.
        seed: Seed of the batches, and of the weights where there is no `init`.
        pool: What to train on.
    """
    torch.manual_seed(seed)
    model = build_llava()
    stage = pool.stage(model)
    for layer in stage.decoder.layers:
        layer.forward = torch.compile(layer.forward)
    feed = Feed(pool, seed + 1000 * rank())
    optimiser = Optimiser([stage], phase.muon_lr, phase.adam_lr)
    part, step, total = work / f"{name}.part.pt", 0, 0
    log = (work / "log.jsonl" if rank() == 0 else Path(os.devnull)).open("a", buffering=1)
    if part.exists() or init is not None:
        saved = torch.load(part if part.exists() else work / f"{init}.pt")
        stage.load_state_dict(saved["model"])
        if "optimiser" in saved:  # exported weights come without
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
        for features, objects, kept, pack in feed.validate(phase):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                tallies.append(stage.loss(features.float(), objects, kept, pack)[1])
        stage.train()
        return merge_tallies(tallies)

    begin, tallies, losses = time.time(), [], []
    while step < phase.steps:
        features, objects, kept, pack = feed.draw(phase)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, tally = stage.loss(features.float(), objects, kept, pack)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(optimiser.parameters)
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
        if rank() == 0 and (step % phase.every == 0 or step == phase.steps):
            line = {"stage": name, "total": total, "validation": validate()}
            log.write(json.dumps(line) + "\n")
            save(part)
    if rank() == 0:
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
    run_phase(args.work, args.name, Phase(**settings), args.init, args.seed, picture_pool(args.work))


if __name__ == "__main__":
    main()
