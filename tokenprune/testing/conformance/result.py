"""How a check ends: kept, kept with a remark, broken, or without a say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warned", "failed", "skipped"]


class ConformanceError(AssertionError):
    """A pruner breaks a law.

    Args:
        what: What was looked at.
        expected: What the law asks for.
        found: What the pruner did.
    """

    def __init__(self, what: str, *, expected: object, found: object) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.what = what
        self.expected = str(expected)
        self.found = str(found)


class ConformanceWarning(UserWarning):
    """A pruner keeps the law, but says more than it does."""


class NotApplicable(Exception):
    """A law that does not apply, with the reason."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check.

    Args:
        check: Name of the check.
        status: `ok`, `warned` (kept, with a remark), `failed` or `skipped`.
        what: What was looked at when it failed; the reason of a skip or a warning.
        expected: What the law asks for, where it failed.
        found: What the pruner did, where it failed.
    """

    check: str
    status: Status
    what: str = ""
    expected: str = ""
    found: str = ""

    def line(self) -> str:
        """One line for people."""
        if self.status == "ok":
            return f"{self.check}: ok"
        if self.status == "failed":
            return f"{self.check}: failed: {self.what}: expected {self.expected}, found {self.found}"
        return f"{self.check}: {self.status} ({self.what})"
