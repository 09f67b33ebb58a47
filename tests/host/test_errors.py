"""The error tree: each class has a message, a hint and an exit code."""

from __future__ import annotations

import pytest

from tokenprune import errors
from tokenprune.errors import ExitCode, TokenPruneError, UnknownNameError

CLASSES = [
    member
    for member in vars(errors).values()
    if isinstance(member, type) and issubclass(member, TokenPruneError) and member is not UnknownNameError
]


def test_the_tree_is_not_empty() -> None:
    assert len(CLASSES) >= 8


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_carries_message_hint_and_exit_code(kind: type[TokenPruneError]) -> None:
    error = kind("what is wrong", hint="what to do")
    assert (str(error), error.message, error.hint) == ("what is wrong", "what is wrong", "what to do")
    assert error.exit_code in set(ExitCode)


def test_an_unknown_name_reads_as_a_sentence_although_it_is_a_key_error() -> None:
    error = UnknownNameError("task", "scene", ["scenes"])
    assert isinstance(error, KeyError)
    assert str(error) == "unknown task `scene`"
    assert error.close_matches == ("scenes",)
