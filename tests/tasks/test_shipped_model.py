"""The model in the package loads as any checkpoint does, sees, and cannot do without its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaForConditionalGeneration,
)

import tokenprune.checkpoints
from benchmarks.scenes.evaluate import Result, answer, conversation, evaluate
from tokenprune.tasks.scenes.task import ScenesTask

FOLDER = Path(tokenprune.checkpoints.__file__).parent / "scenes"
LIMIT = 30 * 1000 * 1000


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def clip() -> Any:
    return CLIPModel.from_pretrained(FOLDER / "clip").eval()


@pytest.fixture(scope="module")
def full(model: Any, processor: Any) -> Result:
    return evaluate(model, processor, ScenesTask(size=70), batch=35)


def test_it_is_small_and_stock(model: Any, processor: Any) -> None:
    assert isinstance(model, LlavaForConditionalGeneration)
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= LIMIT
    assert not list(FOLDER.rglob("*.py"))
    assert not list(FOLDER.rglob("*.bin"))
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.pad_token_id != processor.tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_the_pictures_of_the_task_are_the_same_pixels_on_torchvision_and_on_pillow(processor: Any) -> None:
    picture = ScenesTask(size=1)[0].images[0]
    pillow = CLIPImageProcessorPil.from_pretrained(FOLDER)
    assert processor.image_processor.backend == "torchvision"
    found, expected = (each(picture, return_tensors="pt").pixel_values for each in (processor.image_processor, pillow))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_one_image_is_256_tokens(model: Any, processor: Any) -> None:
    sample = ScenesTask()[0]
    prompt = processor.apply_chat_template(conversation(sample.question), add_generation_prompt=True)
    inputs = processor(images=list(sample.images), text=prompt, return_tensors="pt")
    assert int((inputs.input_ids == model.config.image_token_id).sum()) == 256
    assert processor.tokenizer.unk_token_id not in inputs.input_ids


def test_every_word_of_the_tasks_is_known(processor: Any) -> None:
    task = ScenesTask(size=210)
    for index in range(len(task)):
        _, question = task.question(index)
        ids = processor.tokenizer(f"{question.text} {question.answer}").input_ids
        assert processor.tokenizer.unk_token_id not in ids
        assert processor.tokenizer.decode(ids) == f"{question.text} {question.answer}"


def test_it_answers(full: Result) -> None:
    """The whole split is measured in the card; this only notices a broken checkpoint."""
    assert full.overall >= 0.95, full


def test_random_pruning_costs_a_lot(model: Any, processor: Any, full: Result) -> None:
    pruned = evaluate(model, processor, ScenesTask(size=70), ratio=0.06, batch=35)
    assert full.overall - pruned.overall >= 0.2


def test_batches_of_uneven_length_equal_singles(model: Any, processor: Any) -> None:
    task = ScenesTask()
    samples = [task[index] for index in range(7)]
    generator = torch.Generator()
    together = answer(model, processor, samples, 1.0, generator)
    alone = [answer(model, processor, [sample], 1.0, generator)[0] for sample in samples]
    assert together == alone


def test_second_turns_and_several_images_run(model: Any, processor: Any) -> None:
    sample, other = ScenesTask()[0], ScenesTask()[8]
    turns = [
        *conversation(sample.question),
        {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]},
        *conversation(other.question),
    ]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    images = [*sample.images, *other.images]
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    assert int((inputs.input_ids == model.config.image_token_id).sum()) == 512
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert processor.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_clip_shares_the_tower_and_names_patches(model: Any, processor: Any, clip: Any) -> None:
    tower = model.model.vision_tower.state_dict()
    for name, value in clip.vision_model.state_dict().items():
        assert torch.equal(value, tower[name]), name
    task = ScenesTask(size=28, families=("colour",))
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "clip")
    phrases = ["background", "circle", "square", "triangle", "star", "cross"]
    encoded = tokenizer(phrases, padding=True, return_tensors="pt")
    right = total = 0
    with torch.no_grad():
        texts = clip.text_projection(clip.text_model(**encoded).pooler_output)
        for index in range(len(task)):
            sample = task[index]
            pixels = processor.image_processor(sample.images[0], return_tensors="pt").pixel_values
            states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
            patches = clip.visual_projection(clip.vision_model.post_layernorm(states[-2]))[0, 1:]
            similarity = torch.nn.functional.normalize(patches, dim=-1) @ (
                torch.nn.functional.normalize(texts, dim=-1).T
            )
            for item in sample.facts["objects"]:
                if item["value"] is not None:
                    continue
                left, top, right_edge, bottom = item["box"]
                column, row = int((left + right_edge) / 16), int((top + bottom) / 16)
                best = int(similarity[row * 16 + column].argmax())
                right += phrases[best] == item["kind"]
                total += 1
    assert right / total > 0.9
