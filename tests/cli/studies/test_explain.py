"""`tokenprune explain` on a tiny random model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import Commands
from tests.families.zoo import FAMILIES
from tests.sweep.tiny import TOKENS


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def words(picture: Path, model: Path, *more: str) -> list[str]:
    question = "what color is the circle ?"
    return ["explain", "--image", str(picture), "--question", question, "--model", str(model), *more]


def test_the_sheet_has_a_panel_per_pruner_and_the_table_their_answers(
    run: Commands, toy: None, picture: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    ran = run(*words(picture, tiny_model, "--pruners", "none,grid,first,refusing", "--budget", "4", "--out", str(out)))
    assert ran.code == 0, ran.err
    assert str(out) in ran.err
    for name in ("none", "grid", "first", "refusing"):
        assert name in ran.out
    assert "no budget pleases me" in " ".join(ran.out.split())
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 256  # three panels in a row
        assert sheet.height > 2 * 256  # and the fourth below


def test_the_sheet_shows_what_was_kept(
    run: Commands, toy: None, picture: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    document = run(
        *words(picture, tiny_model, "--pruners", "first", "--budget", "25%", "--out", str(out), "--json")
    ).json()
    (kept,) = document["pruners"]
    assert kept["indices"] == list(range(TOKENS // 4))
    assert (kept["tokens"], kept["site"], document["budget"]) == (TOKENS // 4, "input", "25%")
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("L"), dtype=float)
    top, bottom = pixels[10:66, 10:258].mean(), pixels[80:258, 10:258].mean()  # the first of four rows of tokens
    assert top > 2 * bottom


def test_no_pruner_keeps_all_tokens(run: Commands, picture: Path, tiny_model: Path, tmp_path: Path) -> None:
    document = run(*words(picture, tiny_model, "--pruners", "none", "--out", str(tmp_path / "o.png"), "--json")).json()
    (kept,) = document["pruners"]
    assert kept["tokens"] == TOKENS
    assert kept["indices"] == list(range(TOKENS))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pruners", "none,grd"], "unknown pruner `grd`"),
        (["--pruners", " , "], "--pruners is empty"),
        (["--budget", "lots"], "not a budget: 'lots'"),
        (["--budget", "0"], "keep tokens must be a whole number >= 1, got 0"),
        (["--image", "nowhere.png"], "no file `nowhere.png`"),
        (["--image", __file__], "as a picture"),
        (["--out", "nowhere/sheet.png"], "cannot write `nowhere/sheet.png`"),
        (["--model", "scnes"], "unknown model `scnes`"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Commands, picture: Path, tiny_model: Path, more: list[str], message: str
) -> None:
    ran = run(*words(picture, tiny_model, "--pruners", "none", *more))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_photo_is_asked_about_as_its_camera_was_held(
    run: Commands, toy: None, picture: Path, tiny_model: Path, tmp_path: Path
) -> None:
    photo, out, turned = tmp_path / "photo.jpg", tmp_path / "upright.png", tmp_path / "turned.png"
    stored = Image.open(picture).transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6
    stored.save(photo.with_suffix(".png"), exif=stored.getexif())
    more = ("--pruners", "none,divprune", "--budget", "4", "--json")
    upright = run(*words(picture, tiny_model, *more, "--out", str(out))).json()["pruners"]
    assert run(*words(photo.with_suffix(".png"), tiny_model, *more, "--out", str(turned))).json()["pruners"] == upright
    assert out.read_bytes() == turned.read_bytes()


def test_of_an_animation_the_first_frame_is_asked_about_and_this_is_said(
    run: Commands, tiny_model: Path, tmp_path: Path
) -> None:
    moving = tmp_path / "moving.gif"
    Image.new("RGB", (32, 32), "red").save(moving, save_all=True, append_images=[Image.new("RGB", (32, 32), "blue")])
    ran = run(*words(moving, tiny_model, "--pruners", "none", "--out", str(tmp_path / "o.png")))
    assert ran.code == 0
    assert "holds 2 pictures; only the first one is used" in " ".join(ran.err.split())


def test_a_placeholder_in_the_question_and_a_lost_template_are_told_in_one_line(
    run: Commands, picture: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "o.png")
    ran = run("explain", "--image", str(picture), "--question", "is <image> red ?", "--model", str(tiny_model))
    assert (ran.code, ran.out) == (2, "")
    assert "holds `<image>`, which stands for a picture" in " ".join(ran.err.split())
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("chat_template*"))
    ran = run(*words(picture, bare, "--pruners", "none", "--out", out))
    assert (ran.code, ran.out) == (2, "")
    assert "has no chat template" in " ".join(ran.err.split())
    assert "chat_template.jinja" in ran.err


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
def test_other_families_are_drawn_tile_by_tile_or_over_the_picture(
    run: Commands, picture: Path, tmp_path: Path, name: str
) -> None:
    built = FAMILIES[name].build(tmp_path)
    built.write_template()
    out = tmp_path / "sheet.png"
    words = ["explain", "--image", str(picture), "--question", "what is red", "--model", str(built.path)]
    ran = run(*words, "--pruners", "none,random", "--budget", "25%", "--out", str(out), "--json")
    assert ran.code == 0, ran.err
    document = ran.json()
    sizes = [rows * columns for rows, columns in document["grids"]]
    everything, drawn = document["pruners"]
    assert everything["indices"] == list(range(sum(sizes)))
    assert len(drawn["indices"]) == drawn["tokens"] == sum(round(size / 4) for size in sizes)
    assert drawn["indices"] == sorted(set(drawn["indices"]))
    with Image.open(out) as sheet:
        assert sheet.width >= 2 * 256
