"""Sessions that share a memo answer as if they shared nothing, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.engine.pruners import ByContent
from tests.families.proving import everyone, said, samples
from tests.families.zoo import Built
from tokenprune.engine import PrefillMemo, pruned
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import load_host
from tokenprune.pruner import Pruner

Zoo = Callable[[str], Built]
HOST = load_host()


def pruners(built: Built) -> list[Pruner]:
    """One that cuts late, then one at the input, one between, and one that looks into the encoder."""
    chosen: list[Pruner] = [ByContent(("layer:3",)), ByContent(("input",)), ByContent(("layer:1", "layer:2"))]
    if parts_of(built.model, HOST).refusal("encoder") is None:
        chosen.append(HOST.pruners.get("visionzip").build({}))
    return chosen


@everyone
def test_pruners_of_one_memo_answer_as_without(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    memo = PrefillMemo()
    attended: list[int] = []
    first = parts_of(built.model, HOST).layers[0]
    handle = first.get_submodule("self_attn").register_forward_pre_hook(
        lambda module, args, kwargs: attended.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )

    def answers(pruner: Pruner, shared: PrefillMemo | None) -> Any:
        attended.clear()
        with pruned(built.model, pruner, ratio=0.5, memo=shared, host=HOST):
            out = said(built, inputs, 4)
        return out.sequences, torch.stack(out.logits)

    try:
        for pruner in pruners(built):
            expected = answers(pruner, None)
            alone = list(attended)
            found = answers(pruner, memo)
            assert all(map(torch.equal, found, expected)), pruner
            shares_caches = name.startswith("gemma4")
            late = isinstance(pruner, ByContent) and pruner.sites == ("layer:1", "layer:2")
            if late and not shares_caches:  # layer 0 was run by the first pruner, for the prompt
                assert len(attended) == len(alone) - 1, "nothing was shared"
    finally:
        handle.remove()
