"""The engine's proofs on the shipped model, with real questions and every installed pruner."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.pruners import ByContent, Ragged
from tests.engine.reference import dropped_by_layer, fingerprint_of, masked_from, positions_of
from tokenprune import load_host
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError

HOST = load_host()
SITES = [("input",), ("encoder",), ("layer:2",), ("layer:1", "layer:4")]
DECODED = 20


@pytest.fixture(scope="module", params=["sdpa", pytest.param("eager", marks=pytest.mark.thorough)])
def shipped(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model("scenes", attention=request.param)


def questions(loaded: LoadedModel, count: int, *, padding_side: str = "left") -> dict[str, torch.Tensor]:
    """A padded batch of real questions."""
    task = HOST.tasks.get("scenes").build()
    samples = [task[index] for index in range(count)]
    prompts = [
        loaded.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}],
            add_generation_prompt=True,
        )
        for sample in samples
    ]
    loaded.processor.tokenizer.padding_side = padding_side
    batch = loaded.processor(
        text=prompts, images=[list(sample.images) for sample in samples], padding=True, return_tensors="pt"
    )
    loaded.processor.tokenizer.padding_side = "left"
    return {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}


@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_keep_all_is_bit_identical(shipped: LoadedModel, sites: tuple[str, ...]) -> None:
    inputs = questions(shipped, 3)
    expected = shipped.model(**inputs).logits
    generated = shipped.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with pruned(shipped.model, ByContent(sites), ratio=1.0):
        assert torch.equal(shipped.model(**inputs).logits, expected)
        assert torch.equal(shipped.model.generate(**inputs, max_new_tokens=4, do_sample=False), generated)


def pruned_equals_masked(loaded: LoadedModel, pruner: Any, budget: float, policy: Any) -> None:
    """Prefill and twenty forced tokens of the pruned model against the masked one."""
    policy = policy or pruner.positions
    inputs = questions(loaded, 3)
    model = loaded.model
    with pruned(model, pruner, budget, positions=policy, joint=loaded.joint) as session:
        out = model.generate(
            **inputs,
            max_new_tokens=DECODED,
            min_new_tokens=DECODED,
            suppress_tokens=[model.config.image_token_id],
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    gone = dropped_by_layer(session.last, inputs, model.config.image_token_id, len(model.model.language_model.layers))
    assert gone.any()
    assert not any(unit.merged or unit.log_weights for unit in session.last.units)
    valid = torch.cat([inputs["attention_mask"], torch.ones(3, DECODED, dtype=torch.long)], dim=1)
    with masked_from(model, gone, valid, compact=policy == "compact"):
        reference = model(
            input_ids=out.sequences,
            pixel_values=inputs["pixel_values"],
            attention_mask=valid,
            position_ids=positions_of(valid),
            use_cache=False,
        ).logits
    length = inputs["input_ids"].shape[1]
    scale = reference.abs().max().item()
    for step in range(DECODED):
        difference = (out.logits[step] - reference[:, length - 1 + step]).abs().max().item()
        assert difference <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("policy", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_pruned_equals_masked(shipped: LoadedModel, sites: tuple[str, ...], policy: Any) -> None:
    ratios = tuple(0.3 * 0.5**power for power in range(len(sites)))
    pruned_equals_masked(shipped, ByContent(sites, ratios=ratios), 0.3, policy)


#: Without merging; views at decoding steps follow the generated tokens and are proven in `test_special_sites`.
DROPPING = [spec.name for spec in HOST.pruners if spec.axes.merge == "none" and "decode" not in spec.sites]


@pytest.mark.parametrize("name", DROPPING)
def test_every_installed_pruner_equals_its_masked_self(shipped: LoadedModel, name: str) -> None:
    spec = HOST.pruners.get(name)
    if name == "none":
        inputs = questions(shipped, 2)
        with pruned(shipped.model, "none") as session:
            shipped.model(**inputs)
        assert session.last.final() == session.last.original_visual_tokens
        return
    options = {"mass_correction": False} if "mass_correction" in spec.defaults else {}
    try:
        pruned_equals_masked(shipped, spec.build(options), 0.25, None)
    except BudgetError as error:
        pytest.skip(f"this budget is below the pruner's floor: {error}")


@pytest.mark.parametrize("kind", [ByContent, Ragged])
@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_batch_equals_singles_and_paddings_agree(
    shipped: LoadedModel, sites: tuple[str, ...], kind: type[ByContent]
) -> None:
    left, right = questions(shipped, 4), questions(shipped, 4, padding_side="right")
    chosen = kind(sites, ratios=tuple(0.3 * 0.5**power for power in range(len(sites))))
    with pruned(shipped.model, chosen):
        at_left, at_right = shipped.model(**left).logits, shipped.model(**right).logits
        for row in range(4):
            real = left["attention_mask"][row].bool()
            single = {
                "input_ids": left["input_ids"][row : row + 1, real],
                "attention_mask": left["attention_mask"][row : row + 1, real],
                "pixel_values": left["pixel_values"][row : row + 1],
            }
            alone = shipped.model(**single).logits[0]
            scale = max(1.0, alone.abs().max().item())
            torch.testing.assert_close(at_left[row, real], alone, atol=1e-5 * scale, rtol=1e-5)
            torch.testing.assert_close(
                at_right[row, right["attention_mask"][row].bool()], alone, atol=1e-5 * scale, rtol=1e-5
            )


def test_cache_and_restoration(shipped: LoadedModel) -> None:
    inputs = questions(shipped, 3)
    before = fingerprint_of(shipped.model)
    with pruned(shipped.model, ByContent(("layer:1", "layer:4"), ratios=(0.25, 0.05))) as session:
        cache = shipped.model(**inputs, use_cache=True).past_key_values
    for layer, held in enumerate(cache.layers):
        assert held.keys.shape[-2] == max(row[layer] for row in session.last.sequence_lengths)
        assert held.keys.untyped_storage().nbytes() == held.keys.numel() * 4
    assert fingerprint_of(shipped.model) == before
