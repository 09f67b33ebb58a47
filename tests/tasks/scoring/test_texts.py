"""Worked examples of the published rules for texts, numbers, boxes, and yes or no."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.tasks.scoring.anls import anls, edit_distance
from tokenprune.tasks.scoring.boxes import Box, centre_inside, iou, iou_at_least, read_box
from tokenprune.tasks.scoring.open_answers import mmmu_candidates, mmmu_open_score, ocrbench_score
from tokenprune.tasks.scoring.relaxed import best_relaxed_accuracy, relaxed_accuracy
from tokenprune.tasks.scoring.text import contains, exact_match, number_match, read_number
from tokenprune.tasks.scoring.vqa import CONTRACTIONS, normalise, soft_accuracy
from tokenprune.tasks.scoring.yes_no import (
    hallusion_answer,
    mme_answer,
    pope_answer,
    read_yes_no,
    vlmevalkit_answer,
)

DRINKS = ["coke"] * 3 + ["coca cola"] * 2 + ["pepsi"] * 5
UNSURE = ["unanswerable"] * 4 + ["coke"] * 6


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("yes.", "yes", 1),
        ("T-shirt", "t-shirt", 1),
        ("t shirt", "t-shirt", 0),
        ("the left", "left", 0),
        ("dogs", "dog", 0),
        ("", "no", 0),
    ],
)
def test_exact_match(prediction: str, reference: str, score: float) -> None:
    assert exact_match(prediction, reference) == score


def test_options_of_exact_match_and_containment() -> None:
    assert exact_match("Yes", "yes", ignore_case=False) == 0
    assert exact_match("yes.", "yes", ignore_punctuation=False) == 0
    assert contains("It is blueish", "blue") == 0
    assert contains("It is blueish", "blue", whole_words=False) == 1
    assert contains("It is Blue.", "blue") == 1
    assert contains("It is Blue.", "blue", ignore_case=False) == 0
    assert contains("anything", "") == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000", 1000),
        ("$5", 5),
        ("5 kg", 5),
        ("5%", 5),
        ("-$1,234.5", -1234.5),
        (".5", 0.5),
        ("5.", 5),
        ("1e3", 1000),
        ("1,00", None),
        ("five", None),
        ("5 of 6", None),
        ("nan", None),
        ("", None),
    ],
)
def test_numbers_in_own_data(text: str, number: float | None) -> None:
    assert read_number(text) == number


def test_number_match() -> None:
    assert number_match("5 kg", "5") == 1
    assert number_match("5.1", "5") == 0
    assert number_match("5.1", "5", tolerance=0.2) == 1
    assert number_match("five", "five") == 0


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The  Two dogs!", "2 dogs"),
        ("Dont", "don't"),
        ("none", "0"),
        ("a", ""),
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("it is 5.", "it is 5"),
        ("U.S.", "us"),
        ("blue/green", "blue green"),
        ("blue /green", "blue green"),
        ("ice-cream", "ice cream"),
        ("twenty-one", "twenty 1"),
        ("black & white", "black & white"),
        ("$5.00", "$5.00"),
        ("John's", "john 's"),
    ],
)
def test_vqa_normaliser(text: str, form: str) -> None:
    assert normalise(text) == form


def test_vqa_variants() -> None:
    assert len(CONTRACTIONS) == 120
    assert normalise("John's", "vqav2") == "john's"
    assert normalise("it is 5.", "vlmevalkit") == "it is 5."
    assert CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert CONTRACTIONS["wed've"] == CONTRACTIONS["we'dve"] == "we'd've"


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Coke", DRINKS, 0.9),
        ("the coke", DRINKS, 0.9),
        ("coca cola.", DRINKS, 0.6),
        ("Pepsi", DRINKS, 1),
        ("fanta", DRINKS, 0),
        ("Unanswerable", UNSURE, 1),
        ("Coke", UNSURE, 1),
        ("unanswerable.", UNSURE, 1),
        ("blue", UNSURE, 0),
        ("blue", [], 0),
    ],
)
def test_soft_accuracy(prediction: str, answers: list[str], score: float) -> None:
    assert soft_accuracy(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Two", ["2"] * 3 + ["3"] * 7, 0.9),
        ("a Red.", ["red"] * 10, 1),
        ("yes", ["yes"] + ["no"] * 9, 0.3),
        ("no", ["yes"] + ["no"] * 9, 1),
        ("yes,no", ["yesno"] * 10, 0),
        ("1,000", ["1000"] * 10, 1),
    ],
)
def test_soft_accuracy_of_vqav2(prediction: str, answers: list[str], score: float) -> None:
    assert soft_accuracy(prediction, answers, "vqav2") == pytest.approx(score)


@given(st.lists(st.sampled_from(["red", "blue", "two", "2"]), min_size=10, max_size=10))
def test_soft_accuracy_takes_five_values(answers: list[str]) -> None:
    assert any(soft_accuracy("2", answers) == pytest.approx(value) for value in (0, 0.3, 0.6, 0.9, 1))


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("1987", ["1987"], 1),
        ("The Hague", ["hague"], 0.5556),
        ("$1,234", ["1,234"], 0.8333),
        ("colour", ["color"], 0.8333),
        ("john smith", ["John Smith", "J. Smith"], 1),
        ("abcd", ["abxy"], 0.5),
        ("cat", ["dog"], 0),
        ("invoice no. 12", ["12"], 0),
        ("", ["a"], 0),
        ("  New   York  ", ["new york"], 1),
        ("", [""], 1),
    ],
)
def test_anls(prediction: str, references: list[str], score: float) -> None:
    assert anls(prediction, references) == pytest.approx(score, abs=1e-4)


@given(st.text(max_size=20), st.text(max_size=20))
def test_anls_is_a_share_and_1_for_equal_texts(first: str, second: str) -> None:
    assert 0 <= anls(first, [second]) <= 1
    assert anls(first, [first, second]) == 1
    assert edit_distance(first, second) == edit_distance(second, first) <= max(len(first), len(second))


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("10.5", "10", 1),
        ("10.6", "10", 0),
        ("-9.6", "-10", 1),
        ("0.42", "42%", 1),
        ("42", "42%", 0),
        ("42%", "42", 0),
        ("43%", "42%", 1),
        ("0", "0", 1),
        ("0.001", "0", 0),
        ("1,000", "1000", 0),
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("2100", "2010", 1),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, score: float) -> None:
    assert relaxed_accuracy(prediction, reference) == score


def test_best_relaxed_accuracy() -> None:
    assert best_relaxed_accuracy(" Yes ", ["no", "yes"]) == 1
    assert best_relaxed_accuracy("yes", []) == 0


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("Yes", "yes", "yes"),
        ("yes.", None, "yes"),
        ("no", "no", "no"),
        ("No, there is not", None, "no"),
        ("Yes, there is", None, "yes"),
    ],
)
def test_pope_answer(answer: str, published: str | None, sound: str | None) -> None:
    assert pope_answer(answer, published=True) == published
    assert pope_answer(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("Yes", "yes", "yes"),
        ("yes, it is", "yes", "yes"),
        ("Y", "yes", "yes"),
        ("Yes.no", "yes", "yes"),
        ("n", "no", "no"),
        ("No.", "no", "no"),
        ("nope", "no", None),
        ("not sure", "no", None),
        ("know it", "no", None),
        ("I think yes", None, "yes"),
        ("The answer is yes", None, "yes"),
        ("", None, None),
    ],
)
def test_mme_answer(answer: str, published: str | None, sound: str | None) -> None:
    assert mme_answer(answer, published=True) == published
    assert mme_answer(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("Yes, it is", "yes", "yes"),
        ("No", "no", "no"),
        ("It depends", "no", None),
        ("No, yesterday", "yes", "no"),
    ],
)
def test_hallusion_answer(answer: str, published: str | None, sound: str | None) -> None:
    assert hallusion_answer(answer, published=True) == published
    assert hallusion_answer(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("Yes", "yes", "yes"),
        ("yes.", "yes", "yes"),
        ("No, it is not", "no", "no"),
        ("No.", "no", "no"),
        ("yes and no", None, None),
        ("Yes, there is no doubt", None, "yes"),
        ("yes/no", None, None),
        ("nope", None, None),
        ("It is true", None, None),
    ],
)
def test_vlmevalkit_answer(answer: str, published: str | None, sound: str | None) -> None:
    assert vlmevalkit_answer(answer) == published
    assert read_yes_no(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", Box(0.1, 0.2, 0.5, 0.6), Box(0.1, 0.2, 0.5, 0.6)),
        ("(0.1,0.2,0.5,0.6)", Box(0, 0, 0, 0), Box(0.1, 0.2, 0.5, 0.6)),
        ("[.1,.2,.5,.6]", Box(0, 0, 0, 0), Box(0.1, 0.2, 0.5, 0.6)),
        ("[0,0,1,1] or [1,1,2,2]", Box(0, 0, 1, 1), Box(0, 0, 1, 1)),
        ("nowhere", Box(0, 0, 0, 0), None),
    ],
)
def test_boxes_in_answers(answer: str, published: Box, sound: Box | None) -> None:
    assert read_box(answer, published=True) == published
    assert read_box(answer) == sound


def test_fit_of_boxes() -> None:
    unit = Box(0, 0, 1, 1)
    assert iou(unit, Box(0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)
    assert iou(Box(1, 1, 0, 0), unit) == iou(None, unit) == centre_inside(None, unit) == 0
    assert iou_at_least(unit, unit) == 1
    assert iou_at_least(None, unit, 0.0) == 0
    assert centre_inside(read_box("nowhere", published=True), unit) == 1  # the published accident
    assert Box(0, 0, 500, 1000).divided(1000, 1000) == Box(0, 0, 0.5, 1)


@pytest.mark.parametrize(
    ("answer", "candidates"),
    [
        ("The answer is 42", [42.0]),
        ("x = 3.14159", [3.14]),
        ("1,234", [1234.0, 234.0]),
        ("So 3 + 4 = 7", [7.0]),
        ("approximately 12.5 meters", [12.5, "approximately 12.5 meters"]),
        ("B", [" b", "b "]),
    ],
)
def test_mmmu_candidates(answer: str, candidates: list[str | float]) -> None:
    assert set(mmmu_candidates(answer, published=True)) == set(candidates)


def test_grouped_digits_are_one_number_in_the_sound_form() -> None:
    assert mmmu_candidates("1,234") == [1234.0]


@pytest.mark.parametrize(
    ("prediction", "references", "published", "sound"),
    [
        ("The answer is 42", "42", 1, 1),
        ("x = 3.14159", "3.14", 1, 1),
        ("it could be paris", "Paris", 1, 1),
        ("It is blueish", "blue", 1, 0),
        ("3.43", ["24/7", "3.429"], 1, 1),
        ("3.43", "['24/7', 3.429]", 0, 0),
        ("B", "B", 1, 1),
    ],
)
def test_mmmu_open_score(prediction: str, references: str | list[str], published: float, sound: float) -> None:
    assert mmmu_open_score(prediction, references, published=True) == published
    assert mmmu_open_score(prediction, references) == sound


@pytest.mark.parametrize(
    ("prediction", "answers", "formula", "published", "sound"),
    [
        ("The word is CENTRE.", ["CENTRE"], False, 1, 1),
        ("center", ["CENTRE"], False, 0, 0),
        ("Total: $ 12", ["$12", "12"], False, 1, 1),
        ("x ^ 2 + y", ["x^2+y"], True, 1, 1),
        ("X^2+Y", ["x^2+y"], True, 0, 0),
        ("123", "\uff11\uff12\uff13", False, 1, 1),
        ("no answer", ["a"], False, 1, 0),
        ("12-3", ["12-3-2019"], False, 0, 0),
    ],
)
def test_ocrbench(prediction: str, answers: str | list[str], formula: bool, published: float, sound: float) -> None:
    assert ocrbench_score(prediction, answers, formula=formula, published=True) == published
    assert ocrbench_score(prediction, answers, formula=formula) == sound
