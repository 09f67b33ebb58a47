"""What a user of the package writes first: names, options, a question about a picture, a pipeline of transformers."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import tokenprune
from tokenprune import LoadedModel, get_pruner, list_pruners, load_model, pruned
from tokenprune.errors import ConfigError, IncompatibleError, UnknownNameError
from tokenprune.plugins import default_host

CIRCLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "circle.png"
COLOUR, CIRCLES = "what color is the circle ?", "is there a red circle ?"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("scenes")


def test_every_name_that_is_offered_is_there_and_says_what_it_is() -> None:
    for name in dir(tokenprune):
        assert getattr(tokenprune, name).__doc__, name


# --- pruners by name ------------------------------------------------------------------------------------------------


def test_options_are_given_by_name(loaded: LoadedModel) -> None:
    assert get_pruner("iwp", layer=0) == get_pruner("iwp").__class__(layer=0)
    inputs = loaded.prepare(CIRCLE, COLOUR)
    with pruned(loaded.model, "iwp", ratio=0.25, layer=0) as session:
        loaded.model(**inputs)
    assert session.pruner == get_pruner("iwp", layer=0)
    assert session.last.layer_average() == (64.0,)


def test_an_option_named_like_an_argument_is_given_to_get_pruner(loaded: LoadedModel) -> None:
    with pruned(loaded, get_pruner("feather", ratio=0.7), 0.25) as session:
        assert session.pruner.ratio == 0.7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ({"layre": 0}, "did you mean `layer`"),
        ({"ratoi": 0.25}, "did you mean `ratio`"),
        ({"positoins": "keep"}, "did you mean `positions`"),
    ],
)
def test_a_misspelt_option_is_one_error_with_the_close_match(
    loaded: LoadedModel, asked: dict[str, Any], hint: str
) -> None:
    (name,) = asked
    with pytest.raises(ConfigError, match=f"^unknown option of pruner `iwp` `{name}`$") as found:
        pruned(loaded.model, "iwp", 64, **asked).__enter__()
    assert found.value.hint.startswith(hint)
    if name == "layre":
        with pytest.raises(ConfigError, match="unknown option of pruner `iwp` `layre`"):
            get_pruner("iwp", **asked)


def test_options_beside_a_pruner_object_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="unknown argument of `pruned` `layer`") as found:
        pruned(loaded.model, get_pruner("iwp"), 64, layer=0).__enter__()
    assert "pass its options to `get_pruner`" in found.value.hint
    with pytest.raises(ConfigError, match="unknown argument of `pruned` `postions`") as found:
        pruned(loaded.model, get_pruner("iwp"), 64, postions="keep").__enter__()
    assert found.value.hint.startswith("did you mean `positions`")


def test_pruners_are_listed_and_unknown_ones_are_named() -> None:
    assert {"none", "random", "iwp", "fastv"} <= set(list_pruners())
    with pytest.raises(UnknownNameError, match="unknown pruner `fastvv`") as found:
        get_pruner("fastvv")
    assert "`fastv`" in found.value.hint


def test_installed_plugins_are_searched_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[object] = []
    search = metadata.entry_points

    def counted(**wanted: Any) -> Any:
        scans.append(wanted)
        return search(**wanted)

    monkeypatch.setattr(metadata, "entry_points", counted)
    default_host.cache_clear()
    inputs = loaded.prepare(CIRCLE, COLOUR)
    for _ in range(3):
        with pruned(loaded.model, "iwp", 64):
            loaded.model(**inputs)
        get_pruner("iwp")
        list_pruners()
    assert scans == [{"group": "tokenprune"}]


# --- a loaded model -------------------------------------------------------------------------------------------------


def test_the_joint_space_comes_with_the_loaded_model(loaded: LoadedModel) -> None:
    assert loaded.joint is not None
    with pruned(loaded, "trim", 64) as session:
        loaded.answer(CIRCLE, COLOUR)
    assert session.last.final() == (64,)
    with (
        pytest.raises(IncompatibleError, match="needs a joint image-text space") as found,
        pruned(loaded.model, "trim", 64),
    ):
        pass
    assert "`load_model`" in found.value.hint


def test_prepared_inputs_are_those_of_the_processors_chat_template(loaded: LoadedModel) -> None:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": COLOUR}]}
    text = loaded.processor.apply_chat_template([turn], add_generation_prompt=True)
    expected = loaded.processor(text=[text], images=[[Image.open(CIRCLE)]], return_tensors="pt")
    made = loaded.prepare(Image.open(CIRCLE), COLOUR)
    assert set(made) == set(expected)
    assert all(torch.equal(made[name], expected[name]) for name in made)


def test_questions_are_answered_alone_and_together(loaded: LoadedModel) -> None:
    alone = [loaded.answer(CIRCLE, question) for question in (COLOUR, CIRCLES)]
    assert alone == ["green", "no"]
    picture = Image.open(CIRCLE)
    assert loaded.answer(str(CIRCLE), [COLOUR, CIRCLES]) == alone
    assert loaded.answer([picture, [picture]], [COLOUR, CIRCLES]) == alone
    assert loaded.answer([picture], [CIRCLES]) == ["no"]


def test_a_question_may_be_about_several_pictures(loaded: LoadedModel) -> None:
    assert loaded.prepare([CIRCLE, CIRCLE], COLOUR)["pixel_values"].shape[0] == 2
    assert loaded.prepare([[CIRCLE, CIRCLE], CIRCLE], [COLOUR, CIRCLES])["pixel_values"].shape[0] == 3


def test_answers_inside_the_block_are_those_of_the_pruned_model(loaded: LoadedModel) -> None:
    with pruned(loaded, "iwp", 1) as session:
        pruned_answer = loaded.answer(CIRCLE, CIRCLES)
    assert session.last.final() == (1,)
    inputs = loaded.prepare(CIRCLE, CIRCLES)
    with pruned(loaded.model, "iwp", 1):
        made = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=64)
    new = made[:, inputs["input_ids"].shape[1] :]
    assert [pruned_answer] == loaded.processor.batch_decode(new, skip_special_tokens=True)


def test_wrong_questions_and_pictures_are_one_line(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="2 pictures for 3 questions"):
        loaded.answer([CIRCLE, CIRCLE], [COLOUR, CIRCLES, COLOUR])
    with pytest.raises(ConfigError, match="no file `nowhere"):
        loaded.prepare("nowhere.png", COLOUR)
    with pytest.raises(ConfigError, match="a picture of sample `question 2` must be a PIL image, got int"):
        loaded.prepare([CIRCLE, 3], [COLOUR, CIRCLES])


# --- transformers' own way ------------------------------------------------------------------------------------------


def test_a_pipeline_of_transformers_is_pruned_inside_the_block(loaded: LoadedModel) -> None:
    model = AutoModelForImageTextToText.from_pretrained(loaded.path)
    processor = AutoProcessor.from_pretrained(loaded.path)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    turn = {
        "role": "user",
        "content": [{"type": "image", "image": Image.open(CIRCLE)}, {"type": "text", "text": COLOUR}],
    }

    def answer() -> str:
        made = ask(text=[turn], max_new_tokens=4, do_sample=False, return_full_text=False)
        return str(made[0]["generated_text"]).strip()

    stock = answer()
    with pruned(model, "iwp", 0.25, layer=0) as session:
        assert answer() == stock == "green"
    assert session.last.layer_average() == (64.0,)
    assert answer() == stock
