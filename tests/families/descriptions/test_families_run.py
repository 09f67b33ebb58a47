"""Every family of the zoo runs on stock transformers: load, prompt, forward, generate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.families.zoo import FAMILIES, Built, Family, Sample

WANTED = {
    "llava",
    "vipllava",
    "llava_next",
    "llava_onevision",
    "llava_next_video",
    "video_llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "internvl",
    "gemma3",
    "gemma4",
    "paligemma",
    "idefics3",
    "smolvlm",
    "mistral3",
    "aya_vision",
    "ovis2",
    "fast_vlm",
    "glm4v",
    "perception_lm",
    "lfm2_vl",
    "llama4",
    "mllama",
}
TOKENS = 4

Zoo = Callable[[str], Built]
everyone = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
with_videos = pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family.videos], ids=lambda family: family.name
)


def logits(built: Built, inputs: Any) -> torch.Tensor:
    """Logits (B, S, V) of a forward pass; inputs are not touched."""
    with torch.no_grad():
        found: torch.Tensor = built.model(**inputs).logits
    return found


def check_runs(built: Built, *samples: Sample) -> None:
    """Forward and greedy generation on a batch, and that the vision side matters."""
    inputs = built.inputs(*samples)
    first = logits(built, inputs)
    assert torch.isfinite(first).all()
    said = built.model.generate(**inputs, max_new_tokens=TOKENS)[:, inputs["input_ids"].shape[1] :]
    assert said.shape == (len(samples), TOKENS)
    assert not set(said.flatten().tolist()) & set(built.special_ids)
    assert torch.equal(said[:, 0], without_special(built, first[:, -1]).argmax(-1))

    mirrored = {name: value.flip(-1) if name.startswith("pixel_values") else value for name, value in inputs.items()}
    assert not torch.allclose(logits(built, mirrored)[0, -1], first[0, -1], atol=1e-2)


def without_special(built: Built, scores: torch.Tensor) -> torch.Tensor:
    """Scores (B, V) in which no special token can win."""
    known = [token for token in built.special_ids if token < scores.shape[-1]]
    return scores.index_fill(-1, torch.tensor(known), -torch.inf)


def test_the_zoo_holds_every_wanted_family() -> None:
    assert set(FAMILIES) == WANTED


@everyone
def test_transformers_knows_the_model_type(family: Family) -> None:
    assert family.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@everyone
def test_loads_the_real_classes(family: Family, zoo: Zoo) -> None:
    built = zoo(family.name)
    assert type(built.model).__name__ == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family.model_type]
    assert built.model.config.model_type == family.model_type
    assert built.model.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.float32}
    assert type(built.processor).__module__.startswith("transformers.models.")


@everyone
def test_runs_with_two_images_of_different_sizes(family: Family, zoo: Zoo) -> None:
    check_runs(zoo(family.name), Sample(images=2))


@everyone
def test_runs_with_unequal_numbers_of_images(family: Family, zoo: Zoo) -> None:
    samples = [Sample(images=1), Sample(images=2, seed=1)]
    if family.unequal:
        samples.append(Sample(images=0, seed=2))
    check_runs(zoo(family.name), *samples)


@with_videos
def test_runs_with_a_video(family: Family, zoo: Zoo) -> None:
    check_runs(zoo(family.name), Sample(images=0, videos=1))


@with_videos
def test_runs_with_images_and_videos(family: Family, zoo: Zoo) -> None:
    if not family.mixes:
        pytest.skip("the model takes no batch with both")
    check_runs(zoo(family.name), Sample(images=1, videos=1), Sample(images=2, seed=3))


@everyone
def test_runs_without_images(family: Family, zoo: Zoo) -> None:
    if not family.text_only:
        pytest.skip("the processor asks for an image")
    built = zoo(family.name)
    inputs = built.inputs(Sample(images=0))
    assert not any(name.startswith("pixel_values") for name in inputs)
    assert torch.isfinite(logits(built, inputs)).all()


@everyone
def test_a_sample_says_the_same_alone_and_in_a_padded_batch(family: Family, zoo: Zoo) -> None:
    built = zoo(family.name)
    samples = (Sample(images=1 if family.pads_images else 2), Sample(images=2, seed=1))
    together = logits(built, built.inputs(*samples))[:, -1]
    for row, sample in zip(together, samples, strict=True):
        alone = logits(built, built.inputs(sample))[0, -1]
        torch.testing.assert_close(row, alone, atol=2e-4, rtol=1e-3)


@everyone
def test_is_built_from_one_seed(family: Family, zoo: Zoo, tmp_path: Path) -> None:
    first, second = zoo(family.name).model.state_dict(), family.build(tmp_path).model.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
