"""Readers of yes and no. Source: lmms-eval 0.7.3 (POPE, MME, HallusionBench), VLMEvalKit 2026-08-18.

Every reader returns `None` for an answer that it cannot read; such an answer is wrong.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from tokenprune.tasks.scoring.vqa import clean_punctuation

YesNo = Literal["yes", "no"]

_UNDECIDED: Final = re.compile(r"\W*(?:yes|no)\s*(?:/|\bor\b|\band\b)\s*(?:yes|no)\b")
_FIRST: Final = re.compile(r"\W*(yes|no)\b")


def _as_answer(word: str) -> YesNo | None:
    if word == "yes":
        return "yes"
    return "no" if word == "no" else None


def read_yes_no(answer: str) -> YesNo | None:
    """Yes or no, if the answer says one of them clearly.

    The first word decides (`Yes, there is no doubt` is yes). Otherwise the only one of the two words decides
    (`I think yes`). `yes or no` is neither. `y` and `n` count if they are the whole answer. Parts of words never
    count (`know`, `yesterday`, `nope`).
    """
    text = answer.strip().lower()
    if _UNDECIDED.match(text):
        return None
    first = _FIRST.match(text)
    if first:
        return _as_answer(first[1])
    short = {"y": "yes", "n": "no"}.get(text.strip(".! "))
    words = set(re.findall(r"\b(?:yes|no)\b", text))
    return _as_answer(short or (words.pop() if len(words) == 1 else ""))


def pope_answer(answer: str, *, published: bool = False) -> YesNo | None:
    """Yes or no for POPE.

    The published rule wants exactly `yes` or `no` in any case, so that a full stop makes an answer wrong. The sound
    form is `read_yes_no`.
    """
    return _as_answer(answer.lower().strip()) if published else read_yes_no(answer)


def mme_answer(answer: str, *, published: bool = False) -> YesNo | None:
    """Yes or no for MME.

    The published rule searches the first four characters, so that `not sure`, `know it` and `nope` are no, and
    `I think yes` is nothing. The sound form is `read_yes_no`.
    """
    if not published:
        return read_yes_no(answer)
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return _as_answer({"y": "yes", "n": "no"}.get(text, ""))
    return _as_answer("yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "")


def hallusion_answer(answer: str, *, published: bool = False) -> YesNo | None:
    """Yes or no for HallusionBench without a judge.

    The published fallback says yes if `yes` occurs anywhere (`No, yesterday`), else no (`It depends`). The sound
    form is `read_yes_no`.
    """
    if not published:
        return read_yes_no(answer)
    return "yes" if "yes" in answer.lower() else "no"


def vlmevalkit_answer(answer: str) -> YesNo | None:
    """Yes or no by VLMEvalKit: the word `yes` without `no`, or the reverse; otherwise `None`.

    `Yes, there is no doubt` is `None`; `read_yes_no` reads it as yes.
    """
    words = set(clean_punctuation(answer.lower(), keep_after_digit=True).split()) & {"yes", "no"}
    return _as_answer(words.pop()) if len(words) == 1 else None
