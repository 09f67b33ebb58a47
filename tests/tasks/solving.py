"""Answers to the questions of the task `scenes`, from the facts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Facts = Sequence[Mapping[str, Any]]


SINGULAR = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "stars": "star",
    "crosses": "cross",
    "digits": "digit",
}


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def _number(objects: Facts, plural: str) -> int:
    return len([o for o in objects if o["kind"] == SINGULAR[plural]])


def _only(candidates: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    assert len(candidates) == 1, "the question has more than one reading"
    return candidates[0]


def solve(question: str, objects: Facts) -> str:
    """Answer a question from the list of objects alone, by the words of the question."""
    words = question.split()
    assert words.pop() == "?"
    match words:
        case ["is", "there", "a", colour, kind]:
            found = any(o["colour"] == colour and o["kind"] == kind for o in objects)
            return "yes" if found else "no"
        case ["what", "color", "is", "the", kind]:
            return str(_only([o for o in objects if o["kind"] == kind])["colour"])
        case ["what", "shape", "is", colour]:
            return str(_only([o for o in objects if o["colour"] == colour])["kind"])
        case ["how", "many", plural]:
            return NUMBERS[_number(objects, plural)]
        case ["which", "digit", "is", colour]:
            digits = [o for o in objects if o["value"] is not None and o["colour"] == colour]
            return str(_only(digits)["value"])
        case ["where", "is", "the", colour, kind]:
            item = _only([o for o in objects if (o["colour"], o["kind"]) == (colour, kind)])
            left, top, right, bottom = item["box"]
            x, y = (left + right) / 2, (top + bottom) / 2
            assert min(abs(x - 64), abs(y - 64)) >= 10, "too close to a border to be fair"
            return ("top " if y < 64 else "bottom ") + ("left" if x < 64 else "right")
        case ["are", "there", "more", first, "than", second]:
            a, b = _number(objects, first), _number(objects, second)
            assert a != b
            return "yes" if a > b else "no"
        case _:
            raise AssertionError(f"unknown question {question!r}")
