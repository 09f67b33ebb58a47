"""The laws that every pruner keeps, as checks that any test suite can run.

A plugin's whole test file:

    import pytest
    from tokenprune.testing import conformance

    @pytest.mark.parametrize("check", conformance.checks(), ids=str)
    @pytest.mark.parametrize("options", conformance.variants("my-pruner"), ids=str)
    def test_my_pruner(options, check):
        check.run("my-pruner", options=options)

`tokenprune check my-pruner` runs the same checks.
"""

from __future__ import annotations

from tokenprune.testing.conformance import choice_checks, model_checks, plan_checks, spec_checks
from tokenprune.testing.conformance.check import Check, Group
from tokenprune.testing.conformance.result import ConformanceError, ConformanceWarning, Result
from tokenprune.testing.conformance.under_test import BUDGETS, PrunerUnderTest, variants

__all__ = [
    "BUDGETS",
    "Check",
    "ConformanceError",
    "ConformanceWarning",
    "Group",
    "PrunerUnderTest",
    "Result",
    "checks",
    "variants",
]


def checks(*groups: Group) -> tuple[Check, ...]:
    """Every check, or those of some groups (`spec`, `plan`, `choice`, `model`), in the order in which they run.

    Example:
        >>> from tokenprune.testing import conformance
        >>> first, *others = conformance.checks("choice")
        >>> first.law, first.run("divprune").status
        ('every stop emits what its budget says, unless it says `auto`', 'ok')
    """
    every = (*spec_checks.CHECKS, *plan_checks.CHECKS, *choice_checks.CHECKS, *model_checks.CHECKS)
    return tuple(check for check in every if not groups or check.group in groups)
