"""Every pruner of the core keeps every law; plugins hold their own pruners to them."""

from __future__ import annotations

import pytest

from tokenprune import load_host
from tokenprune.testing import conformance
from tokenprune.testing.conformance import Check

HOST = load_host(())


@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("law", conformance.checks("spec", "plan", "choice"), ids=str)
@pytest.mark.parametrize("name", HOST.pruners.names())
def test_every_pruner(name: str, law: Check) -> None:
    law.run(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("law", conformance.checks(), ids=str)
@pytest.mark.parametrize("name", HOST.pruners.names())
def test_every_pruner_at_every_budget(name: str, law: Check) -> None:
    law.run(name, thorough=True)
