"""Every family over two devices: nothing of a session mixes them, and the answers are those on one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.machine.places import FIRST, placed, put
from tests.engine.pruners import Averaging
from tests.families.proving import BOTH, PRUNED, Zoo, chosen, samples
from tokenprune.engine import pruned
from tokenprune.families.lookup import parts_of

#: Families whose stock model does not run where devices are imagined: masks made under `vmap` and kernels chosen by the
#: kind of device escape it; the stock `forward` of Llama 4 fails by itself.
NOT_IMAGINED = ("gemma3", "gemma4", "qwen3_vl_moe", "llama4")


@pytest.mark.parametrize("name", [name for name in PRUNED if name not in NOT_IMAGINED])
def test_devices_never_mix(zoo: Zoo, name: str) -> None:
    """The last layers and the vision side are on a second device."""
    built = zoo(name, "eager")
    inputs = built.inputs(*samples(built)[:2])
    parts = parts_of(built.model)
    towers = [parts.vision.tower] if parts.vision is not None else []
    for picker in (chosen(BOTH), Averaging(("layer:3",), weighted=True), "iwp"):
        expected = prefill(built.model, picker, inputs)
        with placed(built.model, [*towers, *parts.layers[2:], parts.final_norm]):
            there = {
                key: put(value.clone(), FIRST) if isinstance(value, torch.Tensor) else value
                for key, value in inputs.items()
            }
            found = prefill(built.model, picker, there)
        assert torch.equal(found, expected)


def prefill(model: Any, picker: Any, inputs: Any) -> torch.Tensor:
    options: Any = {"ratio": 0.5} if isinstance(picker, str | Averaging) else {}
    with torch.no_grad(), pruned(model, picker, **options):
        logits: torch.Tensor = model(**inputs).logits
    return logits
