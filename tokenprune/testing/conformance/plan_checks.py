"""Laws of the plan: where the cuts are, and whether the counts meet the budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, IncompatibleError
from tokenprune.pruner import ModelFacts, Stop
from tokenprune.testing.conformance.check import Check
from tokenprune.testing.conformance.result import ConformanceError, NotApplicable
from tokenprune.testing.conformance.under_test import BUDGETS, FACTS, SHAPES, PrunerUnderTest, described, prefill

_TOKENS = (576, 256, 48)
_FLOOR = re.compile(r"(?:floor|under|below|least|minimum)\D{0,12}(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Planned:
    """What a pruner plans for a model, a budget and images of a number of tokens.

    Args:
        facts: Shape of the model.
        budget: The budget.
        tokens: Visual tokens of each image.
        stops: The plan.
    """

    facts: ModelFacts
    budget: Budget
    tokens: int
    stops: tuple[Stop, ...]

    def __str__(self) -> str:
        layers = "" if self.facts == FACTS else f" of a model of {self.facts.num_layers} layers"
        return f"plan for {self.tokens} tokens{layers} at {described(self.budget)}"


def _plans(tested: PrunerUnderTest) -> Iterator[Planned]:
    """Every plan that the pruner makes; budgets, and models other than the first one, may be refused.

    Raises:
        IncompatibleError: The pruner refuses the first model.
    """
    for facts in SHAPES:
        for tokens in _TOKENS:
            for budget in BUDGETS:
                try:
                    stops = tested.plan(budget, tokens, facts)
                except IncompatibleError:
                    if facts == FACTS:
                        raise
                    continue
                if stops is not None:
                    yield Planned(facts, budget, tokens, stops)


def ordered(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Stops come in running order, at declared sites that exist, with counts that never grow; asking twice is safe."""
    for plan in _plans(tested):
        if tested.plan(plan.budget, plan.tokens, plan.facts) != plan.stops:
            raise ConformanceError(str(plan), expected="the same twice", found="two plans")
        order = [stop.site.order for stop in plan.stops]
        if order != sorted(set(order)):
            sites = [str(stop.site) for stop in plan.stops]
            raise ConformanceError(str(plan), expected="distinct sites in running order", found=sites)
        for stop in plan.stops:
            _check_site(tested, stop, plan)
        counts = [stop.keep(plan.tokens) for stop in prefill(plan.stops) if not stop.auto]
        if counts != sorted(counts, reverse=True):
            raise ConformanceError(str(plan), expected="counts that never grow", found=counts)
    return ()


def _check_site(tested: PrunerUnderTest, stop: Stop, plan: Planned) -> None:
    site, where = stop.site, str(plan)
    if site.kind not in tested.spec.sites:
        raise ConformanceError(where, expected=f"declared sites {tested.spec.sites}", found=f"`{site}`")
    if site.kind == "tower" and not plan.facts.encoder_layers:
        raise ConformanceError(where, expected="a refusal: the encoder is not described", found=f"`{site}`")
    low, high = 0, 0
    if site.kind == "tower":
        high = plan.facts.encoder_read_layer
    elif site.kind in ("layer", "decode"):
        low, high = int(site.kind == "decode"), plan.facts.num_layers - 1
    if not low <= site.layer <= high:
        raise ConformanceError(where, expected=f"a layer of {low}..{high}, or a refusal", found=f"`{site}`")
    if stop.kv_from is not None and not 0 <= stop.kv_from <= site.decoder_layer:
        raise ConformanceError(where, expected=f"kv_from of 0..{site.decoder_layer}", found=stop.kv_from)


def met(tested: PrunerUnderTest) -> tuple[str, ...]:
    """The last count is the budget, by either account, unless the plan says that counts follow from the data."""
    if not tested.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    if not tested.pruner.reads_budget:
        raise NotApplicable("it reads no budget under these options")
    checked = False
    for plan in _plans(tested):
        cuts = prefill(plan.stops)
        promised = [stop for stop in cuts if not stop.auto]
        if cuts and not promised:
            continue
        checked = True
        withdraws = bool(promised) and promised[-1].drop_all
        if plan.budget.account == "kept" and not withdraws:
            found = promised[-1].keep(plan.tokens) if promised else plan.tokens
            wanted = plan.budget.count(plan.tokens)
            # a method that withdraws everything says so by its stops; without one it has only layers to offer
            if found != wanted and (promised or not _withdraws(tested, plan)):
                raise ConformanceError(str(plan), expected=f"{wanted} tokens in the end", found=found)
        elif plan.budget.account == "average" and not any(stop.auto and stop.site.kind != "tower" for stop in cuts):
            _check_average(plan, promised, coarse=withdraws or _withdraws(tested, plan))
    if not checked:
        raise NotApplicable("all counts follow from the data")
    return ()


def _withdraws(tested: PrunerUnderTest, plan: Planned) -> bool:
    """Whether the pruner's cuts leave nothing."""
    stops = tested.plan(Budget(ratio=0.5), plan.tokens, plan.facts) or ()
    return any(stop.drop_all for stop in stops)


def _check_average(plan: Planned, stops: list[Stop], *, coarse: bool) -> None:
    budget, tokens, layers = plan.budget, plan.tokens, plan.facts.num_layers
    asked = budget.ratio * tokens if budget.ratio is not None else float(budget.tokens or 0)
    found = layer_average(stops, tokens, layers)
    # whole tokens, or whole layers where every token is withdrawn at one of them
    room = max(0.5, tokens / layers / 2) if coarse else 0.5
    if abs(found - asked) > room + 1e-6:
        raise ConformanceError(
            str(plan), expected=f"{asked:.1f} tokens on the layers' average (within {room:.1f})", found=f"{found:.1f}"
        )


def layer_average(stops: Sequence[Stop], tokens: int, layers: int) -> float:
    """Visual tokens per decoder layer under a plan; a cut in the middle of a layer counts half of it."""
    total, before, start = 0.0, tokens, 0.0
    for stop in stops:
        depth = stop.site.decoder_layer + (0.5 if stop.site.point == "mid" and stop.site.kind == "layer" else 0.0)
        total += before * (depth - start)
        before, start = stop.keep(tokens), depth
    return (total + before * (layers - start)) / layers


def refused(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A budget below the floor is refused with the floor, and the floor itself is then admitted."""
    refusals = 0
    for facts in SHAPES:
        for tokens in _TOKENS:
            for budget in BUDGETS:
                try:
                    tested.pruner.plan(facts, budget, tokens)
                except BudgetError as error:
                    refusals += 1
                    _check_floor(tested, Planned(facts, budget, tokens, ()), error)
                except IncompatibleError:
                    if facts == FACTS:
                        raise
    if not refusals:
        raise NotApplicable("no budget that was tried is refused")
    return ()


def _check_floor(tested: PrunerUnderTest, plan: Planned, error: BudgetError) -> None:
    where, budget, tokens = f"refusal of the {plan}", plan.budget, plan.tokens
    named = _FLOOR.search(error.message)
    if named is None:
        raise ConformanceError(where, expected="a message that names the floor in tokens", found=error.message)
    floor = float(named[1])
    asked = budget.ratio * tokens if budget.ratio is not None else float(budget.tokens or 0)
    if not asked < floor <= tokens:
        raise ConformanceError(where, expected=f"a floor between {asked:.1f} and {tokens}", found=floor)
    if not error.hint:
        raise ConformanceError(where, expected="a hint", found="none")
    least = Budget(tokens=min(tokens, math.ceil(floor + 0.5)), account=budget.account)
    if tested.plan(least, tokens, plan.facts) is None:
        raise ConformanceError(where, expected=f"{least.tokens} tokens to be admitted", found="another refusal")


CHECKS = (
    Check("plan", "plan", "stops are sorted, declared and possible, with counts that never grow", ordered),
    Check("budget", "plan", "the plan meets every budget that it admits, by both accounts", met),
    Check("floor", "plan", "a budget below the floor is refused with the floor", refused),
)
