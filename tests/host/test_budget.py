"""One rounding rule, and budgets that count the layer average."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, ConfigError
from tokenprune.sweep.config.schema import parse_config
from tokenprune.sweep.config.yaml_source import Source

tokens = st.integers(1, 20_000)
ratios = st.floats(0.0, 1.0, exclude_min=True)


@given(ratios, tokens)
def test_a_ratio_is_rounded_half_up_and_stays_between_one_and_all(ratio: float, count: int) -> None:
    exact = Fraction(ratio * count) + Fraction(1, 2)
    expected = max(1, min(count, exact.numerator // exact.denominator))
    assert Budget(ratio=ratio).count(count) == expected


@given(tokens, tokens)
def test_a_number_of_tokens_is_kept_as_it_is_up_to_all(wanted: int, count: int) -> None:
    assert Budget(tokens=wanted).count(count) == min(wanted, count)


@given(ratios, ratios, tokens)
def test_a_larger_ratio_never_keeps_fewer(first: float, second: float, count: int) -> None:
    low, high = sorted((first, second))
    assert Budget(ratio=low).count(count) <= Budget(ratio=high).count(count)


@given(tokens)
def test_ratio_one_keeps_all(count: int) -> None:
    assert Budget(ratio=1.0).count(count) == count


@pytest.mark.parametrize(
    ("ratio", "count", "kept"),
    [(0.5, 5, 3), (0.25, 2, 1), (0.111, 576, 64), (0.056, 576, 32), (0.056, 256, 14), (0.111, 256, 28), (1e-9, 576, 1)],
)
def test_known_roundings(ratio: float, count: int, kept: int) -> None:
    assert Budget(ratio=ratio).count(count) == kept


@pytest.mark.parametrize(
    ("average", "layer", "kept"),
    [(192, 2, 166), (128, 2, 98), (64, 2, 30), (192, 0, 192), (192, 1, 180), (576, 2, 576)],
)
def test_a_cut_is_solved_for_the_layer_average_of_a_7b_llava(average: int, layer: int, kept: int) -> None:
    # (192 * 32 - 2 * 576) / 30 = 166.4 and so on
    cut = Budget(tokens=average, account="average").after_cut(layer, 32, 576)
    assert cut == Budget(tokens=kept)


@given(st.integers(2, 48), st.data())
def test_the_realised_average_is_within_half_a_token_of_what_was_asked(layers: int, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, layers - 1))
    count = data.draw(st.integers(2, 4096))
    ratio = data.draw(st.floats(0.01, 1.0))
    budget = Budget(ratio=ratio, account="average")
    try:
        kept = budget.after_cut(layer, layers, count).count(count)
    except BudgetError:
        assert ratio * count * layers < layer * count + (layers - layer) + 1e-6
        return
    average = (layer * count + (layers - layer) * kept) / layers
    assert abs(average - ratio * count) <= 0.5 + 1e-9 or kept == 1


def test_an_average_below_the_floor_is_refused_with_the_floor() -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(ratio=0.05, account="average").after_cut(2, 32, 576)
    assert caught.value.message == (
        "a cut entering layer 2 of 32 cannot average 28.8 of 576 tokens: its floor is 36.9 (6.4%)"
    )
    assert "earlier layer" in caught.value.hint


@given(st.integers(0, 31))
def test_the_account_of_kept_tokens_does_not_depend_on_the_layer(layer: int) -> None:
    assert Budget(ratio=0.25).after_cut(layer, 32, 576) == Budget(ratio=0.25)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ratio": 0.5, "tokens": 4},
        {"ratio": 0.0},
        {"ratio": -0.1},
        {"ratio": 1.1},
        {"ratio": float("nan")},
        {"tokens": 0},
        {"tokens": -3},
        {"tokens": 2.5},
        {"tokens": float("inf")},
        {"tokens": True},
        {"ratio": True},
        {"tokens": "64"},
        {"ratio": "0.25"},
    ],
)
def test_budgets_out_of_range_are_refused_with_the_value(arguments: dict[str, float]) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**arguments)
    assert caught.value.hint
    for value in arguments.values():
        assert repr(value) in caught.value.message


#: What people write, and the ratio or the number of tokens that it is, in Python, in sweep files and in commands.
WRITTEN: list[Any] = [
    (64, None, 64),
    (1, None, 1),
    (np.int64(3), None, 3),
    ("64", None, 64),
    (" 64 ", None, 64),
    ("1", None, 1),
    (0.25, 0.25, None),
    (1.0, 1.0, None),
    (np.float32(0.5), 0.5, None),
    ("0.25", 0.25, None),
    (".5", 0.5, None),
    ("1.0", 1.0, None),
    ("25%", 0.25, None),
    (" 11.1 % ", 0.111, None),
    ("100%", 1.0, None),
]
#: What is no budget, and a part of the message.
NO_BUDGETS: list[Any] = [
    (0, "keep tokens must be a whole number >= 1, got 0"),
    ("0", "keep tokens must be a whole number >= 1, got 0"),
    (-3, "keep tokens must be a whole number >= 1, got -3"),
    ("-3", "keep tokens must be a whole number >= 1, got -3"),
    (0.0, "keep ratio must lie in (0, 1], got 0.0"),
    (-0.5, "keep ratio must lie in (0, 1], got -0.5"),
    (1.5, "keep ratio must lie in (0, 1], got 1.5"),
    ("64.0", "keep ratio must lie in (0, 1], got 64.0"),
    ("0%", "keep ratio must lie in (0, 1], got 0.0"),
    ("200%", "keep ratio must lie in (0, 1], got 2.0"),
    ("inf", "keep ratio must lie in (0, 1], got inf"),
    (math.inf, "keep ratio must lie in (0, 1], got inf"),
    (math.nan, "not a budget: nan"),
    ("nan", "not a budget: 'nan'"),
    ("nan%", "not a budget: 'nan%'"),
    (True, "not a budget: True"),
    (np.bool_(True), "not a budget:"),
    ("lots", "not a budget: 'lots'"),
    ("", "not a budget: ''"),
    ("%", "not a budget: '%'"),
    ("25%%", "not a budget: '25%%'"),
    ("²", "not a budget: '²'"),
    ([64], "not a budget: [64]"),
    (None, "not a budget: None"),
]


@pytest.mark.parametrize(("written", "ratio", "count"), WRITTEN)
def test_whole_numbers_are_tokens_and_fractions_and_percentages_are_ratios(
    written: Any, ratio: float | None, count: int | None
) -> None:
    budget = Budget.parse(written)
    assert budget == Budget(ratio=ratio, tokens=count)
    assert type(budget.ratio if count is None else budget.tokens) is (float if count is None else int)


@pytest.mark.parametrize(("written", "ratio", "count"), WRITTEN)
def test_a_sweep_file_reads_budgets_alike(written: Any, ratio: float | None, count: int | None) -> None:
    config = parse_config(Source("file", {"pruners": ["random"], "budgets": [written]}))
    assert [entry.budget("average") for entry in config.budgets] == [
        Budget(ratio=ratio, tokens=count, account="average")
    ]


@pytest.mark.parametrize(("written", "message"), NO_BUDGETS)
def test_what_is_no_budget_is_refused_in_one_line(written: Any, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(written)
    assert message in caught.value.message
    assert "tokens" in caught.value.hint
    with pytest.raises(ConfigError) as told:
        parse_config(Source("file", {"pruners": ["random"], "budgets": [written]}))
    (line,) = told.value.message.splitlines()
    assert line.startswith(f"file: budgets.0: {message}")


def test_a_budget_stays_as_it_is_or_gets_another_account() -> None:
    budget = Budget(tokens=7)
    assert Budget.parse(budget) is budget
    assert Budget.parse(budget, account="average") == Budget(tokens=7, account="average")
    assert Budget.parse("7", account="average") == Budget(tokens=7, account="average")


@given(tokens, st.floats(1e-6, 1.0))
def test_a_label_reads_back_as_the_budget(count: int, ratio: float) -> None:
    assert Budget.parse(Budget(tokens=count).label()) == Budget(tokens=count)
    assert Budget.parse(Budget(ratio=ratio).label()).ratio == pytest.approx(ratio, rel=5.1e-3)


def test_an_unknown_account_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BudgetError, match="unknown budget account `total`") as caught:
        Budget(ratio=0.5, account="total")  # type: ignore[arg-type]
    assert caught.value.hint == "use `kept` or `average`"


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(BudgetError, match="0 tokens"):
        Budget(ratio=0.5).count(0)


def test_labels_are_short() -> None:
    assert [Budget(ratio=0.111).label(), Budget(ratio=0.25).label(), Budget(tokens=64).label()] == [
        "11.1%",
        "25%",
        "64",
    ]
