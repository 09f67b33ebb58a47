"""Questions about pictures as people have them, through the processor of every family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families.described import REFUSED, SEEN, Zoo
from tests.families.zoo import Built
from tokenprune.checkpoints.loaded_model import LoadedModel
from tokenprune.checkpoints.prompts import placeholders
from tokenprune.engine.state.image_spans import find_images
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.tasks.base import Sample

described = pytest.mark.parametrize("name", [name for name in SEEN if name not in REFUSED])
PIXELS = np.random.default_rng(3).integers(0, 255, (40, 56, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
QUESTION = "what is red"
#: Families whose processor puts the picture in front of any prompt.
IN_FRONT = ("paligemma",)


@pytest.fixture
def loaded(zoo: Zoo, name: str) -> Iterator[LoadedModel]:
    """A family's model, whose processor has a chat template meanwhile."""
    built: Built = zoo(name)
    template = (
        "{% for part in messages[0]['content'] %}"
        f"{{% if part['type'] == 'image' %}}{built.family.image} {{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}"
    )
    before = built.processor.chat_template
    built.processor.chat_template = template
    built.processor.tokenizer.padding_side = "left"
    parts = parts_of(built.model)
    yield LoadedModel(built.model, built.processor, None, str(built.path), parts)
    built.processor.chat_template = before


def asked(*images: Image.Image, question: str = QUESTION) -> Sample:
    return Sample("one", images, question, answer="", family="")


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@described
def test_a_ragged_batch_gives_each_prompt_its_own_pictures(name: str, loaded: LoadedModel) -> None:
    samples = [asked(PICTURE), asked(PICTURE, PICTURE, question="what is left of the thing")]
    parts = parts_of(loaded.model)

    def units(*batch: Sample) -> list[int]:
        inputs = loaded.encode(batch)
        spans = find_images(parts.is_placeholder(inputs["input_ids"]), parts.visuals(inputs))
        return [sum(span.sample == place for span in spans) for place in range(len(batch))]

    alone = [units(sample)[0] for sample in samples]
    assert min(alone) >= 1
    assert units(*samples) == alone


@described
def test_odd_pictures_are_read_like_plain_ones(name: str, loaded: LoadedModel) -> None:
    plain = loaded.encode([asked(PICTURE)])
    camera = Image.fromarray(np.ascontiguousarray(np.rot90(PIXELS)))
    camera.getexif()[0x0112] = 6
    opaque = PICTURE.convert("RGBA")
    clear = np.dstack((np.zeros_like(PIXELS), np.zeros(PIXELS.shape[:2], np.uint8)))
    assert same(loaded.encode([asked(camera)]), plain)
    assert same(loaded.encode([asked(opaque)]), plain)
    white = loaded.encode([asked(Image.new("RGB", PICTURE.size, "white"))])
    assert same(loaded.encode([asked(Image.fromarray(clear))]), white)
    deep = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    grey = loaded.encode([asked(Image.fromarray(PIXELS[:, :, 0]))])
    assert same(loaded.encode([asked(deep)]), grey)


@described
def test_a_placeholder_in_a_question_makes_no_slot(name: str, loaded: LoadedModel, zoo: Zoo) -> None:
    mark = str(zoo(name).family.image)
    held = [one for one in placeholders(loaded.processor, loaded.parts) if one in mark]
    assert held
    with pytest.raises(ConfigError, match="which stands for a picture") as caught:
        loaded.encode([asked(PICTURE), asked(PICTURE, question=f"what is {mark} here")])
    assert f"`{held[0]}`" in caught.value.message
    assert "remove it" in caught.value.hint


@described
def test_without_a_chat_template_there_is_no_prompt_but_of_families_that_never_have_one(
    name: str, loaded: LoadedModel
) -> None:
    by_template = loaded.encode([asked(PICTURE)])
    loaded.processor.chat_template = None
    if name == "paligemma":
        assert same(loaded.encode([asked(PICTURE)]), by_template)
        return
    with pytest.raises(IncompatibleError, match="has no chat template") as caught:
        loaded.encode([asked(PICTURE)])
    assert "chat_template.jinja" in caught.value.hint


@pytest.mark.parametrize("name", ["llava"])
def test_what_a_processor_or_template_does_not_take_is_one_line(name: str, loaded: LoadedModel) -> None:
    loaded.processor.chat_template = "{{ raise_exception('only text, please') }}"
    with pytest.raises(IncompatibleError, match=r"does not accept the pictures and the question of `one`: .*only text"):
        loaded.encode([asked(PICTURE)])


@pytest.mark.parametrize("name", [name for name in SEEN if name not in (*REFUSED, *IN_FRONT)])
def test_a_template_without_a_place_for_the_picture_is_refused(name: str, loaded: LoadedModel) -> None:
    loaded.processor.chat_template = "what is in the picture"
    with pytest.raises(IncompatibleError, match=r"does not accept the pictures|no placeholder for a picture") as caught:
        loaded.encode([asked(PICTURE)])
    assert "\n" not in caught.value.message
    assert caught.value.hint
