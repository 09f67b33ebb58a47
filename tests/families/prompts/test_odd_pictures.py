"""Pictures of a few pixels by a thousand: pruned like any other where the stock model takes them.

Models that stitch tiles crop such a picture's fine grid to nothing but the ends of its rows: a unit without tokens.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.families.proving import BOTH, PRUNED, Zoo, assert_equal_to_masked, chosen
from tests.families.zoo import Built, Sample
from tokenprune.engine import pruned
from tokenprune.families.lookup import parts_of

#: Families whose fine grid is cropped to a picture's aspect.
CROPPED = ["llava_next", "llava_next_video", "llava_onevision"]
#: Families whose stock processors or models refuse such pictures, with the words of the refusal.
REFUSING = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"), "aspect ratio must be smaller"),
    "mistral3": "Size must contain",
    "gemma4": "index out of range",
}
TAKING = [name for name in PRUNED if name not in (*REFUSING, *CROPPED, "llama4")]
LONG = [(3, 1000), (1000, 3)]


def with_pictures(built: Built, *sizes: tuple[int, int]) -> Built:
    """The same model, whose prompts have pictures of these sizes, by their seeds."""
    return dataclasses.replace(built, family=dataclasses.replace(built.family, sizes=sizes))


@pytest.mark.parametrize("name", CROPPED)
@pytest.mark.parametrize("size", LONG, ids=str)
def test_a_unit_without_tokens_is_none(zoo: Zoo, name: str, size: tuple[int, int]) -> None:
    """Beside an ordinary picture in the batch, and with all kept."""
    built = with_pictures(zoo(name), size, (40, 56))
    inputs = built.inputs(Sample(), Sample(seed=1))
    tokens = [visual.tokens for visual in parts_of(built.model).visuals(inputs)]
    assert tokens[1] == 0 < min(tokens[0], *tokens[2:])
    assert_equal_to_masked(built, inputs, chosen(BOTH), count=2)
    with torch.no_grad(), pruned(built.model, "grid", ratio=1.0) as session:
        kept = built.model(**inputs).logits
    assert torch.equal(kept, _stock(built, inputs))
    assert session.last.final() == (tokens[0], sum(tokens[2:]))


@pytest.mark.parametrize("name", CROPPED)
def test_pruners_that_look_into_the_encoder_see_the_other_units(zoo: Zoo, name: str) -> None:
    built = with_pictures(zoo(name), (1000, 3))
    inputs = built.inputs(Sample())
    with torch.no_grad(), pruned(built.model, "visionzip", ratio=0.5) as session:
        built.model(**inputs)
    assert session.last.final() == (8,)


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("size", [pytest.param(LONG[0], marks=pytest.mark.slow), LONG[1]], ids=str)
def test_long_pictures_are_pruned(zoo: Zoo, name: str, size: tuple[int, int]) -> None:
    built = with_pictures(zoo(name), size)
    assert_equal_to_masked(built, built.inputs(Sample()), chosen(BOTH), count=2)


@pytest.mark.parametrize("name", [*TAKING, *CROPPED, "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_picture_of_one_pixel_is_pruned(zoo: Zoo, name: str) -> None:
    if name == "video_llava":
        pytest.skip("its stock processor takes one row of pixels for channels")
    built = with_pictures(zoo(name), (1, 1))
    assert_equal_to_masked(built, built.inputs(Sample()), chosen(("input",)), count=1)


@pytest.mark.parametrize("name", REFUSING)
def test_the_stock_model_refuses_long_pictures(zoo: Zoo, name: str) -> None:
    built = with_pictures(zoo(name), (1000, 3))
    with pytest.raises((ValueError, IndexError), match=REFUSING[name]):
        _stock(built, built.inputs(Sample()))


def _stock(built: Built, inputs: object) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = built.model(**inputs).logits  # type: ignore[arg-type]
    return found
