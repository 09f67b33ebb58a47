"""FLOPs by torch's own counter, with the attention formula that it lacks on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count


@dataclass(frozen=True, slots=True)
class Counted:
    """What torch counted in one call.

    Args:
        flops: Matrix products, convolutions and attention; a multiply-add counts 2.
        kernels: Names of the fused attention kernels that really ran; empty where attention was plain products.
    """

    flops: int
    kernels: tuple[str, ...]


def count(run: Callable[[], object]) -> Counted:
    """Count one call.

    Causal attention is counted in full, as torch does. Softmax, top-k, gathers and distances are not counted, so a
    pruner's own cost is understated: read it beside the measured time.
    """
    with FlopCounterMode(display=False, custom_mapping=_missing_formulas()) as counter:
        run()
    operators = [str(operator).removeprefix("aten.") for operator in counter.get_flop_counts().get("Global", {})]
    kernels = sorted({name.lstrip("_") for name in operators if "attention" in name})
    return Counted(int(counter.get_total_flops()), tuple(kernels))


def _missing_formulas() -> dict[Any, Any]:
    """The CPU attention kernel has no formula in torch 2.13; without one all attention would count nothing."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return {} if kernel in flop_registry else {kernel: _cpu_attention}


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of one attention call from the shapes (B, H, S, d) of its tensors."""
    del out_shape
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
