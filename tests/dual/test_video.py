"""Segments, windows and same-cell similarities of videos, against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import dual
from tokenprune.errors import IncompatibleError


def similar(seed: int, frames: int, cells: int) -> torch.Tensor:
    return torch.rand(2, frames - 1, cells, generator=torch.Generator().manual_seed(seed)) > 0.4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 5))
def test_windows_save_as_much_as_any_partition(seed: int, frames: int, cells: int) -> None:
    given_cells = similar(seed, frames, cells)
    counts = dual.constant_cells(given_cells)
    for unit in range(2):
        for first in range(frames):
            for last in range(first, frames):
                constant = given_cells[unit, first:last].all(dim=0).sum() if last > first else cells
                assert int(counts[unit, first, last]) == int(constant)
        spans, saved = dual.static_windows(counts[unit].tolist())
        assert [frame for first, last in spans for frame in range(first, last + 1)] == list(range(frames))

        def gain(cut: tuple[int, ...], unit: int = unit) -> int:
            edges = [0, *cut, frames]
            return sum(int(counts[unit, a, b - 1]) * (b - 1 - a) for a, b in itertools.pairwise(edges))

        best = max(gain(cut) for number in range(frames) for cut in itertools.combinations(range(1, frames), number))
        assert saved == best == gain(tuple(first for first, _ in spans[1:]))


def test_of_equally_good_last_windows_the_shortest_wins() -> None:
    assert dual.static_windows([[2, 0, 0], [0, 2, 0], [0, 0, 2]])[0] == ((0, 0), (1, 1), (2, 2))
    assert dual.static_windows([[1, 1, 0], [0, 1, 1], [0, 0, 1]]) == (((0, 1), (2, 2)), 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=8), st.integers(1, 10), st.floats(-1, 1))
def test_segments_cut_at_the_smallest_and_at_all_below(values: list[float], segments: int, threshold: float) -> None:
    spans = dual.similarity_segments(values, segments, threshold)
    assert [frame for first, last in spans for frame in range(first, last + 1)] == list(range(len(values) + 1))
    cuts = {last for _, last in spans[:-1]}
    below = {place for place, value in enumerate(values) if value < threshold}
    assert below <= cuts
    assert len(cuts) == max(min(segments - 1, len(values)), len(below))
    assert max((values[place] for place in cuts), default=-2) <= min(
        (value for place, value in enumerate(values) if place not in cuts), default=2
    )


@given(st.lists(st.integers(0, 2), min_size=1, max_size=10))
def test_runs_are_maximal(labels: list[int]) -> None:
    spans = dual.runs(labels)
    assert [labels[first] for first, last in spans for _ in range(first, last + 1)] == labels
    assert all(labels[one[0]] != labels[other[0]] for one, other in itertools.pairwise(spans))


@given(st.integers(0, 60), st.integers(1, 9))
def test_even_shares_and_places(total: int, parts: int) -> None:
    shares = dual.even_shares(total, parts)
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    places = dual.even_places(60, total).tolist()
    assert len(set(places)) == total
    assert places == sorted(places)
    assert all(0 <= place < 60 for place in places)


def test_cosines_of_cells() -> None:
    cells = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    cells[0, 1, 2] = 0.0
    found = dual.cell_cosine(cells, [0, 0, 0, 2])
    wanted = torch.cosine_similarity(cells, cells[:, [0, 0, 0, 2]], dim=-1)
    torch.testing.assert_close(found, wanted)
    assert found[0, 1, 2] == 0.0
    assert (found[:, 0] == 1.0).all()
    torch.testing.assert_close(
        dual.neighbour_cosine(cells[:, :, 0]), torch.cosine_similarity(cells[:, :-1, 0], cells[:, 1:, 0], dim=-1)
    )


def test_mean_pairwise_cosine_is_the_mean_over_pairs() -> None:
    cells = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(1)).abs()
    pairs = [torch.cosine_similarity(one, other, dim=-1) for one, other in itertools.permutations(cells, 2)]
    torch.testing.assert_close(dual.mean_pairwise_cosine(cells), torch.stack(pairs).mean(dim=0))
    assert (dual.mean_pairwise_cosine(cells[:1]).abs() < 1e-6).all()


def test_frames_must_be_whole() -> None:
    assert dual.by_frame(torch.zeros(2, 12, 3), 4).shape == (2, 4, 3, 3)
    assert dual.by_frame(torch.zeros(2, 12), 4).shape == (2, 4, 3)
    for frames in (0, 5):
        with pytest.raises(IncompatibleError, match="equal frames"):
            dual.by_frame(torch.zeros(2, 12), frames)


def test_quotas_take_the_best_of_each_group() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 5.0, 5.0, 0.0]])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    found = dual.quota_members(scores, groups, torch.tensor([[2, 1]]))
    assert found.tolist() == [[False, True, True, True, False, False]]
    assert dual.quota_members(scores, groups, torch.tensor([[9, 0]])).sum() == 3
