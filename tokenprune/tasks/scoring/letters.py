"""Finders of an option letter in an answer: the sound one, and the two that most benchmarks share.

Source of the published rules: lmms-eval 0.7.3. Every finder returns `None` if it finds no letter. Such an answer is
wrong and never a random guess.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Final

from tokenprune.tasks.scoring.text import contains

_STAND_ALONE: Final = r"(?<![\w'\u2019])([{letters}])(?![\w'\u2019])"
_ANNOUNCED: Final = (
    r"(?i:\b(?:answer|option|choice)(?:\s+is\b\s*:?|\s*:)|\bi\s+(?:choose|select|pick))"
    r"\s*[\"'*(\[]*([{letters}])(?![\w'\u2019])"
)
_AND_ANOTHER: Final = (
    r"[\s.:)\]\"'*]*(?:[,/&]|\bor\b|\band\b)[\s(\[\"'*]*(?:(?:or|and)\s+)?\(?[{letters}](?![\w'\u2019])"
)
_PHRASES: Final = (
    *(f"{the}{kind}answer is" for the in ("", "the ") for kind in ("", "correct ", "best ")),
    *(f"{the}{kind}option is" for the in ("", "the ") for kind in ("correct ", "best ")),
    *(f"{the}{kind}choice is" for the in ("", "the ") for kind in ("", "correct ")),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def letters_for(count: int) -> str:
    """The letters of so many options."""
    return string.ascii_uppercase[:count]


def pick_option(answer: str, options: Sequence[str], *, whole_words: bool = True) -> str | None:
    """The letter of the only option whose text occurs in the answer, in any case.

    With `whole_words`, no letter or digit may touch the text, and an option inside a longer option that was found
    (`car` in `red car`) does not count.
    """
    found = {
        letter: option.lower().strip()
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
        if (contains(answer, option) if whole_words else option.lower() in answer.lower())
    }
    if whole_words:
        found = {k: v for k, v in found.items() if not any(v != other and v in other for other in found.values())}
    return next(iter(found)) if len(found) == 1 else None


def sound_letter(answer: str, letters: str, options: Sequence[str] = ()) -> str | None:
    """The option that an answer clearly chooses, or `None`.

    The first rule that applies decides:

    1. The answer is one letter in any case, with or without punctuation: `b`, `(B)`, `B.`
    2. A phrase announces a capital letter: `The answer is B`, `Answer: (C)`. Different announced letters, or
       another letter right after it (`B and C`): `None`.
    3. The answer starts with a marked capital letter: `B. text`, `B) text`, `B: text`, `(B) text`. Another letter
       right after it (`(B) or (A)`): `None`.
    4. Exactly one of the capital letters stands alone as a word. `A` or `I` before a word is an article or a
       pronoun, unless the word is `or`, `and`, `is`, `because` or `since`. A letter after `not` does not count.
       Several letters: `None`.
    5. The text of exactly one option occurs as whole words.
    """
    text = answer.strip()
    bare = text.strip(string.punctuation + string.whitespace).upper()
    if len(bare) == 1 and bare in letters:
        return bare
    another = re.compile(_AND_ANOTHER.format(letters=letters))
    finds = list(re.finditer(_ANNOUNCED.format(letters=letters), text))
    if finds:
        clear = len({found[1] for found in finds}) == 1 and not any(another.match(text, f.end()) for f in finds)
        return finds[0][1] if clear else None
    start = re.match(rf"[\"'*]*(?:\(([{letters}])\)|([{letters}])[.):])(?!\w)", text)
    if start:
        return None if another.match(text, start.end()) else start[1] or start[2]
    alone = set()
    for found in re.finditer(_STAND_ALONE.format(letters=letters), text):
        article = found[1] in "AI" and re.match(r"\s+(?!(?:or|and|is|because|since)\b)\w", text[found.end() :])
        negated = re.search(r"\bnot\s*\(?$", text[: found.start()], re.IGNORECASE)
        if not article and not negated:
            alone.add(found[1])
    if alone:
        return alone.pop() if len(alone) == 1 else None
    return pick_option(text, options)


def strip_marks(answer: str, marks: str) -> str:
    """Strip each mark in turn from both ends, once."""
    for mark in marks:
        answer = answer.strip(mark)
    return answer


def find_letter(answer: str, letters: str = "ABCDEFGH", *, published: bool = False) -> str | None:
    """The letter in an answer (MMStar, RealWorldQA, MLVU, Video-MME, the last step of MMBench).

    Accidents of the published rule, and the sound form (`sound_letter`):

    - Without another find it takes the last capital letter inside any word (`CAT` gives A). Sound: `None`.
    - `DNA ` gives A, because `A` and a space occur in it. Sound: a letter must stand alone.
    - An article at the start beats the answer at the end (`A dog is near B` gives A). Sound: B.
    - After a phrase the last capital letter wins (`The answer is D. A is wrong` gives A). Sound: D.
    - `A or B` gives B. Sound: `None`.
    - A lower-case `b` is not read. Sound: B, if it is the whole answer.

    Args:
        answer: What the model wrote.
        letters: The letters of the options.
        published: Use the published rule.
    """
    if not published:
        return sound_letter(answer, letters)
    core = strip_marks(answer.strip(), ",.!?;:'\"")
    if not core:
        return None
    text = f" {core} "
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        for kind, shape in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
            (2, f"{letter} "),
        ):
            if shape in text:
                found.append((kind, text.rfind(shape), letter))
        if core[0] == letter and not core[1:2].isalpha():
            found.append((10, 0, letter))
        if core[-1] == letter and not core[-2:-1].isalpha():
            found.append((9, len(core), letter))
        for phrase in _PHRASES:
            begin = text.lower().find(phrase)
            place = text.find(letter, begin + len(phrase)) if begin >= 0 else -1
            if place >= 0:
                found.append((7, place, letter))
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda item: item[:2])[2] if found else None


def find_letter_or_option(answer: str, options: Sequence[str], *, published: bool = False) -> str | None:
    """The letter in an answer, or the letter of the option that it names (MMMU, NExT-QA).

    Accidents of the published rule, and the sound form (`sound_letter` with the option texts):

    - Without a find it draws a random letter. Here that is `None` in both forms, so that the caller can count it.
    - An article is option A (`A dog`), and so is `DNA `. Sound: `None`.
    - The last letter wins (`The answer is (C) not (A)` gives A, `B or C` gives C). Sound: C, and `None`.
    - The text of an option counts only in answers of more than five words. Sound: in all answers.
    - A lower-case `b` is not read. Sound: B, if it is the whole answer.

    Args:
        answer: What the model wrote.
        options: The texts of the options, A first.
        published: Use the published rule.
    """
    letters = letters_for(len(options))
    if not published:
        return sound_letter(answer, letters, options)
    core = strip_marks(answer, ",.!?;:'")
    text = f" {core} "
    for shape, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        places = {letter: text.rfind(place.format(letter)) for letter in letters if shape.format(letter) in text}
        if places:
            return max(places, key=places.__getitem__)
    if len(text.split()) <= 5:
        return None
    lower = text.lower()
    places = {letter: lower.rfind(one.lower()) for letter, one in zip(letters, options, strict=True)}
    named = [letter for letter, at in places.items() if at >= 0]
    return max(named, key=places.__getitem__) if named else None
