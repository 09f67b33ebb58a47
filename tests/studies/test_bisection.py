from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.studies.bisection import Trial, bisect


def linear(step: int) -> Trial:
    """Retention 100 % from step 50 on."""
    return Trial(step, min(1.0, step / 50))


def test_the_bracket_is_tight_and_runs_are_shared() -> None:
    asked: list[int] = []

    def run(step: int) -> Trial:
        asked.append(step)
        return linear(step)

    search = bisect(run, [0.99, 0.9], 100)
    first, second = search.found
    assert first.high is not None
    assert first.low is not None
    assert (first.low.step, first.high.step) == (49, 50)
    assert second.high is not None
    assert second.low is not None
    assert (second.low.step, second.high.step) == (44, 45)
    assert len(asked) == len(set(asked)) == len(search.trials) <= 12
    assert search.contradictions == ()


def test_a_pruner_that_never_gets_there() -> None:
    (found,) = bisect(lambda step: Trial(step, 0.5), [0.9], 100).found
    assert found.high is None
    assert found.low is not None
    assert found.low.step == 99
    assert not found.at_floor


def test_a_pruner_that_is_always_good_enough() -> None:
    (found,) = bisect(lambda step: Trial(step, 1.0), [0.9], 100).found
    assert found.low is None
    assert found.high is not None
    assert found.high.step == 1


def test_the_floor_is_respected_and_named() -> None:
    def run(step: int) -> Trial:
        return linear(step) if step >= 60 else Trial(step, None, "refused", "its floor is 60%")

    search = bisect(run, [0.99], 100)
    (found,) = search.found
    assert found.at_floor
    assert found.high is not None
    assert found.high.step == 60
    assert found.low is not None
    assert found.low.reason == "its floor is 60%"
    assert search.contradictions == ()


def test_a_failed_run_retains_nothing() -> None:
    search = bisect(lambda step: Trial(step, 0.0, "failed", "boom") if step == 75 else Trial(step, 1.0), [0.9], 100)
    assert search.found[0].high is not None
    assert search.found[0].high.step == 1  # 75 % was never asked
    search = bisect(lambda step: Trial(step, 0.0, "failed", "boom") if step == 50 else Trial(step, 1.0), [0.9], 100)
    assert search.found[0].low is not None
    assert (search.found[0].low.step, search.found[0].low.outcome) == (50, "failed")


def test_runs_that_contradict_the_assumption_are_named() -> None:
    luck = {50: 0.6, 75: 1.0, 62: 1.0, 56: 0.9, 59: 0.95, 57: 0.95, 58: 0.9}

    def run(step: int) -> Trial:
        return Trial(step, luck.get(step, 0.5))

    search = bisect(run, [0.99, 0.92], 100)
    pairs = [(smaller.step, larger.step) for smaller, larger in search.contradictions]
    for smaller, larger in search.contradictions:
        assert (smaller.retention or 0) > (larger.retention or 0)
    assert pairs
    for found in search.found:
        assert found.high is None or all(
            trial.reaches(found.target) for trial in search.trials if trial.step >= found.high.step
        )


def test_a_target_missed_by_rounding_alone_is_reached() -> None:
    assert Trial(1, 0.9499999999999999).reaches(0.95)
    assert not Trial(1, 0.9499).reaches(0.95)


@given(st.integers(2, 200), st.data())
def test_a_growing_curve_is_solved_exactly(steps: int, data: st.DataObject) -> None:
    curve = sorted(data.draw(st.lists(st.integers(0, 1000), min_size=steps, max_size=steps)))
    targets = data.draw(st.lists(st.integers(50, 1000).map(lambda value: value / 1000), min_size=1, max_size=3))
    asked: list[int] = []

    def run(step: int) -> Trial:
        assert 0 < step < steps
        asked.append(step)
        return Trial(step, curve[step] / 1000)

    search = bisect(run, targets, steps)
    assert len(asked) == len(set(asked)) <= len(targets) * math.ceil(math.log2(steps))
    for found in search.found:
        expected = next((step for step in range(1, steps) if curve[step] / 1000 >= found.target), None)
        assert (None if found.high is None else found.high.step) == expected
    assert search.contradictions == ()


@pytest.mark.parametrize(("targets", "steps"), [([0.0], 10), ([1.1], 10), ([0.9], 1)])
def test_bad_input(targets: list[float], steps: int) -> None:
    with pytest.raises(ValueError, match="cannot bisect"):
        bisect(linear, targets, steps)
