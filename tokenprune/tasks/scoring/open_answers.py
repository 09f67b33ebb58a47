"""Open answers of MMMU, and containment in OCRBench. Source: lmms-eval 0.7.3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tokenprune.tasks.scoring.text import contains

Candidate = str | float

_INDICATORS: Final = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_GROUPED: Final = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC: Final = re.compile(r"-?\d+(?:\.\d+)?[eE][-+]?\d+")
_PLAIN: Final = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][-+]?\d+)(?![,\d])")
_NUMBER: Final = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_FULL_WIDTH: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def _normalise(text: str) -> list[Candidate]:
    """A number rounded to two decimals, or a text in lower case; one character becomes two variants with a space."""
    text = text.strip()
    plain = text.replace(",", "")
    if _NUMBER.fullmatch(plain):
        return [round(float(plain), 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _numbers(text: str, *, published: bool) -> list[str]:
    grouped = _GROUPED.findall(text)
    rest = text if published else _GROUPED.sub(" ", text)
    return [*grouped, *_SCIENTIFIC.findall(rest), *_PLAIN.findall(rest)]


def mmmu_candidates(answer: str, *, published: bool = False) -> list[Candidate]:
    """What an open answer may mean: texts, and numbers rounded to two decimals, each once.

    Per line the shortest text after a word such as `is` or `answer` is kept (after `=` in the last line, too); the
    whole answer if no line has one. All numbers in what was kept are added. The published rule reads `1,234` as
    1234 and as 234; the sound form reads 1234 alone.
    """
    text = answer.strip().strip(".").lower()
    lines = text.split("\n")
    kept: list[str] = []
    for place, line in enumerate(lines):
        words = (*_INDICATORS, "=") if place == len(lines) - 1 else _INDICATORS
        tails = [line.split(word)[-1].strip() for word in words if word in line]
        shortest = min(tails, key=len, default="")
        if shortest and shortest not in set(":,.!?;'"):
            kept.append(shortest)
    kept = kept or [text]
    texts = [*kept, *(number for one in kept for number in _numbers(one, published=published))]
    return list(dict.fromkeys(variant for one in texts for variant in _normalise(one)))


def mmmu_open_score(prediction: str, references: str | Sequence[str], *, published: bool = False) -> float:
    """1 if a text reference is contained in a text candidate or a number equals a number; otherwise 0.

    The published rule finds a reference inside words (`It is blueish` contains `blue`). The sound form wants whole
    words. A list of references must be given as a list, not as one string.
    """
    known = [references] if isinstance(references, str) else list(references)
    wanted = [variant for one in known if one.strip() for variant in _normalise(one)]
    for candidate in mmmu_candidates(prediction, published=published):
        for reference in wanted:
            if isinstance(candidate, str) and isinstance(reference, str):
                if (reference in candidate) if published else contains(candidate, reference):
                    return 1.0
            elif candidate == reference:
                return 1.0
    return 0.0


def ocrbench_score(
    prediction: str, answers: str | Sequence[str], *, formula: bool = False, published: bool = False
) -> float:
    """1 if one of the answers is contained in the prediction, otherwise 0 (OCRBench).

    The published rule finds an answer inside words (`no answer` contains `a`). The sound form wants whole words, and
    an empty answer never counts.

    Args:
        prediction: What the model wrote.
        answers: One answer or several.
        formula: The row is a handwritten formula (`HME100k`): spaces are deleted, case counts, and the parts of a
            formula are no words, so both forms search anywhere. All other rows ignore case and the width of
            characters.
        published: Use the published rule.
    """
    known = [answers] if isinstance(answers, str) else list(answers)

    def clean(text: str) -> str:
        if formula:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")

    ours = clean(prediction)
    for answer in map(clean, known):
        if published and answer in ours:
            return 1.0
        if not published and contains(ours, answer, ignore_case=False, whole_words=not formula):
            return 1.0
    return 0.0
