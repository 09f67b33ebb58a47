"""Every selector against its rule written down naively, on tiny inputs, and its laws on random ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import dual
from tokenprune.dual.duplication import DenseDuplication
from tokenprune.dual.selection.select import Schedule
from tokenprune.errors import BudgetError, ConfigError

SCHEDULES: tuple[Schedule, ...] = ("exact", "fixed", "growing", "shrinking")


def problem(seed: int, units: int = 2, tokens: int = 9) -> tuple[Tensor, Tensor]:
    """A magnitude in [0, 1] and a similarity in [0, 1] with ones on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(units, tokens, 4, generator=generator)
    similarity = dual.cosine_duplication(features).full()
    return torch.rand(units, tokens, generator=generator), similarity


def naive_mmr(magnitude: list[float], similarity: list[list[float]], k: int, trade_off: float, mean: bool) -> list[int]:
    picked: list[int] = []
    while len(picked) < k:
        best, best_score = -1, -math.inf
        for i in range(len(magnitude)):
            if i in picked:
                continue
            seen = [similarity[i][j] for j in picked] or [0.0]
            overlap = sum(seen) / len(seen) if mean else max(seen)
            score = trade_off * magnitude[i] - (1 - trade_off) * overlap
            if score > best_score:
                best, best_score = i, score
        picked.append(best)
    return picked


def naive_chunks(
    magnitude: list[float],
    similarity: list[list[float]],
    sizes: list[int],
    trade_off: float,
    threshold: float,
    oversample: int,
) -> list[int]:
    """The chunk rule said once more: rank, scan the best candidates in order, fill what is left by marginal score."""
    picked: list[int] = []
    for size in sizes:
        rest = [i for i in range(len(magnitude)) if i not in picked]
        score = {
            i: trade_off * magnitude[i] - (1 - trade_off) * max([similarity[i][j] for j in picked] or [0.0])
            for i in rest
        }
        ranked = sorted(rest, key=lambda i: (-score[i], i))
        if threshold == 0 or size == 1:
            picked += ranked[:size]
            continue
        pool = ranked[: oversample * size]
        accepted: list[int] = []
        for i in pool:
            if all(similarity[i][j] <= threshold for j in accepted):
                accepted.append(i)
        waiting = [i for i in pool if i not in accepted]
        waiting.sort(key=lambda i: -(score[i] - (1 - trade_off) * max(similarity[i][j] for j in accepted)))
        picked += (accepted + waiting)[:size]
    return picked


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
def test_top_k_is_a_sort(seed: int, k: int) -> None:
    magnitude, _ = problem(seed)
    expected = [sorted(range(9), key=lambda i, row=row: (-row[i], i))[:k] for row in magnitude.tolist()]
    assert dual.top_k(magnitude, k).tolist() == expected


def test_ties_go_to_the_lower_index() -> None:
    assert dual.top_k(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]]), 4).tolist() == [[1, 2, 4, 0]]
    assert dual.first_largest(torch.tensor([[0.0, 3.0, 3.0], [5.0, 5.0, 5.0]])).tolist() == [1, 0]
    flat = torch.ones(1, 6)
    same = DenseDuplication(torch.ones(1, 6, 6))
    for schedule in SCHEDULES:
        assert dual.chunked_mmr(flat, same, 3, schedule=schedule, first=2).tolist() == [[0, 1, 2]]
    assert dual.max_min(same, 3).tolist() == [[0, 1, 2]]
    assert dual.dpp_greedy(flat, same, 3).tolist() == [[0, 1, 2]]
    assert dual.coverage(flat, same, 3).tolist() == [[0, 1, 2]]


def test_nan_and_infinite_scores_do_not_win_or_break() -> None:
    scores = torch.tensor([[math.nan, 1.0, -math.inf, 2.0]])
    assert dual.top_k(scores, 2).tolist() == [[3, 1]]
    similarity = DenseDuplication(torch.eye(4)[None])
    assert dual.mmr(scores, similarity, 2).tolist() == [[3, 1]]
    assert sorted(dual.mmr(scores, similarity, 4).tolist()[0]) == [0, 1, 2, 3]


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 9),
    trade_off=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    overlap=st.sampled_from(["max", "mean"]),
)
def test_mmr_against_the_rule(seed: int, k: int, trade_off: float, overlap: str) -> None:
    magnitude, similarity = problem(seed)
    picks = dual.mmr(magnitude, DenseDuplication(similarity), k, trade_off=trade_off, overlap=overlap)  # type: ignore[arg-type]
    for unit in range(2):
        expected = naive_mmr(magnitude[unit].tolist(), similarity[unit].tolist(), k, trade_off, overlap == "mean")
        assert picks[unit].tolist() == expected


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 14),
    schedule=st.sampled_from(SCHEDULES),
    suppression=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    first=st.integers(1, 5),
    oversample=st.integers(1, 4),
)
def test_chunked_mmr_against_the_rule(
    seed: int, k: int, schedule: Schedule, suppression: float, first: int, oversample: int
) -> None:
    magnitude, similarity = problem(seed, units=1, tokens=14)
    picks = dual.chunked_mmr(
        magnitude,
        DenseDuplication(similarity),
        k,
        trade_off=0.4,
        schedule=schedule,
        first=first,
        suppression=suppression,
        oversample=oversample,
    )
    sizes = dual.chunk_sizes(k, schedule, first=first)
    expected = naive_chunks(magnitude[0].tolist(), similarity[0].tolist(), sizes, 0.4, suppression, oversample)
    assert picks[0].tolist() == expected


def test_chunk_sizes() -> None:
    assert dual.chunk_sizes(5, "exact") == [1] * 5
    assert dual.chunk_sizes(20, "fixed", first=8) == [8, 8, 4]
    assert dual.chunk_sizes(60, "growing", first=8, growth=0.5) == [8, 8, 8, 12, 18, 6]
    assert dual.chunk_sizes(20, "shrinking", growth=0.5) == [10, 5, 2, 1, 1, 1]
    for schedule in SCHEDULES:
        for k in (1, 2, 7, 100):
            sizes = dual.chunk_sizes(k, schedule, first=3, growth=0.3)
            assert sum(sizes) == k
            assert min(sizes) >= 1


def test_suppression_keeps_twins_out_of_one_chunk() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    similarity = DenseDuplication((labels[:, None] == labels).float()[None])
    magnitude = torch.linspace(1.0, 0.9, 12)[None]
    plain = dual.chunked_mmr(magnitude, similarity, 3, schedule="fixed", first=3)
    guarded = dual.chunked_mmr(magnitude, similarity, 3, schedule="fixed", first=3, suppression=0.5)
    assert labels[plain[0]].tolist() == [0, 0, 0]
    assert labels[guarded[0]].tolist() == [0, 1, 2]


def test_a_long_chain_of_overlaps_accepts_no_overlapping_pair() -> None:
    """Each token overlaps its two neighbours only: the scan keeps every other one; the rounds may keep fewer."""
    tokens = 40
    near = torch.zeros(tokens, tokens)
    near[range(tokens - 1), range(1, tokens)] = 0.9
    similarity = DenseDuplication((near + near.T + torch.eye(tokens))[None])
    magnitude = torch.linspace(1.0, 0.0, tokens)[None]
    picks = dual.chunked_mmr(magnitude, similarity, 4, schedule="fixed", first=4, suppression=0.5, oversample=10)
    assert picks.tolist() == [[0, 2, 4, 6]]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
def test_max_min_against_the_rule(seed: int, k: int) -> None:
    similarity = problem(seed)[1]
    picks = dual.max_min(DenseDuplication(similarity), k)
    for unit in range(2):
        row = similarity[unit].tolist()
        nearest = [max(row[i][j] for j in range(9) if j != i) for i in range(9)]
        expected = [min(range(9), key=lambda i: (nearest[i], i))]
        while len(expected) < k:
            rest = [i for i in range(9) if i not in expected]
            expected.append(min(rest, key=lambda i: (max(row[i][j] for j in expected), i)))
        assert picks[unit].tolist() == expected


def test_mmr_without_magnitude_is_max_min() -> None:
    for seed in range(5):
        _, similarity = problem(seed, tokens=12)
        far = dual.max_min(DenseDuplication(similarity), 6)
        start = torch.zeros(2, 12).scatter(-1, far[:, :1], 1e-3)
        assert dual.mmr(start, DenseDuplication(similarity), 6, trade_off=0.01).tolist() == far.tolist()


@given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
def test_dpp_against_determinants(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 8, 6, generator=generator)
    relevance = 0.5 + torch.rand(1, 8, generator=generator)
    similarity = dual.cosine_duplication(features, signed=True)
    picks = dual.dpp_greedy(relevance, similarity, k)[0].tolist()
    scaled = torch.nn.functional.normalize(features[0].double(), dim=-1) * relevance[0].double()[:, None]
    kernel = scaled @ scaled.T
    for step in range(k):
        before = picks[:step]

        def determinant(i: int, before: list[int] = before) -> float:
            chosen = [*before, i]
            return float(torch.linalg.det(kernel[chosen][:, chosen]))

        best = max(determinant(i) for i in range(8) if i not in before)
        assert determinant(picks[step]) == pytest.approx(best, rel=1e-4)


def test_dpp_beyond_the_rank_goes_on_by_relevance_without_nan() -> None:
    features = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2, 0])][None]
    relevance = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.95]])
    picks = dual.dpp_greedy(relevance, dual.cosine_duplication(features, signed=True), 7)
    assert picks.tolist() == [[6, 2, 4, 0, 1, 3, 5]]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4))
def test_coverage_against_the_rule(seed: int, k: int) -> None:
    weight, similarity = problem(seed, tokens=7)
    picks = dual.coverage(weight, DenseDuplication(similarity), k)
    for unit in range(2):
        row, wanted = similarity[unit].double(), weight[unit].double()

        def reached(chosen: list[int], row: Tensor = row, wanted: Tensor = wanted) -> float:
            return float((wanted * row[:, chosen].amax(dim=1).clamp_min(0)).sum()) if chosen else 0.0

        for step in range(k):
            before = picks[unit, :step].tolist()
            best = max(reached([*before, i]) for i in range(7) if i not in before)
            assert reached([*before, int(picks[unit, step])]) == pytest.approx(best, abs=1e-5)


def test_pivots_against_the_rule() -> None:
    generator = torch.Generator().manual_seed(3)
    similarity = torch.rand(2, 3, 10, generator=generator)
    excluded = torch.zeros(2, 10, dtype=torch.bool)
    excluded[0, 4] = excluded[1, 7] = True
    picks = dual.pivot_dissimilar(similarity, excluded, [2, 0, 3])
    for unit in range(2):
        pool = [i for i in range(10) if not excluded[unit, i]]
        expected: list[int] = []
        for pivot, count in enumerate([2, 0, 3]):
            far = sorted(pool, key=lambda i: (float(similarity[unit, pivot, i]), i))[:count]
            expected += far
            pool = [i for i in pool if i not in far]
        assert picks[unit].tolist() == expected


def selectors(k: int) -> list[tuple[str, object]]:
    chunked = [
        (f"{schedule}-{suppression}", schedule, suppression)
        for schedule, suppression in itertools.product(SCHEDULES, (0.0, 0.5))
    ]
    return [
        ("top_k", lambda m, s: dual.top_k(m, k)),
        ("mmr-mean", lambda m, s: dual.mmr(m, s, k, overlap="mean")),
        ("max_min", lambda m, s: dual.max_min(s, k)),
        ("dpp", lambda m, s: dual.dpp_greedy(m, s, k)),
        ("coverage", lambda m, s: dual.coverage(m, s, k)),
        *[
            (name, lambda m, s, a=schedule, b=suppression: dual.chunked_mmr(m, s, k, schedule=a, suppression=b))
            for name, schedule, suppression in chunked
        ],
    ]


@pytest.mark.parametrize("k", [1, 3, 11, 12])
@pytest.mark.parametrize("kind", ["random", "equal", "zero", "half"])
def test_laws_of_every_selector(k: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(3, 12, 5, generator=generator)
    magnitude = torch.rand(3, 12, generator=generator)
    if kind == "equal":
        features, magnitude = features[:, :1].expand(3, 12, 5), magnitude[:, :1].expand(3, 12)
    elif kind == "zero":
        features, magnitude = torch.zeros(3, 12, 5), torch.zeros(3, 12)
    elif kind == "half":
        features, magnitude = features.to(torch.bfloat16), magnitude.to(torch.float16)
    for name, select in selectors(k):
        picks = select(magnitude, dual.cosine_duplication(features, signed=True))  # type: ignore[operator]
        assert picks.shape == (3, k), name
        assert picks.dtype == torch.long, name
        for unit in range(3):
            assert len(set(picks[unit].tolist())) == k, name
            assert set(picks[unit].tolist()) <= set(range(12)), name
            part = slice(unit, unit + 1)
            single = select(magnitude[part], dual.cosine_duplication(features[part], signed=True))  # type: ignore[operator]
            assert single[0].tolist() == picks[unit].tolist(), name
        again = select(magnitude, dual.cosine_duplication(features, signed=True))  # type: ignore[operator]
        assert torch.equal(again, picks), name


@given(seed=st.integers(0, 10_000))
def test_selectors_follow_a_permutation(seed: int) -> None:
    magnitude, similarity = problem(seed, units=1, tokens=12)
    similarity = similarity + 0.01 * magnitude[:, None] * magnitude[:, :, None]  # clamped zeros would be ties
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    for name, select in selectors(5):
        if name == "max_min":  # two tokens that are each other's nearest tie for the first pick
            continue
        straight = select(magnitude, DenseDuplication(similarity))  # type: ignore[operator]
        shuffled = select(magnitude[:, order], DenseDuplication(similarity[:, order][:, :, order]))  # type: ignore[operator]
        assert order[shuffled[0]].tolist() == straight[0].tolist(), name


@pytest.mark.parametrize("k", [0, 13, -1])
def test_counts_out_of_range_are_refused(k: int) -> None:
    magnitude, similarity = problem(0, tokens=12)
    for _, select in selectors(k):
        with pytest.raises(BudgetError, match="of 12 tokens"):
            select(magnitude, DenseDuplication(similarity))  # type: ignore[operator]


@pytest.mark.parametrize(
    "options",
    [
        {"trade_off": 1.5},
        {"overlap": "median"},
        {"schedule": "random"},
        {"first": 0},
        {"growth": 0.0},
        {"suppression": 2.0},
        {"oversample": 0},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    magnitude, similarity = problem(0)
    with pytest.raises(ConfigError):
        dual.chunked_mmr(magnitude, DenseDuplication(similarity), 3, **options)  # type: ignore[arg-type]


def test_the_pool_of_the_pivots_is_checked() -> None:
    with pytest.raises(BudgetError, match="pool of 3"):
        dual.pivot_dissimilar(torch.rand(1, 1, 4), torch.tensor([[True, False, False, False]]), [4])
