"""Laws of the plan: where the cuts are, and whether the counts meet the budget."""

from __future__ import annotations

import math
import re

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError
from tokenprune.pruner import Stop
from tokenprune.testing.conformance.check import Check
from tokenprune.testing.conformance.subject import BUDGETS, FACTS, Subject, prefill, told
from tokenprune.testing.conformance.verdict import ConformanceError, NotApplicable

_TOKENS = (576, 48)
_FLOOR = re.compile(r"(?:floor|under|below|least|minimum)\D{0,12}(\d+(?:\.\d+)?)")


def ordered(subject: Subject) -> tuple[str, ...]:
    """Stops come in running order, at declared sites that exist, with counts that never grow; asking twice is safe."""
    for tokens in _TOKENS:
        for budget in BUDGETS:
            stops = subject.plan(budget, tokens)
            if stops is None:
                continue
            where = f"plan for {tokens} tokens at {told(budget)}"
            if subject.plan(budget, tokens) != stops:
                raise ConformanceError(where, expected="the same twice", found="two plans")
            order = [stop.site.order for stop in stops]
            sites = [str(stop.site) for stop in stops]
            if order != sorted(set(order)):
                raise ConformanceError(where, expected="distinct sites in running order", found=sites)
            for stop in stops:
                _check_site(subject, stop, where)
            counts = [stop.keep(tokens) for stop in prefill(stops) if not stop.auto]
            if counts != sorted(counts, reverse=True):
                raise ConformanceError(where, expected="counts that never grow", found=counts)
    return ()


def _check_site(subject: Subject, stop: Stop, where: str) -> None:
    site = stop.site
    if site.kind not in subject.spec.sites:
        raise ConformanceError(where, expected=f"declared sites {subject.spec.sites}", found=f"`{site}`")
    low, high = 0, 0
    if site.kind == "tower":
        high = FACTS.encoder_read_layer
    elif site.kind in ("layer", "decode"):
        low, high = int(site.kind == "decode"), FACTS.num_layers - 1
    if not low <= site.layer <= high:
        raise ConformanceError(where, expected=f"a layer of {low}..{high}", found=f"`{site}`")
    if stop.kv_from is not None and not 0 <= stop.kv_from <= site.decoder_layer:
        raise ConformanceError(where, expected=f"kv_from of 0..{site.decoder_layer}", found=stop.kv_from)


def met(subject: Subject) -> tuple[str, ...]:
    """The last count is the budget, by either account, unless the plan says that counts follow from the data."""
    if not subject.cuts:
        raise NotApplicable("the spec declares no site: this pruner never cuts")
    checked = False
    for tokens in _TOKENS:
        for budget in BUDGETS:
            stops = subject.plan(budget, tokens)
            if stops is None:
                continue
            cuts = prefill(stops)
            promised = [stop for stop in cuts if not stop.auto]
            if cuts and not promised:
                continue
            checked = True
            where = f"plan for {tokens} tokens at {told(budget)}"
            withdraws = bool(promised) and promised[-1].drop_all
            if budget.account == "kept" and not withdraws:
                found = promised[-1].keep(tokens) if promised else tokens
                # a method that withdraws everything says so by its stops; without one it has only layers to offer
                if found != budget.count(tokens) and (promised or not _withdraws(subject, tokens)):
                    raise ConformanceError(where, expected=f"{budget.count(tokens)} tokens in the end", found=found)
            elif budget.account == "average":
                _check_average(budget, promised, tokens, where, coarse=withdraws or _withdraws(subject, tokens))
    if not checked:
        raise NotApplicable("all counts follow from the data")
    return ()


def _withdraws(subject: Subject, tokens: int) -> bool:
    """Whether the pruner's cuts leave nothing."""
    stops = subject.plan(Budget(ratio=0.5), tokens) or ()
    return any(stop.drop_all for stop in stops)


def _check_average(budget: Budget, stops: list[Stop], tokens: int, where: str, *, coarse: bool) -> None:
    asked = budget.ratio * tokens if budget.ratio is not None else float(budget.tokens or 0)
    found = layer_average(stops, tokens)
    # whole tokens, or whole layers where every token is withdrawn at one of them
    room = max(0.5, tokens / FACTS.num_layers / 2) if coarse else 0.5
    if abs(found - asked) > room + 1e-6:
        raise ConformanceError(
            where, expected=f"{asked:.1f} tokens on the layers' average (within {room:.1f})", found=f"{found:.1f}"
        )


def layer_average(stops: list[Stop], tokens: int) -> float:
    """Visual tokens per decoder layer under a plan; a cut in the middle of a layer counts half of it."""
    total, before, start = 0.0, tokens, 0.0
    for stop in stops:
        depth = stop.site.decoder_layer + (0.5 if stop.site.point == "mid" and stop.site.kind == "layer" else 0.0)
        total += before * (depth - start)
        before, start = stop.keep(tokens), depth
    return (total + before * (FACTS.num_layers - start)) / FACTS.num_layers


def refused(subject: Subject) -> tuple[str, ...]:
    """A budget below the floor is refused with the floor, and the floor itself is then admitted."""
    refusals = 0
    for tokens in _TOKENS:
        for budget in BUDGETS:
            try:
                subject.pruner.plan(FACTS, budget, tokens)
            except BudgetError as error:
                refusals += 1
                _check_floor(subject, budget, tokens, error)
    if not refusals:
        raise NotApplicable("no budget that was tried is refused")
    return ()


def _check_floor(subject: Subject, budget: Budget, tokens: int, error: BudgetError) -> None:
    where = f"refusal of {told(budget)} of {tokens} tokens"
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
    if subject.plan(least, tokens) is None:
        raise ConformanceError(where, expected=f"{least.tokens} tokens to be admitted", found="another refusal")


CHECKS = (
    Check("plan", "plan", "stops are sorted, declared and possible, with counts that never grow", ordered),
    Check("budget", "plan", "the plan meets every budget that it admits, by both accounts", met),
    Check("floor", "plan", "a budget below the floor is refused with the floor", refused),
)
