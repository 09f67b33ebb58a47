"""Worked examples of the finders of letters: each answer with its published and its sound letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.tasks.scoring.letters import find_letter, find_letter_or_option, sound_letter
from tokenprune.tasks.scoring.letters_by_task import (
    ai2d_letter,
    egoschema_letter,
    longvideobench_letter,
    mmbench_letter,
    mvbench_letter,
    realworldqa_score,
    scienceqa_letter,
    seed_letter,
    vlmevalkit_letter,
)

VEHICLES = ["red car", "blue bus", "green bike", "pink boat"]
COLOURS = ["red car", "blue bus", "green", "pink"]
EVENTS = ["sits down", "runs away", "sleeps", "eats", "jumps"]


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B", "B", "B"),
        ("b", None, "B"),
        ("(B)", "B", "B"),
        ("Answer: C", "C", "C"),
        ("The answer is (C).", "C", "C"),
        ("D) cat", "D", "D"),
        ("A dog is near B", "A", "B"),
        ("I think A or B", "B", None),
        ("It shows A, then C", "C", None),
        ("The answer is yellow. B", "B", "B"),
        ("Because the sky is blue", "B", None),
        ("CAT", "A", None),
        ("None", None, None),
        ("The correct answer is D. A is wrong", "A", "D"),
        ("E", None, None),
        ("DNA is here", "A", None),
        ("B) ", "B", "B"),
        ("C) 3", "C", "C"),
        ("", None, None),
        ("...", None, None),
    ],
)
def test_find_letter(answer: str, published: str | None, sound: str | None) -> None:
    assert find_letter(answer, "ABCD", published=True) == published
    assert find_letter(answer, "ABCD") == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("The answer is B.", "B", "B"),
        ("A dog", "A", None),
        ("B or C", "C", None),
        ("A, B and D", "D", None),
        ("The answer is (C) not (A).", "A", "C"),
        ("It is the blue bus in the picture here", "B", "B"),
        ("blue bus", None, "B"),
        ("b", None, "B"),
    ],
)
def test_find_letter_or_option(answer: str, published: str | None, sound: str | None) -> None:
    assert find_letter_or_option(answer, VEHICLES, published=True) == published
    assert find_letter_or_option(answer, VEHICLES) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B. runs away", "B", "B"),
        ("(C)", "C", "C"),
        ("the dog runs away from the man", "B", "B"),
        ("runs away", None, "B"),
    ],
)
def test_next_qa(answer: str, published: str | None, sound: str | None) -> None:
    assert find_letter_or_option(answer, EVENTS, published=True) == published
    assert find_letter_or_option(answer, EVENTS) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("A", "A", "A"),
        ("(A)", "A", "A"),
        ("a", "A", "A"),
        ("A.", "A", "A"),
        ("A. walk", "A", "A"),
        ("Answer: A", "A", "A"),
        ("the best option is A", "A", "A"),
        ("Best option: (A", "A", "A"),
        ("a man walks", "A", None),
        ("It is a dog", "A", None),
        ("(B) or (A)", "B", None),
        ("walk", None, None),
        ("", None, None),
        ("E", "E", "E"),
    ],
)
def test_mvbench(answer: str, published: str | None, sound: str | None) -> None:
    assert mvbench_letter(answer, published=True) == published
    assert mvbench_letter(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("C", "C", "C"),
        ("C. repairs", "C", "C"),
        ("(C)", "C", "C"),
        ("C.", "C", "C"),
        ("The answer is C", "C", "C"),
        ("A or C", "A", None),
        ("A person repairs so C", "A", "C"),
        ("c", None, "C"),
        ("repairs", None, "C"),
        ("", None, None),
    ],
)
def test_egoschema(answer: str, published: str | None, sound: str | None) -> None:
    options = ["cooks", "paints", "repairs", "reads", "sings"]
    assert egoschema_letter(answer, options, published=True) == published
    assert egoschema_letter(answer, options) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("C", "C", "C"),
        ("The answer is C", "C", "C"),
        ("D. A book", "D", "D"),
        ("The best answer is: B", "B", "B"),
        ("(E)", "E", "E"),
        ("Because C", "B", "C"),
        ("c", None, "C"),
        ("no idea", None, None),
    ],
)
def test_longvideobench(answer: str, published: str | None, sound: str | None) -> None:
    assert longvideobench_letter(answer, published=True) == published
    assert longvideobench_letter(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("A", "A", "A"),
        ("a", "A", "A"),
        ("A. cat", "A", "A"),
        ("Apple", "A", None),
        ("(A)", None, "A"),
        ("The answer is A", None, "A"),
        ("", None, None),
    ],
)
def test_seed(answer: str, published: str | None, sound: str | None) -> None:
    assert seed_letter(answer, published=True) == published
    assert seed_letter(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B", "B", "B"),
        ("B. leaf", "B", "B"),
        (" B. leaf", "B", "B"),
        ("b", "B", "B"),
        ("(B)", "B", "B"),
        ("b.", "B", "B"),
        ("The answer is B.", None, "B"),
        ("B) leaf", None, "B"),
    ],
)
def test_ai2d(answer: str, published: str | None, sound: str | None) -> None:
    assert ai2d_letter(answer, published=True) == published
    assert ai2d_letter(answer) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B", "B", "B"),
        ("b", "B", "B"),
        ("B.", "B", "B"),
        ("B. foo", "B", "B"),
        (" B ", "B", "B"),
        ("b. foo", None, None),
        ("(B)", None, "B"),
        ("The answer is B", None, "B"),
        ("BC", None, None),
        ("C. x", "C", "C"),
    ],
)
def test_scienceqa(answer: str, published: str | None, sound: str | None) -> None:
    assert scienceqa_letter(answer, published=True) == published
    assert scienceqa_letter(answer) == sound


@pytest.mark.parametrize(
    ("prediction", "reference", "published", "sound"),
    [
        ("A", "A", 1, 1),
        ("a", "A", 0, 1),
        ("A. Left", "A", 1, 1),
        ("The answer is C.", "C", 1, 1),
        ("Yes.", "Yes", 1, 1),
        ("yes, there is", "Yes", 0, 1),
        ("2", "2", 1, 1),
        ("two", "2", 0, 0),
    ],
)
def test_realworldqa(prediction: str, reference: str, published: float, sound: float) -> None:
    assert realworldqa_score(prediction, reference, published=True) == published
    assert realworldqa_score(prediction, reference) == sound


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("b", None, "B"),
        ("A dog", "A", None),
        ("(B) blue bus", "B", "B"),
        ("The answer is B", "B", "B"),
        ("It is a blue bus", "B", "B"),
        ("red car or blue bus", None, None),
        ("I see A red car", "A", "A"),
    ],
)
def test_mmbench(answer: str, published: str | None, sound: str | None) -> None:
    assert mmbench_letter(answer, COLOURS, published=True, static=False) == published
    assert mmbench_letter(answer, COLOURS) == sound


def test_mmbench_with_two_letters() -> None:
    assert mmbench_letter("The answer is B and C", COLOURS, published=True, static=False) is None
    assert mmbench_letter("The answer is B and C", COLOURS, published=True) == "C"
    assert mmbench_letter("The answer is B and C", COLOURS) is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("It is not B", None),
        ("It is not (B) but (C)", "C"),
        ("The answer is A or B", None),
        ("The answer is B, because A dog is there", "B"),
        ("Answer: B, C", None),
        ("(A) (B)", "A"),
        ("**B**", "B"),
        ("A is the best", "A"),
        ("I'd say B", "B"),
        ("The answer is Dog", None),
    ],
)
def test_the_sound_rule_wants_one_clear_letter(answer: str, letter: str | None) -> None:
    assert sound_letter(answer, "ABCD") == letter


def test_mmbench_groups_of_the_specification() -> None:
    assert mmbench_letter("Two it is", ["one", "two"], published=True) == "B"
    assert mmbench_letter("A. one", ["one", "two"], published=True) == "A"
    assert mmbench_letter("b", ["one", "two"], published=True) is None


@pytest.mark.parametrize(
    ("answer", "published", "sound"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("(B)", "B", "B"),
        ("The answer is B", "B", "B"),
        ("blue bus", "B", "B"),
        ("it is blue bus", "B", "B"),
        ("A dog", "A", None),
        ("I see A red car", "A", "A"),
        ("b", None, "B"),
        ("B and C", None, None),
        ("red car, blue bus", None, None),
        ("cannot tell", None, None),
        ("B is right since the rest of them look quite wrong to me", None, "B"),
        ("The answer is **B**. Because A and C fail here for sure today", "B", "B"),
        ("The answer is a dog", "A", None),
        ("Z", None, None),
    ],
)
def test_vlmevalkit(answer: str, published: str | None, sound: str | None) -> None:
    assert vlmevalkit_letter(answer, COLOURS, published=True) == published
    assert vlmevalkit_letter(answer, COLOURS) == sound


@given(st.text(alphabet="ABCDabcd .():,xyz", max_size=25))
def test_finders_return_a_letter_of_an_option_or_nothing(answer: str) -> None:
    for published in (False, True):
        assert find_letter(answer, "ABCD", published=published) in {*"ABCD", None}
        assert find_letter_or_option(answer, VEHICLES, published=published) in {*"ABCD", None}
        assert mmbench_letter(answer, COLOURS, published=published) in {*"ABCDE", None}


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "{})", "Answer: {}", "The answer is {}."]))
def test_plain_forms_are_read(letter: str, form: str) -> None:
    assert sound_letter(form.format(letter), "ABCD") == letter
    assert find_letter(form.format(letter), "ABCD", published=True) == letter
