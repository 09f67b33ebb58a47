"""The pool of training videos: the task's own films, their frames read once by the shipped, frozen tower."""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import CLIPModel

from benchmarks.scenes.configs import MODELS, PATCHES, WIDTH_VISION
from benchmarks.scenes.data import object_table
from benchmarks.scenes.vision import VisionStage, to_pixel_values
from tokenprune.tasks.scenes.generator import MAX_OBJECTS, render
from tokenprune.tasks.scenes.questions import Question
from tokenprune.tasks.scenes.video import FRAMES, WAYS, Film, ScenesVideoTask, ask_film

MODEL: Final = MODELS / "scenes"
"""The model whose tower and joint space the videos share."""
SHARD: Final = 500
TRAIN_SHARDS: Final = 14
VISUAL: Final = FRAMES * PATCHES


@dataclass(frozen=True)
class FilmShard:
    """Features (S, F * N, D) in half precision, the object tables (S, F, O, 8) and the films.

    The tables of the frames have two columns more than those of pictures: see `motion_table`.
    """

    features: npt.NDArray[np.float16]
    objects: npt.NDArray[np.float32]
    films: list[Film]

    easy: bool = False
    """Films have no easy shards: few objects move in any of them."""

    def __len__(self) -> int:
        return len(self.films)

    def ask(self, index: int, family: str, answer: str, rng: np.random.Generator) -> Question | None:
        """A question about one film, or None where it allows none."""
        asked = ask_film(self.films[index], family, answer, rng)
        return None if asked is None else asked[0]


def _path(folder: Path, split: str, number: int, ending: str) -> Path:
    return folder / "films" / f"{split}-{number:03d}.{ending}"


def motion_table(films: list[Film]) -> npt.NDArray[np.float32]:
    """What every object of every frame does over the film; (S, F, MAX_OBJECTS, 2).

    The first column is 0 where it stays, otherwise 1 and the place of its way in `WAYS`; the second is 1 where it
    was not there at first.
    """
    table = np.zeros((len(films), FRAMES, MAX_OBJECTS, 2), dtype=np.float32)
    ways = ("", *WAYS)
    for rows, film in zip(table, films, strict=True):
        for frame in range(FRAMES):
            present = (actor for actor in film.actors if actor.at(frame) is not None)
            for cell, actor in zip(rows[frame], present, strict=False):
                cell[:] = (ways.index(actor.way), actor.enters > 0)
    return table


def shipped_tower() -> VisionStage:
    """The vision stage with the weights that ship."""
    stage = VisionStage()
    stage.clip.load_state_dict(CLIPModel.from_pretrained(MODEL / "clip").state_dict())
    return stage.eval()


@torch.no_grad()
def write_films(folder: Path, stage: VisionStage, split: str, number: int, size: int = SHARD) -> None:
    """Take the films of a stretch of the task, paint and read them; the pickle comes last and marks it as complete."""
    done = _path(folder, split, number, "pickle")
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    task = ScenesVideoTask(split, size=(number + 1) * size)
    films = [task.question(number * size + index)[0] for index in range(size)]
    result = np.empty((size, VISUAL, WIDTH_VISION), dtype=np.float16)
    for start in range(0, size, 25):
        group = films[start : start + 25]
        pixels = np.stack([render(film.scene(frame)) for film in group for frame in range(FRAMES)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            read = stage.features(to_pixel_values(pixels))
        result[start : start + 25] = read[:, 1:].float().reshape(len(group), VISUAL, -1).numpy()
    np.save(_path(folder, split, number, "npy"), result)
    partial = done.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(films))
    partial.replace(done)


def read_films(folder: Path, split: str, number: int) -> FilmShard | None:
    """Read one shard, or None while it is not there."""
    done = _path(folder, split, number, "pickle")
    if not done.exists():
        return None
    films: list[Film] = pickle.loads(done.read_bytes())
    looks = object_table([film.scene(frame) for film in films for frame in range(FRAMES)])
    table = np.concatenate([looks.reshape(len(films), FRAMES, *looks.shape[1:]), motion_table(films)], axis=-1)
    features = np.load(_path(folder, split, number, "npy"), mmap_mode="r")
    return FilmShard(features, table, films)


def main() -> None:
    """Make the pool, validation first: `python -m benchmarks.scenes.films WORK`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    stage = shipped_tower()
    write_films(args.work, stage, "validation", 0)
    for number in range(TRAIN_SHARDS):
        write_films(args.work, stage, "train", number)


if __name__ == "__main__":
    main()
