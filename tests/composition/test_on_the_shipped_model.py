"""Points that equal named methods, on the shipped model: the same tokens, the same words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.composition.points import HOST, IDS, POINTS, build
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.engine import pruned
from tokenprune.evaluation.batches import prepare
from tokenprune.pruner import Pruner, PruneRecord


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return load_model("scenes")


@pytest.fixture(scope="module")
def inputs(shipped: LoadedModel) -> dict[str, Any]:
    task = HOST.tasks.get("scenes").build()
    return dict(prepare(shipped, task, range(3)).inputs)


def ask(loaded: LoadedModel, pruner: Pruner, inputs: dict[str, Any]) -> tuple[PruneRecord, torch.Tensor]:
    with torch.no_grad(), pruned(loaded.model, pruner, 0.15, joint=loaded.joint) as session:
        words = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return session.last, words


@pytest.mark.parametrize(("name", "options", "point"), POINTS, ids=IDS)
def test_a_named_method_is_a_point(
    name: str, options: dict[str, Any], point: dict[str, Any], shipped: LoadedModel, inputs: dict[str, Any]
) -> None:
    named, composed = HOST.pruners.get(name).build(options), build(**point)
    (one, words), (other, same_words) = ask(shipped, named, inputs), ask(shipped, composed, inputs)
    assert [unit.indices for unit in one.units] == [unit.indices for unit in other.units]
    assert [unit.site for unit in one.units] == [unit.site for unit in other.units]
    for first, second in zip(one.units, other.units, strict=True):
        assert first.log_weights == pytest.approx(second.log_weights)
    assert torch.equal(words, same_words)
    assert one.final() == (38, 38, 38)


@pytest.mark.parametrize(
    "point",
    [
        {"site": "layer:2", "magnitude": "cls", "duplication": "value-gauss", "selector": "chunked-mmr"},
        {"site": "layer:2", "magnitude": "received", "magnitude_layer": 1, "groups": "windows"},
        {"magnitude": "relevance", "duplication": "spatial", "merge": "nearest-mean"},
        {"duplication": "gram", "selector": "dpp"},
        {"site": "encoder", "magnitude": "cls", "duplication": "encoder-keys", "selector": "coverage"},
        {"site": "layer:3", "magnitude": "key-l1", "duplication": "value-metric", "duplication_layer": 1},
        {"site": "layer:1.mid", "magnitude": "attention-value", "duplication": "cosine-keys", "selector": "pivots"},
    ],
    ids=lambda point: "-".join(str(value) for value in point.values()),
)
def test_a_point_without_a_name_prunes(point: dict[str, Any], shipped: LoadedModel, inputs: dict[str, Any]) -> None:
    record, words = ask(shipped, build(**point), inputs)
    assert record.final() == (38, 38, 38)
    assert words.shape[1] > inputs["input_ids"].shape[1]
