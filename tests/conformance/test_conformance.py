"""Every installed pruner keeps every law; what is known to be otherwise is written down, with the reason."""

from __future__ import annotations

import unittest
from collections.abc import Mapping

import pytest

from tokenprune import load_host
from tokenprune.testing import conformance
from tokenprune.testing.conformance import Check, ConformanceError

HOST = load_host()
NAMES = HOST.pruners.names()
#: (pruner, law) -> why it is broken; an entry whose law is kept after all fails the test.
KNOWN: Mapping[tuple[str, str], str] = {
    ("iwp", "ties"): "of equal tokens a higher index may stay",
    ("oracle", "ties"): "of equal tokens a higher index may stay",
    ("vispruner", "ties"): "rounds of even and odd places",
}
#: Laws that are not tried, because the pruner never comes back.
ENDLESS: Mapping[tuple[str, str], str] = {}
RECORDED = conformance.checks("spec", "plan", "choice")
MODEL = conformance.checks("model")
#: On a model every pruner runs; the other laws are kept by the engine for all alike, so these stand for the rest.
STAND_INS = ("fastv", "visionzip")


def keeps(name: str, law: Check, *, thorough: bool = False) -> None:
    reason = ENDLESS.get((name, law.name))
    if reason is not None:
        pytest.xfail(reason)
    if (name, law.name) not in KNOWN:
        law.run(name, thorough=thorough)
        return
    try:
        law.run(name, thorough=thorough)
    except ConformanceError:
        pytest.xfail(KNOWN[name, law.name])
    except unittest.SkipTest as skip:
        pytest.fail(f"`{name}` is excused from `{law.name}`, which does not apply: {skip}")
    pytest.fail(f"`{name}` is excused from `{law.name}`, but keeps it")


def test_what_is_excused_exists() -> None:
    laws = {law.name for law in conformance.checks()}
    for name, law in (*KNOWN, *ENDLESS):
        assert name in NAMES
        assert law in laws


@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("law", RECORDED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_installed_pruner(name: str, law: Check) -> None:
    keeps(name, law)


@pytest.mark.parametrize("law", MODEL, ids=str)
@pytest.mark.parametrize("name", STAND_INS)
def test_on_the_shipped_model(name: str, law: Check) -> None:
    keeps(name, law)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::tokenprune.testing.conformance.ConformanceWarning")
@pytest.mark.parametrize("law", conformance.checks(), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_installed_pruner_at_every_budget(name: str, law: Check) -> None:
    keeps(name, law, thorough=True)
