"""Finders of an option letter that belong to one benchmark each.

Source: lmms-eval 0.7.3, VLMEvalKit 2026-08-18. The sound form of each is `sound_letter`; `published=True` gives the
published rule. An answer without a letter is `None` in both forms, never a random guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tokenprune.tasks.scoring.letters import find_letter, letters_for, pick_option, sound_letter, strip_marks
from tokenprune.tasks.scoring.text import exact_match
from tokenprune.tasks.scoring.vqa import clean_punctuation
from tokenprune.tasks.scoring.yes_no import read_yes_no

_LONG_PHRASES: Final = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
_SHAPES: Final = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def mvbench_letter(answer: str, options: Sequence[str] = (), *, published: bool = False) -> str | None:
    """The letter for MVBench, A to E.

    The published rule takes the first stand-alone a to e in any case, so that an article is A (`a man walks`), and
    `(B) or (A)` is B. Sound: an article is no letter, and two letters are `None`.
    """
    if not published:
        return sound_letter(answer, letters_for(len(options) or 5), options)
    labelled = re.match(r"\s*([A-Ea-e])\.\s*\S", answer)
    if labelled:
        return labelled[1].upper()
    text = clean_punctuation(" ".join(answer.split())).strip("\"'()[]{}").lower()
    found = re.search(r"\b[a-e]\b", text)
    return found[0].upper() if found else None


def egoschema_letter(answer: str, options: Sequence[str], *, published: bool = False) -> str | None:
    """The letter for EgoSchema.

    The published rule takes the leftmost of all letters, so that an article is A (`A person repairs so C`) and
    `A or C` is A; without a find it draws a random letter. Sound: C, and `None`.

    Args:
        answer: What the model wrote.
        options: The options without their letters. The published rule compares texts only with the letter in front.
        published: Use the published rule.
    """
    letters = letters_for(len(options))
    if not published:
        return sound_letter(answer, letters, options)
    core = strip_marks(answer, ",.!?;:'")
    text = f" {core} "
    places: dict[str, int] = {}
    for letter in letters:
        if f"({letter})" in text:
            places[letter] = text.rfind(f"({letter})")
        elif f"{letter} " in text or f"{letter}." in text:
            places[letter] = text.rfind(f" {letter} ")
    return min(places, key=places.__getitem__) if places else None


def longvideobench_letter(answer: str, options: Sequence[str] = (), *, published: bool = False) -> str | None:
    """The letter for LongVideoBench, A to E.

    The published rule deletes eight phrases and takes the first capital A to E, even inside a word (`Because C` is
    B); without one it draws a random letter. Sound: C, and `None`.
    """
    if not published:
        return sound_letter(answer, letters_for(len(options) or 5), options)
    text = answer.strip()
    for phrase in _LONG_PHRASES:
        text = text.replace(phrase, "")
    found = re.search(r"[A-E]", text)
    return found[0] if found else None


def seed_letter(answer: str, *, published: bool = False) -> str | None:
    """The letter for SEED-Bench, A to D.

    The published rule takes the first character (`Apple` is A, `(A)` is nothing). Sound: `None`, and A.
    """
    if not published:
        return sound_letter(answer, "ABCD")
    first = answer.strip()[:1].upper()
    return first if first and first in "ABCD" else None


def ai2d_letter(answer: str, letters: str = "ABCD", *, published: bool = False) -> str | None:
    """The letter for AI2D.

    The published rule reads `B. leaf` and a lone letter with punctuation, but not `B) leaf` or `The answer is B.`
    Sound: B for all of them.
    """
    if not published:
        return sound_letter(answer, letters)
    labelled = re.match(r"\s*([A-Z])\.", answer)
    kept = labelled[1] if labelled else answer
    return next((letter for letter in letters if exact_match(kept, letter)), None)


def scienceqa_letter(answer: str, letters: str = "ABCDE", *, published: bool = False) -> str | None:
    """The letter for ScienceQA.

    The published rule reads a lone letter in any case and a capital letter with a full stop at the start, but not
    `(B)` or `The answer is B`. Sound: B for both.
    """
    if not published:
        return sound_letter(answer, letters)
    text = answer.strip()
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    labelled = re.match(r"([A-Z])\.", text)
    return labelled[1] if labelled and labelled[1] in letters else None


def realworldqa_score(prediction: str, reference: str, *, published: bool = False) -> float:
    """1 if the prediction is right, otherwise 0 (RealWorldQA).

    A reference A to D is compared by letter, another one by equal texts in lower case. The published rule accepts a
    full stop at the end, but not `yes, there is` for `Yes`. The sound form reads yes and no by `read_yes_no`.
    """
    wanted = reference.strip()
    if len(wanted) == 1 and wanted.upper() in "ABCD":
        return float(find_letter(prediction, "ABCD", published=published) == wanted.upper())
    if not published and wanted.lower() in {"yes", "no"}:
        return float(read_yes_no(prediction) == wanted.lower())
    return float(prediction.lower().strip().rstrip(".") == reference.lower())


def _mmbench_token(answer: str) -> str | None:
    tokens = answer.split()
    plain = [letter for letter in "ABCDE" if letter in tokens]
    if len(plain) == 1:
        return None if plain == ["A"] and len(tokens) > 3 else plain[0]
    for shape in _SHAPES:
        found = [letter for letter in "ABCDE" if shape.format(letter) in tokens]
        if len(found) == 1:
            return found[0]
    return None


def mmbench_letter(answer: str, options: Sequence[str], *, published: bool = False, static: bool = True) -> str | None:
    """The letter for MMBench.

    The published rule tries words, then option texts inside the answer, then `find_letter`. An article in a short
    answer is A (`A dog`). `The answer is B and C` is C by the last step. Sound: `None` for both.

    Args:
        answer: What the model wrote.
        options: The texts of the options that exist, A first.
        published: Use the published rule.
        static: The published rule ends with `find_letter`; False leaves this step out.
    """
    letters = letters_for(len(options))
    if not published:
        return sound_letter(answer, letters, options)
    found = _mmbench_token(answer) or pick_option(answer, options, whole_words=False)
    return found or (find_letter(answer, letters, published=True) if static else None)


def vlmevalkit_letter(answer: str, options: Sequence[str], *, published: bool = False) -> str | None:
    """The letter by VLMEvalKit's rule without a judge.

    The published rule wants one letter among the last four words, then `answer is` with a letter in any case (an
    article is A in `The answer is a dog`), then one option text. `Z`, its mark for a refusal, is `None` here. Its
    list of refusals is left out: they name no option. Sound: an article is no letter.
    """
    letters = letters_for(len(options))
    if not published:
        return sound_letter(answer, letters, options)
    tokens = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    found = [letter for letter in letters if letter in tokens]
    if len(found) == 1 and tokens.index(found[0]) > len(tokens) - 5:
        return found[0]
    if not found and "Z" in tokens:
        return None
    announced = re.search(r"answer is\s*\**\s*([A-D])\b", answer, re.IGNORECASE)
    if announced:
        return announced[1].upper()
    if len(answer) > 2 * sum(map(len, options)):
        return None
    return pick_option(answer, options, whole_words=False)
