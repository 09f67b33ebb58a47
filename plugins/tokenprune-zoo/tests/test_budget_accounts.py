"""The accounts of methods that cut inside the decoder, as a 32-layer model with 24 x 24 visual tokens runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError
from tokenprune.plugins import load_host
from tokenprune.pruner import PruneRecord

GRID, LAYERS, IMAGE = 24, 32, 63
TOKENS = GRID * GRID


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=10,
            num_attention_heads=2,
            image_size=2 * GRID,
            patch_size=2,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=1024,
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 62, (12,), generator=generator).tolist()
    ids = torch.tensor([[1, *words[:4], *[IMAGE] * TOKENS, *words[4:]]])
    pixels = torch.rand(1, 3, 2 * GRID, 2 * GRID, generator=generator) * 2 - 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def ran(model: Any, inputs: Any, name: str, budget: Budget, options: dict[str, Any] | None = None) -> PruneRecord:
    pruner = load_host().pruners.get(name).build(options)
    with torch.no_grad(), pruned(model, pruner, budget) as session:
        model(**inputs)
    return session.last


PUBLISHED: list[Any] = [
    ("fastv", {}, 192, 216.0),
    ("fastv", {}, 128, 156.0),
    ("fastv", {}, 64, 96.0),
    ("dart", {}, 192, 216.0),
    ("dart", {}, 132, 159.75),  # published as 128
    ("dart", {}, 64, 96.0),
    ("sparsevlm", {"kept": (300, 200, 110)}, 192, 206.5),
    ("sparsevlm", {"kept": (303, 110, 36)}, 128, 145.4),
    ("sparsevlm", {"kept": (238, 48, 26)}, 96, 114.1),
    ("sparsevlm", {"kept": (66, 30, 17)}, 64, 82.3),
    ("pyramiddrop", {}, 72, 270.0),
    ("vscan", {}, 96, (288 + 96) / 2),
    ("vscan", {}, 64, (192 + 64) / 2),
    ("vscan", {}, 32, (96 + 32) / 2),
    ("vtw", {"layer": 15}, 1, 576 * 15 / 32),
]


@pytest.mark.parametrize(("name", "options", "tokens", "average"), PUBLISHED)
def test_published_averages(
    name: str, options: dict[str, Any], tokens: int, average: float, model: Any, inputs: Any
) -> None:
    record = ran(model, inputs, name, Budget(tokens=tokens), options)
    assert record.layer_average() == pytest.approx((average,), abs=0.1)


SEVERAL_CUTS: list[Any] = [
    ("feather", {}),
    ("fitprune", {}),
    ("illava", {}),
    ("illava", {"vision": False}),
    ("mustdrop", {"vision": False}),
    ("pyramiddrop", {}),
    ("sparsevlm", {}),
    ("sparsevlm", {"plus": True}),
    ("topv", {}),
    ("vscan", {}),
]


@pytest.mark.parametrize(("name", "options"), SEVERAL_CUTS)
@pytest.mark.parametrize("tokens", [400, 192])
def test_an_average_is_met_to_half_a_token_or_refused(
    tokens: int, name: str, options: dict[str, Any], model: Any, inputs: Any
) -> None:
    try:
        record = ran(model, inputs, name, Budget(tokens=tokens, account="average"), options)
    except BudgetError as error:
        floor = float(error.message.split("cannot go under ")[1].split()[0])
        assert floor > tokens + 0.5
        return
    assert record.layer_average() == pytest.approx((tokens,), abs=0.5)
    assert record.visual_tokens[0] == tuple(sorted(record.visual_tokens[0], reverse=True))


def test_windows_that_merge_in_the_encoder_come_on_top_of_an_average(model: Any, inputs: Any) -> None:
    options = {"window_threshold": -1.0}
    record = ran(model, inputs, "mustdrop", Budget(tokens=300, account="average"), options)
    exact = ran(model, inputs, "mustdrop", Budget(tokens=300, account="average"), {"vision": False})
    assert record.entering()[0] < TOKENS
    assert record.layer_average()[0] < 300
    assert record.final() == exact.final()
    assert exact.layer_average() == pytest.approx((300.0,), abs=0.5)


def test_a_layer_that_is_cut_in_its_middle_counts_with_both_sizes(model: Any, inputs: Any) -> None:
    record = ran(model, inputs, "topv", Budget(tokens=64))
    assert record.visual_tokens[0] == (TOKENS,) * 3 + (64,) * 29  # the attention of layer 2 sees everything
    assert record.mlp_visual_tokens[0] == (TOKENS,) * 2 + (64,) * 30
    assert record.layer_average() == pytest.approx(((2.5 * TOKENS + 29.5 * 64) / 32,))


@pytest.mark.parametrize("name", ["feather", "fitprune", "mustdrop", "pyramiddrop", "sparsevlm", "topv"])
def test_an_average_under_the_floor_is_refused(name: str, model: Any, inputs: Any) -> None:
    with pytest.raises(BudgetError, match=r"cannot go under [0-9.]+ of 576 tokens"):
        ran(model, inputs, name, Budget(tokens=5, account="average"))
