"""The frozen tower's features of the whole pool, computed once and kept in half precision."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.scenes.configs import PATCHES, WIDTH_VISION
from benchmarks.scenes.data import EASY_SHARDS, TRAIN_SHARDS, read_shard
from benchmarks.scenes.vision import VisionStage, to_pixel_values
from tokenprune.tasks.scenes.generator import Scene
from tokenprune.tasks.scenes.questions import Question, ask

ORDER: Final = (
    ("validation", 0),
    *(("train", number) for number in range(TRAIN_SHARDS)),
)


@dataclass(frozen=True)
class FeatureShard:
    """Features (S, N, D) in half precision, the object tables (S, 1, O, 6) and the scenes."""

    features: npt.NDArray[np.float16]
    objects: npt.NDArray[np.float32]
    scenes: list[Scene]

    @property
    def easy(self) -> bool:
        """Whether its pictures have few objects."""
        return max(len(scene.objects) for scene in self.scenes) <= 4

    def __len__(self) -> int:
        return len(self.scenes)

    def ask(self, index: int, family: str, answer: str, rng: np.random.Generator) -> Question | None:
        """A question about one scene, or None where it allows none."""
        return ask(self.scenes[index], family, answer, rng)


def _path(folder: Path, split: str, number: int) -> Path:
    return folder / "features" / f"{split}-{number:03d}.npy"


def load_stage(checkpoint: Path) -> VisionStage:
    """The vision stage of a checkpoint, ready to be read."""
    stage = VisionStage()
    stage.load_state_dict(torch.load(checkpoint)["model"])
    return stage.eval()


@torch.no_grad()
def write_features(folder: Path, stage: VisionStage, split: str, number: int) -> None:
    """Compute and store the features of one shard, unless they are newer than the tower."""
    path = _path(folder, split, number)
    if path.exists() and path.stat().st_mtime > (folder / "vision.pt").stat().st_mtime:
        return
    shard = read_shard(folder, split, number)
    assert shard is not None, f"render {split} shard {number} first"
    result = np.empty((len(shard.scenes), PATCHES, WIDTH_VISION), dtype=np.float16)
    for start in range(0, len(result), 100):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            read = stage.features(to_pixel_values(shard.pixels[start : start + 100]))
        result[start : start + 100] = read[:, 1:].float().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, result)
    partial.replace(path)


def read_features(folder: Path, split: str, number: int) -> FeatureShard | None:
    """Read one shard, or None while it is not there."""
    path = _path(folder, split, number)
    shard = read_shard(folder, split, number)
    if shard is None or not path.exists():
        return None
    return FeatureShard(np.load(path, mmap_mode="r"), shard.objects[:, None], shard.scenes)


def main() -> None:
    """Compute the features of the pool: `python -m benchmarks.scenes.features WORK`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--limit", type=int, default=TRAIN_SHARDS, help="number of train shards")
    args = parser.parse_args()
    stage = load_stage(args.work / "vision.pt")
    order = [0, EASY_SHARDS, *range(EASY_SHARDS + 1, TRAIN_SHARDS), *range(1, EASY_SHARDS)]
    write_features(args.work, stage, "validation", 0)
    for number in order[: args.limit]:
        write_features(args.work, stage, "train", number)


if __name__ == "__main__":
    main()
