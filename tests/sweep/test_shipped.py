"""A small real sweep: the shipped model, the task `scenes`, the worker processes, the pruners that are installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune.report import leaderboard
from tokenprune.report.data.rows import PrunerRow
from tokenprune.sweep import SweepStore, default_config, run_sweep, with_changes

pytestmark = pytest.mark.thorough
PRUNERS = ["random", "grid", "downsample", "iwp", "iwp-exact", "oracle"]


@dataclass(frozen=True)
class SmallSweep:
    """A finished sweep and the rows of its only table."""

    directory: Path
    rows: dict[str, PrunerRow]


@pytest.fixture(scope="module")
def small(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> SmallSweep:
    changes = {"pruners": PRUNERS, "budgets": ["11.1%"], "limit": 14, "batch_size": 14, "efficiency": False}
    config = with_changes(default_config(workshop.host), changes, workshop.host)
    directory = tmp_path_factory.mktemp("shipped") / "sweep"
    outcome = run_sweep(config, directory=directory, host=workshop.host, track=False)
    assert (outcome.done, outcome.failed, outcome.refused) == (1 + len(PRUNERS), 0, 0)
    (table,) = leaderboard(directory).tables
    return SmallSweep(directory, {row.label: row for row in table.rows})


@pytest.mark.timeout(900)
def test_every_pruner_answers_every_question(small: SmallSweep) -> None:
    assert set(small.rows) == {"none", *PRUNERS}
    for row in small.rows.values():
        assert row.questions == 14
        assert row.errors == 0
        assert row.families is not None
        assert len(row.families) == 7


def test_the_model_sees(small: SmallSweep) -> None:
    accuracy = small.rows["none"].accuracy
    assert accuracy is not None
    assert accuracy.mean > 0.6  # guessing gives about 0.25


def test_tokens_are_as_asked(small: SmallSweep) -> None:
    kept = {label: row.tokens["final"] for label, row in small.rows.items() if row.tokens}
    original = small.rows["none"].tokens
    assert original is not None
    assert original["original"] == kept["none"] == 256
    for label in ("random", "grid", "iwp", "iwp-exact", "oracle"):
        assert kept[label] == 28  # floor(0.111 * 256 + 1/2)
    assert 0 < (kept["downsample"] or 0) <= 28


def test_the_oracle_has_the_smallest_error_where_it_looks(small: SmallSweep) -> None:
    """It searches for the output error of the layer that it cuts at, so no other choice of as many is better there.

    `iwp-exact` is left out: by default it also puts weights on the kept keys, so it is not a bare choice of tokens.
    """
    store = SweepStore(small.directory)
    errors = {}
    for cell in store.plan():
        result = store.result(cell.id)
        if result is not None and result["lens"] and not result["lens"]["reason"]:
            errors[cell.pruner] = result["lens"]["output_error_per_layer"][2]
    assert set(errors) == {"random", "grid", "iwp", "iwp-exact", "oracle"}
    assert errors["oracle"] < min(errors[pruner] for pruner in ("random", "grid", "iwp"))
    assert small.rows["downsample"].output_error is None
