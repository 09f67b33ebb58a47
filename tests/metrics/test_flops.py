"""Torch's counter agrees with the closed formula of a dense decoder, pruned and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tests.engine.pruners import ByContent
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.evaluation.cost.flops import DecoderShape, count, count_flops

WAYS = {
    "unpruned": None,
    "input": ByContent(sites=("input",), by_content=False),
    "layer 2": ByContent(sites=("layer:2",), by_content=False),
    "twice": ByContent(sites=("layer:1", "layer:3"), ratios=(0.5, 0.125), by_content=False),
}


def test_flops_of_known_products() -> None:
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert count(lambda: left @ right).kernels == ()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_a_cpu_is_counted_and_named(masked: bool) -> None:
    rows, columns, width = 8, 10, 16
    query = torch.randn(2, 3, rows, width)
    key, value = torch.randn(2, 2, 3, columns, width)
    mask = torch.zeros(rows, columns) if masked else None
    counted = count(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, mask))
    assert counted.flops == 2 * (2 * 2 * 3 * rows * columns * width)
    assert len(counted.kernels) == 1
    assert "attention" in counted.kernels[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_the_counter_agrees_with_the_closed_formula(way: str, attention: str) -> None:
    model = random_llava(attention)
    inputs = batch([prompt(0)])
    run: Any = lambda: model.generate(**inputs, do_sample=False, min_new_tokens=1, max_new_tokens=1)  # noqa: E731
    with torch.no_grad():
        encoder = count_flops(lambda: model.get_image_features(pixel_values=inputs["pixel_values"]))
    with pruned(model, WAYS[way], Budget(tokens=TOKENS // 4 if WAYS[way] else TOKENS)) as session:
        counted = count(run)
    lengths = session.last.sequence_lengths[0]
    assert (len(set(lengths)) == 1) == (way in ("unpruned", "input"))
    shape = DecoderShape.of(model.config.text_config)
    assert counted.flops - encoder == shape.prefill_flops(lengths)
    assert (counted.kernels == ()) == (attention == "eager")


def test_the_formula_by_hand() -> None:
    shape = DecoderShape(hidden=2, heads=2, kv_heads=1, head=3, intermediate=5, vocabulary=7)
    queries, keys, values, output = 2 * 2 * 6, 2 * 2 * 3, 2 * 2 * 3, 2 * 6 * 2
    gate, up, down = (2 * 2 * 5,) * 3
    one = queries + keys + values + output + gate + up + down
    scores, mixed = 2 * 6, 2 * 6
    for length in (1, 4):
        layer = length * one + length * length * (scores + mixed)
        assert shape.prefill_flops([length]) == layer + 2 * 2 * 7
    assert shape.prefill_flops([4, 1]) == shape.prefill_flops([4]) + shape.prefill_flops([1]) - 2 * 2 * 7
