"""The law of ties: of equal tokens the one with the higher index is not preferred."""

from __future__ import annotations

import torch

from tokenprune.pruner import Stop
from tokenprune.testing.conformance.plan_run import PlanRun, copied, in_order, pictures, rounded, run_plan
from tokenprune.testing.conformance.result import ConformanceError, NotApplicable
from tokenprune.testing.conformance.under_test import PrunerUnderTest
from tokenprune.testing.recording import Recording

_ROUNDINGS = 48
"""Runs with other roundings that the law looks at when a copy stays without its original."""

_ALL_OF = 24
"""Runs that a copy must win without losing one before it counts as preferred: chance does so once in 2 ** 24."""

_ORDERS = 4
"""Orders of the tokens in which a choice by content must be the same."""


def lower_first(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Of equal tokens the higher index is not preferred, where the choice looks at content alone.

    Scores of two copies need not be equal to the last bit: a matrix product may add the terms of one row in another
    order than those of the next, depending on the machine's library. Scores that are equal within rounding count as
    tied, and either copy may stay. If a copy stays without its original, the law looks whether rounding decides: it
    changes every number of every token by about as much as rounding does, many times. Copy and original are then equal
    in all but chance, so of the runs in which one of them stays alone, each wins about half. If the copy wins all of
    them, the pruner prefers the higher index.
    """
    recording = copied(pictures(5))
    plans = (
        [plan for budget in tested.budgets if (plan := tested.plan(budget, recording.tokens))] if tested.cuts else []
    )
    plans = [plan for plan in plans if _by_content(tested, plan)]
    for plan in plans:
        _check_originals(tested, plan, recording)
    if not plans:
        raise NotApplicable("the choice depends on where tokens are, not on what they hold alone")
    return ()


def _by_content(tested: PrunerUnderTest, stops: tuple[Stop, ...]) -> bool:
    """Whether the same tokens stay when they come in other orders."""
    plain = pictures(6)
    first = [row.sort().values.tolist() for row in run_plan(tested.pruner, stops, plain).indices]
    for seed in range(_ORDERS):
        order = torch.randperm(plain.tokens, generator=torch.Generator().manual_seed(seed))
        mixed = run_plan(tested.pruner, stops, in_order(plain, order))
        if [order[row].sort().values.tolist() for row in mixed.indices] != first:
            return False
    return True


def _check_originals(tested: PrunerUnderTest, stops: tuple[Stop, ...], recording: Recording) -> None:
    """No copy in the second half is preferred to its original in the first half."""
    half = recording.tokens // 2
    originals, copies = _halves(run_plan(tested.pruner, stops, recording), half)
    suspects = dict.fromkeys(sorted(copies - originals), 0)
    for seed in range(_ROUNDINGS):
        if not suspects:
            return
        originals, copies = _halves(run_plan(tested.pruner, stops, rounded(recording, seed)), half)
        alone = copies - originals
        suspects = {pair: won + (pair in alone) for pair, won in suspects.items() if pair not in originals - copies}
    for (unit, original), won in suspects.items():
        if won >= _ALL_OF:
            raise ConformanceError(
                f"unit {unit}, whose second half repeats the first",
                expected=f"token {original} before its copy {original + half}",
                found=f"the copy only, also in all {won} runs with other roundings that kept one of the two",
            )


def _halves(run: PlanRun, half: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Unit and original of each token in the first half that stayed, and of each copy in the second half."""
    stayed = [(unit, index) for unit, kept in enumerate(run.indices) for index in kept.tolist()]
    originals = {(unit, index) for unit, index in stayed if index < half}
    return originals, {(unit, index - half) for unit, index in stayed if index >= half}
