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
    ("avgpool", "short"): "the largest squarish grid may have fewer cells than the budget",
    ("avgpool", "video"): "the cells of one frame are laid over the tokens of all frames",
    ("downsample", "short"): "the largest squarish grid may have fewer cells than the budget",
    ("downsample", "video"): "the cells of one frame are laid over the tokens of all frames",
    ("iwp", "ties"): "of equal tokens a higher index may stay",
    ("oracle", "ties"): "of equal tokens a higher index may stay",
    ("vispruner", "ties"): "rounds of even and odd places",
    ("visionzip", "identity"): "contextual rows are emitted after the dominant ones, also where everything stays",
    ("visionzip", "whole"): "as by the law `identity`: rows in another order, at compacted positions",
    ("prumerge", "degenerate"): "the row of the rest takes over the place of a kept token where all scores are zero",
    ("prumerge-plus", "degenerate"): "as `prumerge`",
}
#: Laws that are not tried, because the pruner never comes back.
ENDLESS: Mapping[tuple[str, str], str] = {
    ("vscan", "video"): "windows of one frame have no room for the local picks of all frames",
}
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
