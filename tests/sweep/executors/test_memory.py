"""A cell that runs out of memory is tried once more with smaller batches, and says so."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenprune.evaluation.evaluate import Evaluation
from tokenprune.evaluation.machine.devices import lost_device, ran_out_of_memory
from tokenprune.sweep import SweepOutcome, SweepStore

Run = Callable[..., SweepOutcome]
SMALL: dict[str, Any] = {"pruners": ["first"], "budgets": [4], "efficiency": False, "lens": False, "batch_size": 8}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Room for batches of so many samples; returns the sizes that were tried under a pruner."""
    whole = Evaluation.evaluate_batch

    def give(room: int) -> list[int]:
        tried: list[int] = []

        def ask(self: Evaluation, batch: Any, memo: Any = None) -> None:
            if not self.unpruned:
                tried.append(len(batch.indices))
                if len(batch.indices) > room:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            whole(self, batch, memo)

        monkeypatch.setattr(Evaluation, "evaluate_batch", ask)
        return tried

    return give


def test_once_more_with_smaller_batches(sweep: Run, memory: Callable[[int], list[int]]) -> None:
    tried = memory(2)
    outcome = sweep(**SMALL)
    assert (outcome.done, outcome.failed) == (2, 0)
    assert tried == [8, 2, 2, 2, 2]
    store = SweepStore(outcome.directory)
    none, first = (store.result(cell.id) or {} for cell in store.plan())
    assert (none["attempts"], none["batch_size"]) == (1, 8)
    assert (first["attempts"], first["batch_size"]) == (2, 2)
    rows = store.samples(store.plan()[1].id)
    assert [row["index"] for row in rows] == list(range(8))
    assert all(row["error"] is None for row in rows)  # and no question counts as wrong for it


def test_not_more_than_once(sweep: Run, memory: Callable[[int], list[int]]) -> None:
    tried = memory(0)
    outcome = sweep(**SMALL)
    assert (outcome.done, outcome.failed) == (1, 1)
    assert tried == [8, 2]
    store = SweepStore(outcome.directory)
    error = store.error(store.plan()[1].id)
    assert error is not None
    assert (error["type"], error["attempts"], error["batch_size"]) == ("OutOfMemoryError", 2, 2)


def test_what_cannot_be_smaller_fails_at_once(sweep: Run, memory: Callable[[int], list[int]]) -> None:
    tried = memory(0)
    assert sweep(**{**SMALL, "batch_size": 1}).failed == 1
    assert tried == [1]


def test_who_says_that_there_is_no_memory() -> None:
    assert ran_out_of_memory(torch.OutOfMemoryError())
    assert ran_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
    for text in ("CUDA error: out of memory", "HIP out of memory. Tried to allocate", "CUDNN_STATUS_ALLOC_FAILED"):
        assert ran_out_of_memory(RuntimeError(text))
        assert not lost_device(torch.AcceleratorError(text))
    assert ran_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert ran_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not ran_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not ran_out_of_memory(RuntimeError("shape mismatch"))
    assert lost_device(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not lost_device(RuntimeError("shape mismatch"))
