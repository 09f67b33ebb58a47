"""`tokenprune explain` on a tiny random model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import Commands
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
