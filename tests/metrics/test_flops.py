"""Torch's counter agrees with the closed formula of a dense decoder, pruned and not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tests.engine.pruners import ByContent
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.evaluation.cost.flops import count

WAYS = {
    "unpruned": None,
    "input": ByContent(sites=("input",), by_content=False),
    "layer 2": ByContent(sites=("layer:2",), by_content=False),
    "twice": ByContent(sites=("layer:1", "layer:3"), ratios=(0.5, 0.125), by_content=False),
}


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a dense decoder with gated MLPs (LLaMA and its kin).

    Args:
        hidden: D.
        heads: H query heads.
        kv_heads: G key-value heads.
        head: Width d of one head.
        intermediate: Width F of the MLPs.
        vocabulary: Rows V of the output head.
    """

    hidden: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """From the config of a text model."""
        return cls(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head=config.head_dim,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    def prefill_flops(self, lengths: Sequence[int]) -> int:
        """FLOPs of a prefill of one prompt up to the logits of its last token, by the closed formula.

        A layer that runs with S tokens does 2 S D (2 H d + 2 G d) in its projections, 4 S^2 H d in its attention
        (counted in full) and 6 S D F in its MLP; the output head does 2 D V.

        Args:
            lengths: S of each decoder layer, visual and text tokens: (L,), a row of `PruneRecord.sequence_lengths`.
        """
        wide = self.heads * self.head
        projections = 2 * self.hidden * (2 * wide + 2 * self.kv_heads * self.head)
        mlp = 6 * self.hidden * self.intermediate
        layers = sum(length * (projections + mlp) + 4 * length * length * wide for length in lengths)
        return layers + 2 * self.hidden * self.vocabulary


def test_flops_of_known_products() -> None:
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert count(lambda: left @ right).flops == 2 * 3 * 5 * 7
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
        encoder = count(lambda: model.get_image_features(pixel_values=inputs["pixel_values"])).flops
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
