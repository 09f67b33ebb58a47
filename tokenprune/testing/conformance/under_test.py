"""What is under test: a pruner, its spec, the budgets to try, and the model for the checks that need one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenprune.budget import Account, Budget
from tokenprune.errors import BudgetError
from tokenprune.plugins import Host, default_host
from tokenprune.pruner import ModelFacts, Pruner, Stop
from tokenprune.registry import PrunerSpec

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
ACCOUNTS: tuple[Account, ...] = ("kept", "average")
#: Every budget that a plan is asked for.
BUDGETS = tuple(
    budget
    for account in ACCOUNTS
    for budget in (*(Budget(ratio=ratio, account=account) for ratio in RATIOS), Budget(tokens=1, account=account))
)
#: The budgets at which choices are made and models are run unless told otherwise.
FEW = (Budget(ratio=0.25), Budget(tokens=1))
#: The model that recorded tensors are said to come from: deep enough for every published layer.
FACTS = ModelFacts("recorded", num_layers=32, encoder_layers=24, has_cls=True, encoder_read_layer=22)
#: Models that a plan is made for: that one, small ones, and one whose encoder is not described.
SHAPES = (
    FACTS,
    ModelFacts("recorded", num_layers=6, encoder_layers=5, has_cls=True, encoder_read_layer=3),
    ModelFacts("recorded", num_layers=2, encoder_layers=2, has_cls=False, encoder_read_layer=1),
    ModelFacts("recorded", num_layers=32, encoder_layers=0, has_cls=False, encoder_read_layer=0),
)


@dataclass(frozen=True)
class PrunerUnderTest:
    """A pruner under test.

    Args:
        pruner: The pruner.
        spec: Its spec.
        options: Options that it was built with, where it was built by name.
        model: Model of the group `model`: short name, directory or hub name.
        budgets: Budgets at which choices are made.
        thorough: Whether models run at all of these budgets, too.
        host: Plugins; loaded where they are not given.
    """

    pruner: Pruner
    spec: PrunerSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "scenes"
    budgets: tuple[Budget, ...] = FEW
    thorough: bool = False
    host: Host = field(default_factory=default_host, compare=False)

    @classmethod
    def of(
        cls,
        pruner: str | Pruner,
        *,
        options: Mapping[str, Any] | None = None,
        model: str = "scenes",
        budgets: tuple[Budget, ...] = (),
        thorough: bool = False,
        host: Host | None = None,
    ) -> PrunerUnderTest:
        """An installed pruner by its name, or a pruner as it is.

        Raises:
            UnknownNameError: No pruner of that name is installed.
            ConfigError: An option is not valid.
        """
        host = host or default_host()
        chosen = budgets or (BUDGETS if thorough else FEW)
        if isinstance(pruner, Pruner):
            return cls(pruner, pruner.spec, options or {}, model, chosen, thorough, host)
        spec = host.pruners.get(pruner)
        return cls(spec.build(options), spec, options or {}, model, chosen, thorough, host)

    @classmethod
    def every_variant(cls, name: str, *, budgets: tuple[Budget, ...] = ()) -> tuple[PrunerUnderTest, ...]:
        """An installed pruner at its defaults and under each of the variants that its spec names.

        Raises:
            UnknownNameError: No pruner of that name is installed.
        """
        return tuple(cls.of(name, options=options, budgets=budgets) for options in variants(name))

    @property
    def cuts(self) -> bool:
        """Whether the spec names a site to cut at; the control `none` names none."""
        return bool(self.spec.sites)

    def plan(self, budget: Budget, tokens: int, facts: ModelFacts = FACTS) -> tuple[Stop, ...] | None:
        """The plan for images of a number of tokens, `None` where the budget is refused."""
        try:
            return tuple(self.pruner.plan(facts, budget, tokens))
        except BudgetError:
            return None

    @cached_property
    def budgets_on_a_model(self) -> tuple[Budget, ...]:
        """Budgets at which a model is run."""
        return self.budgets if self.thorough else self.budgets[:1]


def variants(name: str, host: Host | None = None) -> tuple[Mapping[str, Any], ...]:
    """Options to test an installed pruner under: none at first, then those that its spec names.

    Raises:
        UnknownNameError: No pruner of that name is installed.

    Example:
        >>> from tokenprune.testing import conformance
        >>> conformance.variants("fastv")
        ({}, {'layer': 1})
    """
    return ({}, *(host or default_host()).pruners.get(name).variants)


def described(budget: Budget) -> str:
    """A budget for messages."""
    return f"{budget.label()} {budget.account}" + (" token" if budget.tokens == 1 else "")


def prefill(stops: tuple[Stop, ...]) -> tuple[Stop, ...]:
    """The stops of a prefill."""
    return tuple(stop for stop in stops if stop.site.kind != "decode")
