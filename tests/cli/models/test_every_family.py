"""`sweep` and `explain` on a small saved model of every family: several pictures of odd sizes, in batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import Commands
from tests.families.proving import REFUSED
from tests.families.zoo import FAMILIES
from tokenprune.sweep import SweepStore

#: Nested pictures, tiles, and pictures of any aspect.
FAST = ("gemma3", "llava_onevision", "qwen2_5_vl")
#: The other families that most people have. All others are slow, and their costs are measured, too.
THOROUGH = ("internvl", "llava", "qwen3_vl", "smolvlm")
#: Samples of `odd` that the stock processor takes, where it does not take all: pictures with unequal numbers of tiles.
TAKES = {"perception_lm": 3}
SIZES = ((40, 56), (120, 37), (30, 90))
PRUNERS = ("none", "random", "iwp", "fastv", "divprune")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for seed, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{height}x{width}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def swept(run: Commands, model: Path, folder: Path, *, costs: bool = False) -> tuple[int, SweepStore]:
    """A sweep with the task `odd`, in batches of three; with costs it takes twice as long."""
    efficiency = "{repeats: 2, max_repeats: 2, warmup: 0, new_tokens: 2}" if costs else "false"
    path = folder / "sweep.yaml"
    path.write_text(
        f"models: [{model}]\n"
        "tasks: [odd]\n"
        "limit: 6\n"
        f"pruners: [{', '.join(PRUNERS)}]\n"
        "budgets: ['25%']\n"
        "batch_size: 3\n"
        "max_new_tokens: 3\n"
        "executor: inline\n"
        "trackers: none\n"
        "lens: {samples: 2}\n"
        "overlays: 4\n"
        f"efficiency: {efficiency}\n",
        encoding="utf-8",
    )
    ran = run("sweep", str(path), "--out", str(folder / "run"), "--quiet")
    return ran.code, SweepStore(folder / "run")


def marks_of(name: str) -> Any:
    return () if name in FAST else pytest.mark.thorough if name in THOROUGH else pytest.mark.slow


def usable(name: str) -> bool:
    from tests.families.conftest import transformers_version

    return transformers_version() not in FAMILIES[name].stock_fails


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=marks_of(name))
        for name, family in FAMILIES.items()
        if family.images and name not in REFUSED
    ],
)
def test_a_saved_model_is_swept_and_explained(
    run: Commands, toy: None, pictures: list[Path], tmp_path: Path, name: str
) -> None:
    if not usable(name):
        pytest.skip(f"the stock {name} of this transformers takes no picture")
    model = FAMILIES[name].build(tmp_path).write_template()
    code, store = swept(run, model, tmp_path, costs=name not in (*FAST, *THOROUGH))
    outcomes = {cell.pruner: store.error(cell.id) for cell in store.plan()}
    assert (code, outcomes) == (0, dict.fromkeys(PRUNERS))
    for cell in store.plan():
        rows = [row for row in store.samples(cell.id) if not row["error"]]
        assert len(rows) == TAKES.get(name, 6)
        kept = [(row["original_tokens"], row["final_tokens"]) for row in rows]
        assert all(final == original if cell.pruner == "none" else final < original for original, final in kept)
    for picture in pictures:
        explained = run(
            *("explain", "--model", str(model), "--image", str(picture), "--question", "what is red"),
            *("--pruners", "none,random", "--budget", "25%", "--out", str(tmp_path / "sheet.png"), "--json"),
        )
        assert explained.code == 0, explained.err
        everything, drawn = explained.json()["pruners"]
        assert len(drawn["indices"]) == drawn["tokens"] < everything["tokens"]
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width >= 2 * 256


@pytest.mark.parametrize(
    "name", [next(iter(REFUSED)), *(pytest.param(n, marks=pytest.mark.thorough) for n in [*REFUSED][1:])]
)
def test_a_model_that_cannot_be_pruned_is_refused_with_the_reason(
    run: Commands, toy: None, tmp_path: Path, name: str
) -> None:
    code, store = swept(run, FAMILIES[name].build(tmp_path).write_template(), tmp_path)
    errors: list[Mapping[str, Any]] = [store.error(cell.id) or {} for cell in store.plan()]
    assert {error["outcome"] for error in errors} == {"refused"}
    (message,) = {error["message"] for error in errors}
    assert f"family `{name}` cannot be pruned" in message
    assert REFUSED[name] in message
    assert code == 0
