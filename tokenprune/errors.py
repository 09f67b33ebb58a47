"""The errors that users can cause; each has a hint that says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line. A bug of tokenprune and a failed check of something else never share a code."""

    meaning: str
    """Explanation for the documentation."""

    OK = 0, "all is well"
    UNEXPECTED = 1, "an unexpected error: a bug of tokenprune or of a plugin"
    USAGE = 2, "a mistake in the command, in a file that it reads, or in what is installed"
    FAILED_CELLS = 3, "cells of a sweep, or runs of a study, failed"
    VERDICT = 4, "what was examined is not well: `check` found a broken law, `doctor` something bad"
    INTERRUPTED = 130, "interrupted by Ctrl-C or SIGTERM"

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """A code with its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code


class TokenPruneError(Exception):
    """Base of all errors of tokenprune: a one-line message and a hint.

    Args:
        message: What is wrong, with the value and what is allowed; it starts in lower case and has no full stop.
        hint: What to do next, or an empty string.
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(TokenPruneError, ValueError):
    """A sweep file, an option or an argument is not valid."""


class BudgetError(TokenPruneError, ValueError):
    """A budget is out of range, or a pruner cannot meet it."""


class UnknownNameError(TokenPruneError, KeyError):
    """A name is not in a registry; the hint names the close matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if close:
            hint = "did you mean " + " or ".join(f"`{match}`" for match in close) + "?"
        else:
            hint = "known: " + (", ".join(f"`{known_name}`" for known_name in names) or "none")
        super().__init__(f"unknown {kind} `{name}`", hint=hint)
        self.kind = kind
        self.name = name
        self.close_matches = tuple(close)

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return self.message


class IncompatibleError(TokenPruneError, RuntimeError):
    """A pruner cannot work with this model, site, attention kernel or cache."""


class UndeclaredNeedError(TokenPruneError, RuntimeError):
    """A pruner asked its view for something that its spec does not declare."""


class NothingPrunedError(TokenPruneError, RuntimeError):
    """A run should have pruned and did not, or a pruner's decision is not valid."""


class NotFiniteError(TokenPruneError, RuntimeError):
    """A pruner's inputs or its decision hold NaN or infinite values."""


class PluginError(TokenPruneError):
    """A plugin is broken, misspelt, duplicate or too old."""


class PrerequisiteError(TokenPruneError):
    """A package, a file or a device that a command needs is missing."""
