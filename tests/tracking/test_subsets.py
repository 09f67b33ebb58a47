"""Views of any sweep show what the page loads whole, and together everything."""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracking.plans import cell, plan
from tokenprune.tracking.run_data import RunStyle
from tokenprune.tracking.subsets import ANSWER_RUNS, CHART_RUNS, RunSubset, subject_of, subsets_of


@given(
    pruners=st.integers(1, 60),
    budgets=st.integers(1, 4),
    tasks=st.integers(1, 2),
    models=st.integers(1, 2),
    seeds=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_parts_fit_the_page_and_lose_nothing(pruners: int, budgets: int, tasks: int, models: int, seeds: int) -> None:
    cells = plan(pruners, budgets, tasks, models, seeds)
    subsets = subsets_of(cells)
    for parts, limit in ((subsets.charts, CHART_RUNS), (subsets.tasks, CHART_RUNS), (subsets.answers, ANSWER_RUNS)):
        held = [[entry for entry in cells if part.holds(entry)] for part in parts]
        assert {id(entry) for found in held for entry in found} == set(map(id, cells))
        for found in held:
            assert len(found) <= max(limit, 1 + seeds)
            assert any(entry.pruner == "none" for entry in found)
        pruned = [id(entry) for found in held for entry in found if entry.pruner != "none"]
        assert len(pruned) == len(set(pruned))  # no pruned cell is shown in two parts of a kind
        # a pruner is not torn apart: its seeds at a budget are in one part
        homes: dict[tuple[object, ...], set[str]] = {}
        for part, found in zip(parts, held, strict=True):
            for entry in found:
                if entry.pruner != "none":
                    homes.setdefault((subject_of(entry), entry.label, entry.budget_label), set()).add(part.key)
        assert all(len(keys) == 1 for keys in homes.values())
    titles = [part.title for part in (*subsets.charts, *subsets.tasks, *subsets.answers)]
    assert len(set(subsets.all())) == len(subsets.all())
    assert len({part.key for part in subsets.all()}) == len(subsets.all())
    assert len({part.title for part in subsets.charts}) == len(subsets.charts)
    assert len({part.title for part in subsets.answers}) == len(subsets.answers)
    assert all("  " not in title for title in titles)


def test_a_small_sweep_is_one_view() -> None:
    subsets = subsets_of(plan(8, 3, 1, 1, 1))
    assert subsets.charts == (RunSubset("chart-0", ""),)
    assert [part.title for part in subsets.tasks] == ["task-0"]
    assert [part.title for part in subsets.answers] == ["11.1%", "25%", "50%"]  # the smallest budget first


def test_a_large_sweep_is_split_by_task_then_budget_then_pruner() -> None:
    assert [part.title for part in subsets_of(plan(20, 4, 2, 1, 1)).charts] == ["task-0", "task-1"]
    assert [part.title for part in subsets_of(plan(60, 2, 1, 1, 1)).charts] == ["50%", "25%"]
    wide = subsets_of(plan(120, 1, 1, 1, 1)).charts
    assert [part.title for part in wide] == ["50%, pruner-000 to pruner-098", "50%, pruner-099 to pruner-119"]


def test_names_say_no_more_than_is_needed() -> None:
    two = [cell(task="toy", options={"split": "a"}), cell(task="toy", options={"split": "b"}), cell(task="other")]
    assert [part.title for part in subsets_of(two).tasks] == ["toy (split=a)", "toy (split=b)", "other"]
    models = [cell(model="hub/a-7b"), cell(model="/data/b-13b")]
    assert [part.title for part in subsets_of(models).tasks] == ["a-7b: toy", "b-13b: toy"]


def test_runs_say_the_model_only_where_there_are_several() -> None:
    entry = cell("iwp", 0.25)
    assert RunStyle({}, (), several_models=False).name(entry) == "iwp/toy@25%"
    assert RunStyle({}, (), several_models=True).name(entry) == "model-7b: iwp/toy@25%"


def test_the_style_survives_its_file() -> None:
    cells = plan(60, 2, 2, 1, 1)
    style = RunStyle({"none": "#444444", "pruner-000": "#1f77b4"}, subsets_of(cells).all(), several_models=False)
    again = RunStyle.from_json(json.loads(json.dumps(asdict(style))))
    assert again == style
    for entry in cells:
        assert again.tags(entry) == style.tags(entry)
    unpruned = style.tags(cells[0])["tokenprune.views"].strip("|").split("|")
    assert unpruned == [part.key for part in style.subsets if part.subject in (None, subject_of(cells[0]))]
