"""Every pruner of the project keeps every law."""

from __future__ import annotations

import pytest

from tokenprune import load_host
from tokenprune.testing import conformance
from tokenprune.testing.conformance import Check

HOST = load_host()
NAMES = HOST.pruners.names()
RECORDED = conformance.checks("spec", "plan", "choice")
MODEL = conformance.checks("model")
#: On a model every pruner runs; the other laws are kept by the engine for all alike, so these stand for the rest.
STAND_INS = ("fastv", "visionzip")


@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("law", RECORDED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_installed_pruner(name: str, law: Check) -> None:
    law.run(name)


@pytest.mark.parametrize("law", MODEL, ids=str)
@pytest.mark.parametrize("name", STAND_INS)
def test_on_the_shipped_model(name: str, law: Check) -> None:
    law.run(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("law", conformance.checks(), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_installed_pruner_at_every_budget(name: str, law: Check) -> None:
    law.run(name, thorough=True)
