"""The VQA normaliser and soft accuracy. Source: lmms-eval 0.7.3 (TextVQA, VizWiz, VQAv2), VLMEvalKit 2026-08-18."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

Variant = Literal["full", "vqav2", "vlmevalkit"]

_MARKS: Final = ';/[]"{}()=+\\_-><@`,?!'
_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES: Final = frozenset({"a", "an", "the"})


def _contractions() -> dict[str, str]:
    """The published table of 120 contractions, built from its regular parts and its odd ones."""
    table: dict[str, str] = {}
    regular = {
        "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
        "'ve": "could might must not should they we what where who would you",
        "'d": "he how it someone something there they where who you",
        "'ll": "how it somebody someone something they what who why you",
        "'s": "he how somebody someone that there what when where who why",
        "'re": "there they what why you",
    }
    for ending, stems in regular.items():
        for stem in stems.split():
            table[stem + ending.replace("'", "")] = stem + ending
    for stem in ("could", "had", "might", "should", "would"):
        table[f"{stem}n'tve"] = table[f"{stem}nt've"] = f"{stem}n't've"
    for stem in ["he", "it", "she", "somebody", "someone", "something", "there", "they", "we", "who", "you"]:
        table[f"{stem}d've"] = table[f"{stem}'dve"] = f"{stem}'d've"
    for wrong in ("yall'd've", "y'alld've", "y'all'dve"):
        table[wrong] = "y'all'd've"
    for wrong in ("ow's'at", "'ows'at", "'ow'sat"):
        table[wrong] = "'ow's'at"
    return table | {
        "maam": "ma'am",
        "oclock": "o'clock",
        "twas": "'twas",
        "yall": "y'all",
        "yall'll": "y'all'll",
        "y'allll": "y'all'll",
        "somebody'd": "somebodyd",
        "let's": "let's",
        "she's": "she's",
        "Id've": "I'd've",
        "I'dve": "I'd've",
        "Im": "I'm",
        "Ive": "I've",
    }


CONTRACTIONS: Final = _contractions()
"""Contraction without its apostrophe, and the usual form."""


def clean_punctuation(text: str, *, keep_after_digit: bool = False) -> str:
    """Delete punctuation or replace it by a space (steps 3 and 4 of the normaliser).

    A mark is deleted if it stands beside a space anywhere in the text, or if the text has a comma between digits.
    Otherwise it becomes a space. The decision looks at the unchanged text. A full stop is deleted unless a digit
    follows.

    Args:
        text: What to clean.
        keep_after_digit: Keep a full stop after a digit, too (VLMEvalKit).
    """
    cleaned = text
    grouped = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or grouped else " ")
    if keep_after_digit:
        return re.sub(r"(?<!\d)\.(?!\d)", "", cleaned)
    return re.sub(r"\.(?!\d)", "", cleaned, count=32)  # the published call stops after 32


def normalise(text: str, variant: Variant = "full") -> str:
    """An answer in the form in which VQA benchmarks compare answers.

    Lower case, no articles, numbers from zero to ten as digits, contractions with their apostrophe.

    Args:
        text: The answer.
        variant: `full` for TextVQA and VizWiz. `vqav2` leaves out the first step, which deletes `,` and `?` and cuts
            off `'s`. `vlmevalkit` leaves it out, too, and keeps a full stop that touches a digit on either side.
    """
    if variant == "full":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = clean_punctuation(text, keep_after_digit=variant == "vlmevalkit")
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str], variant: Variant = "full") -> float:
    """Agreement with human answers.

    Formula: mean over the answers i of min(1, m_i / 3), with m_i = number of the other answers that equal the
    prediction. With ten answers the score is 0, 0.3, 0.6, 0.9 or 1. Without answers it is 0.
    """
    ours = normalise(prediction, variant)
    equal = [normalise(answer, variant) == ours for answer in answers]
    if not equal:
        return 0.0
    thirds = sum(min(3, sum(equal) - same) for same in equal)
    return thirds / (3 * len(equal))
