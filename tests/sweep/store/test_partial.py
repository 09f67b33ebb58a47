"""Answers are written as they come: who continues goes on after the last whole batch, and ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sweep.fixtures import Workshop
from tests.sweep.versions import upgrade
from tokenprune.checkpoints import LoadedModel
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.evaluation.environment import Installed
from tokenprune.evaluation.evaluate import Evaluation
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep
from tokenprune.sweep.store.predictions import read_partial

PLAIN: dict[str, Any] = {"efficiency": False, "overlays": 1, "lens": {"samples": 2}, "budgets": [4]}
TIMED = ("started", "seconds", "worker", "resumed")
FILES = ("samples.jsonl", "first_token.npz", "overlays.json")

Asked = list[tuple[str, int]]
Go = Callable[..., SweepOutcome]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Every batch that is asked, by the label of its cell and its first question."""
    found: Asked = []
    whole = Evaluation.evaluate_batch

    def ask(self: Evaluation, batch: Any, memo: Any = None) -> None:
        found.append((self.label, batch.indices[0]))
        whole(self, batch, memo)

    monkeypatch.setattr(Evaluation, "evaluate_batch", ask)
    return found


@pytest.fixture
def go(workshop: Workshop, tmp_path: Path) -> Go:
    """An untracked sweep in a folder of its own."""

    def run(folder: str, **changes: Any) -> SweepOutcome:
        config = workshop.config(**{**PLAIN, **changes})
        return run_sweep(config, directory=tmp_path / folder, host=workshop.host, track=False)

    return run


def stop_at(monkeypatch: pytest.MonkeyPatch, asked: Asked, count: int, error: BaseException) -> None:
    """Whoever asks the batch after so many is stopped in it."""
    whole = Evaluation._evaluate_whole

    def ask(self: Evaluation, batch: Any, memo: Any) -> None:
        if len(asked) > count:
            raise error
        whole(self, batch, memo)

    monkeypatch.setattr(Evaluation, "_evaluate_whole", ask)


def stopped(monkeypatch: pytest.MonkeyPatch, asked: Asked, count: int, run: Callable[[], SweepOutcome]) -> SweepOutcome:
    """Run a sweep and stop it after so many batches; then forget what was asked."""
    with monkeypatch.context() as patch:
        stop_at(patch, asked, count, KeyboardInterrupt())
        outcome = run()
    assert outcome.interrupted
    assert len(asked) == count + 1
    asked.clear()
    return outcome


def contents(directory: Path) -> dict[str, Any]:
    """Everything that the cells of a sweep left, to the bit; but times."""
    store = SweepStore(directory)
    found: dict[str, Any] = {}
    for cell in store.plan():
        folder = store.cell_directory(cell.id)
        result = store.result(cell.id) or {}
        found[cell.name] = {name: value for name, value in result.items() if name not in TIMED}
        found[cell.name] |= {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        assert {path.name for path in folder.iterdir()} <= {*FILES, "result.json"}
    return found


def resumed(directory: Path) -> dict[str, int]:
    store = SweepStore(directory)
    return {cell.label: (store.result(cell.id) or {"resumed": -1})["resumed"] for cell in store.plan()}


def partial_of(directory: Path, label: str) -> Path:
    store = SweepStore(directory)
    (cell,) = [cell for cell in store.plan() if cell.label == label]
    return store.cell_directory(cell.id) / "partial.jsonl"


# --- going on ---------------------------------------------------------------------------------------------------------

CELLS = ["first", "grid", "fastv"]
ORDER = [
    *(("none", start) for start in (0, 3, 6)),
    *((label, start) for start in (0, 3, 6) for label in CELLS),
]
"""In which the batches of one sweep are asked."""


@pytest.mark.parametrize(("bad", "counts"), [(-1, (2, 5, 10)), (4, (7,))], ids=["good samples", "one bad sample"])
def test_a_stopped_sweep_goes_on_with_the_next_batch_and_ends_with_the_same_bits(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch, bad: int, counts: tuple[int, ...]
) -> None:
    """In a cell by itself, and in one of several that share their work and are not equally far."""
    changes: dict[str, Any] = {"pruners": CELLS, "tasks": [{"name": "toy", "options": {"size": 8, "bad": bad}}]}
    expected = contents(go("whole", **changes).directory)
    assert asked == ORDER
    asked.clear()
    for count in counts:
        folder = f"stopped-{count}"
        stopped(monkeypatch, asked, count, lambda folder=folder: go(folder, **changes))  # type: ignore[misc]
        outcome = go(folder, **changes)
        assert asked == ORDER[count:]  # the batch at hand once more, and nothing else
        assert contents(outcome.directory) == expected
        taken = resumed(outcome.directory)
        for label in CELLS:
            assert taken[label] == sum(min(3, 8 - start) for name, start in ORDER[:count] if name == label)
        asked.clear()


def test_a_sweep_may_be_stopped_after_every_batch(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"pruners": ["first"]}
    expected = contents(go("whole", **changes).directory)
    whole = list(asked)
    asked.clear()
    seen: Asked = []
    for _ in range(len(whole) - 1):
        with monkeypatch.context() as patch:
            stop_at(patch, asked, 1, KeyboardInterrupt())
            assert go("often", **changes).interrupted
        seen += asked[:1]
        asked.clear()
    outcome = go("often", **changes)
    assert seen + asked == whole
    assert contents(outcome.directory) == expected


def test_what_goes_on_is_said(go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"pruners": ["first", "grid"]}
    stopped(monkeypatch, asked, 6, lambda: go("run", **changes))
    outcome = go("run", **changes)
    assert outcome.changes == ("2 cells go on where they were stopped: 9 of 16 questions are answered",)


# --- files that were not written to their end -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["end", "middle", "zeros", "first line", "empty", "other"])
def test_a_file_that_is_torn_or_damaged_counts_up_to_there(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    expected = contents(go("whole", pruners=["first"]).directory)
    asked.clear()
    directory = stopped(monkeypatch, asked, 5, lambda: go("run", pruners=["first"])).directory
    path = partial_of(directory, "first")
    head, one, two, rest = path.read_bytes().split(b"\n")
    assert rest == b""
    contents_of = {
        "end": (b"\n".join([head, one, two[:-1]]), 3),
        "middle": (b"\n".join([head, one[:50], two, b""]), 0),
        "zeros": (b"\n".join([head, one, b"\0" * len(two), b""]), 3),
        "first line": (b"\n".join([head[:-9], one, two, b""]), 0),
        "empty": (b"", 0),
        "other": (b"\n".join([head, two, one, b""]), 0),
    }
    data, left = contents_of[damage]
    path.write_bytes(data)
    outcome = go("run", pruners=["first"])
    assert asked == [("first", start) for start in range(left, 8, 3)]
    assert contents(outcome.directory) == expected


def test_no_cut_of_a_file_gives_another_answer(go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stopped(monkeypatch, asked, 5, lambda: go("run", pruners=["first"])).directory
    path = partial_of(directory, "first")
    whole = path.read_bytes()
    begun = read_partial(path)
    assert begun is not None
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        found = read_partial(path)
        assert found is None or found.batches == begun.batches[: len(found.batches)]


def test_what_an_earlier_worker_still_appends_is_not_read(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stopped(monkeypatch, asked, 4, lambda: go("run", pruners=["first"])).directory
    path = partial_of(directory, "first")
    with path.open("ab") as earlier:
        stopped(monkeypatch, asked, 1, lambda: go("run", pruners=["first"]))
        earlier.write(path.read_bytes().split(b"\n")[1] + b"\n")
    begun = read_partial(path)
    assert begun is not None
    assert begun.questions == 6


# --- another environment, other batches -------------------------------------------------------------------------------


def test_answers_of_other_versions_are_not_taken_over_and_it_is_said(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, asked, 5, lambda: go("run", pruners=["first"]))
    old = Installed()("torch")
    upgrade(monkeypatch, torch="9.9")
    outcome = go("run", pruners=["first"])
    assert asked == [("first", start) for start in (0, 3, 6)]
    said = f"1 cell is asked from its start: 6 questions were answered with torch {old}, here it is 9.9"
    assert said in outcome.changes
    assert resumed(outcome.directory)["first"] == 0


def test_answers_with_another_number_of_threads_are_not_taken_over(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sums are made in another order."""
    threads = torch.get_num_threads()
    stopped(monkeypatch, asked, 5, lambda: go("run", pruners=["first"]))
    torch.set_num_threads(threads + 1)
    try:
        go("run", pruners=["first"])
    finally:
        torch.set_num_threads(threads)
    assert asked == [("first", start) for start in (0, 3, 6)]
    assert f"6 answers are not taken over, because they were answered with threads {threads}" in caplog.text


def test_a_cell_that_had_come_to_smaller_batches_goes_on_with_them(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would have without the stop: the large batches do not fit now either."""
    whole = Evaluation._evaluate_whole

    def ask(self: Evaluation, batch: Any, memo: Any) -> None:
        if not self.unpruned and len(batch.indices) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(self, batch, memo)

    monkeypatch.setattr(Evaluation, "_evaluate_whole", ask)
    changes: dict[str, Any] = {"pruners": ["first"], "batch_size": 8}
    expected = contents(go("whole", **changes).directory)
    assert asked == [("none", 0), ("first", 0), *(("first", start) for start in (0, 2, 4, 6))]
    asked.clear()
    stopped(monkeypatch, asked, 4, lambda: go("run", **changes))
    outcome = go("run", **changes)
    assert asked == [("first", 4), ("first", 6)]
    assert contents(outcome.directory) == expected


def test_what_a_cell_gave_before_it_failed_is_not_taken_over(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong may be wrong with it, too."""
    with monkeypatch.context() as patch:
        stop_at(patch, asked, 5, IncompatibleError("not this one", hint="take another"))
        directory = go("run", pruners=["first"]).directory
    assert [SweepStore(directory).state(cell.id) for cell in SweepStore(directory).plan()] == ["done", "refused"]
    assert not partial_of(directory, "first").exists()


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_sample_that_cannot_be_prepared_is_wrong_and_costs_no_cell(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LoadedModel.encode

    def encode(self: LoadedModel, samples: Any) -> Any:
        if any(sample.id == "toy/4" for sample in samples):
            raise ConfigError("a broken picture", hint="mend it")
        return whole(self, samples)

    monkeypatch.setattr(LoadedModel, "encode", encode)
    outcome = go("run", pruners=["first"])
    assert (outcome.done, outcome.failed) == (2, 0)
    store = SweepStore(outcome.directory)
    for cell in store.plan():
        errors = {row["id"]: row["error"] for row in store.samples(cell.id) if row["error"]}
        assert errors == {"toy/4": "ConfigError: a broken picture"}


def test_batches_are_prepared_as_they_are_asked_and_kept_within_bounds(
    go: Go, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    whole = LoadedModel.encode

    def encode(self: LoadedModel, samples: Any) -> Any:
        prepared.append(len(samples))
        return whole(self, samples)

    monkeypatch.setattr(LoadedModel, "encode", encode)
    changes: dict[str, Any] = {"pruners": ["first", "grid"], "lens": False, "overlays": 0}
    expected = contents(go("kept", **changes).directory)
    assert prepared == [3, 3, 2]  # once for all cells
    prepared.clear()
    monkeypatch.setattr("tokenprune.evaluation.batches.KEEP_MIB", 0)
    assert contents(go("not-kept", **changes).directory) == expected
    assert prepared[:6] == [3, 3, 2, 3, 3, 2]  # once for the unpruned cell and once for those that share them
    prepared.clear()
    asked.clear()
    stopped(monkeypatch, asked, 8, lambda: go("stopped", **changes))
    prepared.clear()
    go("stopped", **changes)
    assert prepared == [2]  # nothing that is answered
