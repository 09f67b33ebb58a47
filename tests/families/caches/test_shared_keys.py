"""Gemma 4: the last layers read the keys of earlier ones, and views, captures and decoding steps follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.views.asking import Asking
from tests.families.proving import Zoo
from tokenprune.engine import capture_prefill, pruned
from tokenprune.families.lookup import parts_of
from tokenprune.pruner import View, pruner
from tokenprune.registry import Axes, Source

#: Of six layers, 4 reads the keys of 2 and 5 those of 3.
READER, SOURCE = 4, 2


@pruner(
    "looking",
    summary="looks at keys",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("qkv",),
    sites=("input", "layer"),
)
@dataclass(frozen=True)
class Looking(Asking):
    """Asks for nothing but queries, keys and values."""


@pytest.fixture
def gemma(zoo: Zoo) -> Any:
    built = zoo("gemma4")
    sources = parts_of(built.model).kv_sources
    assert [sources[layer] for layer in (SOURCE, 3, READER, 5)] == [2, 3, 2, 3]
    return built


def heads(view: View, rope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values of the reader, and those of its source."""
    return (
        view.keys(rope=rope, layer=READER),
        view.values(layer=READER),
        view.keys(rope=rope, layer=SOURCE),
        view.values(layer=SOURCE),
    )


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("sites", [("layer:4",), ("input", "layer:4"), ("layer:3", "layer:4")], ids="+".join)
def test_a_layer_that_reads_keys_shows_those_of_its_source(gemma: Any, sites: tuple[str, ...], rope: bool) -> None:
    inputs = gemma.inputs()
    seen: list[tuple[Tensor, ...]] = []

    def look(view: View) -> None:
        if view.site.layer == READER:
            seen.append((*heads(view, rope), view.indices()))

    with torch.no_grad(), pruned(gemma.model, Looking(look, sites), ratio=0.5):
        gemma.model(**inputs)
    (keys, values, source_keys, source_values, indices) = seen[0]
    assert keys.shape[2] == indices.shape[1]
    torch.testing.assert_close(keys, source_keys)
    torch.testing.assert_close(values, source_values)
    other: list[Tensor] = []
    ask = Looking(lambda view: other.append(heads(view, not rope)[0]), sites[-1:])
    with torch.no_grad(), pruned(gemma.model, ask, ratio=1.0):
        gemma.model(**inputs)
    assert not torch.allclose(other[0][:, :, : keys.shape[2]], keys)


def test_a_look_changes_nothing(gemma: Any) -> None:
    inputs = gemma.inputs()
    with torch.no_grad():
        expected = gemma.model(**inputs).logits
        with pruned(gemma.model, Looking(lambda view: view.keys(rope=False, layer=SOURCE), ("layer:4",)), ratio=1.0):
            found = gemma.model(**inputs).logits
    assert torch.equal(found, expected)


def test_captures_hold_the_keys_that_are_read(gemma: Any) -> None:
    inputs = gemma.inputs()
    source, reader = capture_prefill(gemma.model, inputs, (SOURCE, READER))
    assert torch.equal(reader.keys, source.keys)
    assert torch.equal(reader.keys_nope, source.keys_nope)
    assert not torch.equal(reader.keys, reader.keys_nope)
    (alone,) = capture_prefill(gemma.model, inputs, (READER,))
    assert torch.equal(alone.keys_nope, reader.keys_nope)
    assert torch.equal(alone.queries, reader.queries)
