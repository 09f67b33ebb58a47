"""The laws that every pruner keeps, as checks that any test suite can run.

A plugin's whole test file:

    import pytest
    from tokenprune.testing import conformance

    @pytest.mark.parametrize("check", conformance.checks(), ids=str)
    def test_my_pruner(check):
        check.run("my-pruner")

`tokenprune check my-pruner` runs the same checks.
"""

from __future__ import annotations

from tokenprune.testing.conformance import choices, models, plans, specs
from tokenprune.testing.conformance.check import Check, Group
from tokenprune.testing.conformance.subject import BUDGETS, Subject
from tokenprune.testing.conformance.verdict import ConformanceError, ConformanceWarning, Result

__all__ = [
    "BUDGETS",
    "Check",
    "ConformanceError",
    "ConformanceWarning",
    "Group",
    "Result",
    "Subject",
    "checks",
]


def checks(*groups: Group) -> tuple[Check, ...]:
    """Every check, or those of some groups (`spec`, `plan`, `choice`, `model`), in the order in which they run.

    Example:
        >>> from tokenprune.testing import conformance
        >>> first, *others = conformance.checks("choice")
        >>> first.law, first.run("divprune").status
        ('every stop emits what its budget says, unless it says `auto`', 'ok')
    """
    every = (*specs.CHECKS, *plans.CHECKS, *choices.CHECKS, *models.CHECKS)
    return tuple(check for check in every if not groups or check.group in groups)
