"""What the model of videos was trained on is what it is asked later."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.scenes.configs import GRID, PATCH, PATCHES
from benchmarks.scenes.data import object_table
from benchmarks.scenes.evaluate import conversation
from benchmarks.scenes.films import VISUAL, motion_table, shipped_tower
from benchmarks.scenes.motion import FilmStage, motion_targets
from benchmarks.scenes.packing import IGNORE, pack_questions
from benchmarks.scenes.vision import to_pixel_values
from tokenprune.checkpoints import load_model
from tokenprune.tasks.scenes.generator import render, to_image
from tokenprune.tasks.scenes.video import FRAMES, WAYS, Film, ScenesVideoTask, ask_film, sample_film


def _tables(film: Film) -> torch.Tensor:
    looks = object_table([film.scene(frame) for frame in range(FRAMES)])
    return torch.from_numpy(np.concatenate([looks[None], motion_table([film])], axis=-1))


def test_every_object_says_where_it_goes_at_its_own_place() -> None:
    told = set()
    for seed in range(20):
        film = sample_film(np.random.default_rng(seed), "train")
        way, change = motion_targets(_tables(film))
        assert way.shape == change.shape == (1, VISUAL)
        assert bool((way[:, :PATCHES] == IGNORE).all())  # the first frame cannot know
        for frame in range(1, FRAMES):
            for actor in film.actors:
                item = actor.at(frame)
                if item is None:
                    continue
                at = frame * PATCHES + int(item.y / PATCH) * GRID + int(item.x / PATCH)
                assert int(way[0, at]) == ("", *WAYS).index(actor.way)
                assert int(change[0, at]) == int(actor.enters > 0)
                told.add((actor.way, actor.enters > 0))
    assert {way for way, _ in told} == {"", *WAYS}
    assert ("", True) in told


@torch.no_grad()
def test_packed_questions_are_answered_as_alone() -> None:
    loaded = load_model("scenes-video")
    rng = np.random.default_rng(3)
    film = ScenesVideoTask("validation").question(0)[0]
    wanted = (("moment-position", "top left"), ("moment-counting", "zero"), ("movement", "no"), ("movement", "yes"))
    asked = [found[0] for family, answer in wanted if (found := ask_film(film, family, answer, rng)) is not None]
    assert len(asked) >= 2
    pixels = np.stack([render(film.scene(frame)) for frame in range(FRAMES)])
    features = shipped_tower().features(to_pixel_values(pixels))[:, 1:].reshape(1, VISUAL, -1)
    pack = pack_questions([asked], rng, follow_up=0.0, visual=VISUAL)
    assert isinstance(loaded.model, LlavaForConditionalGeneration)
    together = FilmStage(loaded.model).logits(features, torch.arange(VISUAL)[None], pack)
    alone = []
    processor = loaded.processor
    frames = [to_image(frame) for frame in pixels]
    for question in asked:
        prompt = processor.apply_chat_template(conversation(question.text, FRAMES), add_generation_prompt=True)
        inputs = processor(images=frames, text=f"{prompt}{question.answer}", return_tensors="pt")
        words = len(question.answer.split())
        alone.append(loaded.model(**inputs).logits[0, -1 - words :])
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-3, rtol=1e-3)
