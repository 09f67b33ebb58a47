"""Two threads that use one session, each with a picture of its own, in every family."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from tests.families.proving import BOTH, Zoo, chosen, everyone, said
from tests.families.zoo import Sample
from tokenprune.engine import pruned

TURNS = torch.tensor([[5, 6, 7], [8, 9, 10]])
WAIT = 60.0


@everyone
def test_two_threads_answer_as_alone(zoo: Zoo, name: str) -> None:
    """Each by `generate`, and by a prefill with steps on its cache; the threads take turns after every pass."""
    built = zoo(name)
    asked = [built.inputs(Sample(images=1, seed=seed)) for seed in (2, 3)]

    def answer(inputs: Any, gate: Any) -> list[Tensor]:
        with torch.no_grad():
            cache = built.model(**inputs, use_cache=True).past_key_values
            found = []
            for turn in TURNS:
                gate()
                found.append(built.model(input_ids=turn[None], past_key_values=cache, use_cache=True).logits)
            gate()
            return [*found, said(built, inputs, 4).sequences]

    with pruned(built.model, chosen(BOTH), ratio=0.5):
        alone = [answer(inputs, lambda: None) for inputs in asked]
        barrier = threading.Barrier(len(asked))
        with ThreadPoolExecutor(len(asked)) as threads:
            running = [threads.submit(answer, inputs, lambda: barrier.wait(WAIT)) for inputs in asked]
            together = [each.result(WAIT) for each in running]
    for ours, theirs in zip(together, alone, strict=True):
        assert all(map(torch.equal, ours, theirs))
