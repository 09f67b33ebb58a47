"""Pictures in a sweep: read alike by models and reports, and never drawn with the tokens of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.families.zoo import FAMILIES
from tests.sweep.fixtures import Workshop
from tokenprune.cells.cell import Cell
from tokenprune.checkpoints import load_model
from tokenprune.evaluation.batches import Batch, picture_digest, prepare, token_grids
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.metrics.lens import KeptTokens
from tokenprune.sweep.plan.cells import plan_cells
from tokenprune.sweep.worker.overlay_pictures import save_overlays


class Altered:
    """The toy task with other pictures."""

    def __init__(self, task: Any, image: Image.Image) -> None:
        self._task, self._image = task, image

    def __getitem__(self, index: int) -> Any:
        return dataclasses.replace(self._task[index], images=(self._image,))


def test_every_picture_is_turned_into_rgb(workshop: Workshop) -> None:
    loaded = load_model(str(workshop.model), host=workshop.host)
    task: Any = ModelCache(workshop.host, "cpu").task(plan_cells(workshop.config(), workshop.host)[0])
    plain = task[0].images[0]
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(plain))))
    stored.getexif()[0x0112] = 6
    one = prepare(loaded, task, [0])
    other = prepare(loaded, Altered(task, stored), [0])  # type: ignore[arg-type]
    assert picture_digest(other.samples[0]) == picture_digest(one.samples[0])
    assert all(bool((one.inputs[name] == other.inputs[name]).all()) for name in one.inputs)


@pytest.fixture(scope="module")
def tiled(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelCache, Cell, Batch]:
    """Two questions to a model that cuts pictures into tiles."""
    built = FAMILIES["internvl"].build(tmp_path_factory.mktemp("tiles"))
    built.write_template()
    config = workshop.config(models=[str(built.path)], tasks=[{"name": "toy", "options": {"size": 2, "side": 40}}])
    cell = plan_cells(config, workshop.host)[0]
    cache = ModelCache(workshop.host, "cpu")
    return cache, cell, prepare(cache.model(cell), cache.task(cell), [0, 1])


def test_every_sample_has_the_grids_of_its_own_tiles(tiled: tuple[ModelCache, Cell, Batch]) -> None:
    cache, cell, batch = tiled
    loaded = cache.model(cell)
    grids = token_grids(loaded, batch)
    alone = [token_grids(loaded, prepare(loaded, cache.task(cell), [index]))[0] for index in (0, 1)]
    assert grids == alone
    assert sum(rows * columns for unit in grids for rows, columns in unit) == int(
        (batch.inputs["input_ids"] == loaded.model.config.image_token_id).sum()
    )


def test_tiles_are_not_drawn_over_the_whole_picture(tiled: tuple[ModelCache, Cell, Batch], tmp_path: Path) -> None:
    _, cell, batch = tiled
    rows = [{**dict.fromkeys(("id", "family", "question", "answer", "prediction"), ""), "index": 0, "score": 0.0}] * 2
    kept = {index: KeptTokens(()) for index in (0, 1)}
    tiles = [[(4, 4), (4, 4)], [(4, 4)]]
    drawn = save_overlays(tmp_path, cell, batch.samples, tiles, kept, rows)["samples"]
    assert len(drawn) == 1
    assert drawn[0]["images"][0]["kept"] == list(range(16))
