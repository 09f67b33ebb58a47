"""Equality, containment and numbers. Source: lmms-eval 0.7.3 (`exact_match`); containment and numbers are our own."""

from __future__ import annotations

import re
import string
from typing import Final

_DELETE: Final = str.maketrans("", "", string.punctuation)
_NUMBER: Final = re.compile(
    r"(?P<sign>[-+]?)\s*[$€£¥]?\s*(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?P<power>e[-+]?\d+)?"
    r"\s*(?:%|[^\W\d_]+)?\.?",
    re.IGNORECASE,
)


def exact_match(prediction: str, reference: str, *, ignore_case: bool = True, ignore_punctuation: bool = True) -> float:
    """1 if the texts are equal, otherwise 0 (lmms-eval `exact_match`: GQA, AI2D).

    White space around the prediction is removed. Punctuation is deleted, not replaced by a space. Articles, plurals
    and number words are left alone.
    """
    ours, theirs = prediction.strip(), reference
    if ignore_case:
        ours, theirs = ours.lower(), theirs.lower()
    if ignore_punctuation:
        ours, theirs = ours.translate(_DELETE), theirs.translate(_DELETE)
    return float(ours == theirs)


def contains(prediction: str, reference: str, *, ignore_case: bool = True, whole_words: bool = True) -> float:
    """1 if the reference occurs in the prediction, otherwise 0.

    An empty reference never occurs. With `whole_words`, no letter or digit may touch the occurrence: `blueish` does
    not contain `blue`.
    """
    ours, theirs = prediction, reference.strip()
    if ignore_case:
        ours, theirs = ours.lower(), theirs.lower()
    if not theirs:
        return 0.0
    if not whole_words:
        return float(theirs in ours)
    return float(re.search(rf"(?<![^\W_]){re.escape(theirs)}(?![^\W_])", ours) is not None)


def read_number(text: str) -> float | None:
    """The number that a text consists of, or `None`.

    The whole text must be: an optional sign, an optional currency sign, digits, an optional unit (one word or `%`)
    and an optional full stop. Commas are accepted between groups of three digits. The unit is ignored: `5 kg`, `$5`
    and `5%` are 5.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    return float(found["sign"] + found["digits"].replace(",", "") + (found["power"] or ""))


def number_match(prediction: str, reference: str, *, tolerance: float = 0.0) -> float:
    """1 if both texts are numbers by `read_number` and differ by at most `tolerance`, otherwise 0."""
    ours, theirs = read_number(prediction), read_number(reference)
    return float(ours is not None and theirs is not None and (ours == theirs or abs(ours - theirs) <= tolerance))
