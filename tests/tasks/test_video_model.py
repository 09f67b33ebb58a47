"""The second model in the package: that of `scenes`, trained on for videos of four frames."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.scenes.configs import MODELS
from benchmarks.scenes.evaluate import Result, conversation, evaluate
from tokenprune import pruned
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.cli.app import main
from tokenprune.tasks.scenes.video import FRAMES, VIDEO_ANSWERS, ScenesVideoTask

FOLDER = MODELS / "scenes-video"
PICTURES = MODELS / "scenes"
CHANCE = sum(1 / len(answers) for answers in VIDEO_ANSWERS.values()) / len(VIDEO_ANSWERS)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("scenes-video")


@pytest.fixture(scope="module")
def full(loaded: LoadedModel) -> Result:
    return evaluate(loaded.model, loaded.processor, ScenesVideoTask("validation", size=50), batch=25)


def test_it_is_found_by_name(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded.path == str(FOLDER)
    assert loaded.family == "llava"
    assert loaded.joint is not None
    assert main(["doctor", "--model", "scenes-video", "--json"]) == 0
    found = {entry["subject"]: entry["text"] for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert found["family"] == "llava, described by tokenprune"


def test_it_shares_tower_processor_and_joint_space_with_the_model_for_pictures(loaded: LoadedModel) -> None:
    def tower(model: Any) -> dict[str, torch.Tensor]:
        return dict(model.model.vision_tower.state_dict())

    theirs = tower(AutoModelForImageTextToText.from_pretrained(PICTURES))
    for name, value in tower(loaded.model).items():
        assert torch.equal(value, theirs[name]), name
    for path in (path for path in PICTURES.rglob("*") if path.is_file()):
        if path.name != "README.md" and path != PICTURES / "model.safetensors":
            assert (FOLDER / path.relative_to(PICTURES)).read_bytes() == path.read_bytes(), path


def test_a_video_is_its_frames_one_after_another(loaded: LoadedModel) -> None:
    sample = ScenesVideoTask()[0]
    processor = AutoProcessor.from_pretrained(FOLDER)
    prompt = processor.apply_chat_template(conversation(sample.question, FRAMES), add_generation_prompt=True)
    inputs = processor(images=list(sample.images), text=prompt, return_tensors="pt")
    assert int((inputs.input_ids == loaded.model.config.image_token_id).sum()) == FRAMES * 256
    assert processor.tokenizer.unk_token_id not in inputs.input_ids


@pytest.mark.thorough
def test_it_answers_about_videos(full: Result) -> None:
    """The whole split is measured in the card; this only notices a broken checkpoint."""
    assert full.overall >= CHANCE + 0.2, full


@pytest.mark.thorough
def test_it_needs_its_tokens(loaded: LoadedModel, full: Result) -> None:
    task = ScenesVideoTask("validation", size=50)
    few = evaluate(loaded.model, loaded.processor, task, ratio=0.02, batch=25)
    assert full.overall - few.overall >= 0.1


def test_its_frames_are_one_unit_of_pruning(loaded: LoadedModel) -> None:
    sample = ScenesVideoTask("validation")[0]
    processor = loaded.processor
    prompt = processor.apply_chat_template(conversation(sample.question, FRAMES), add_generation_prompt=True)
    inputs = processor(images=list(sample.images), text=prompt, return_tensors="pt")
    with pruned(loaded.model, "evs", ratio=0.25, frames=True) as session:
        loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert session.last.original_visual_tokens == (FRAMES * 256,)
        assert session.last.final() == (FRAMES * 256 // 4,)
        assert [unit.before for unit in session.last.units] == [FRAMES * 256]
