"""FLOPs by torch's own counter, with the attention formula that it lacks on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of one call: matrix products, convolutions and attention (a multiply-add counts 2).

    Causal attention is counted in full, as torch does. Softmax, top-k, gathers and distances are not counted, so a
    pruner's own cost is understated: read it beside the measured time.
    """
    with FlopCounterMode(display=False, custom_mapping=_missing_formulas()) as counter:
        run()
    return int(counter.get_total_flops())


def _missing_formulas() -> dict[Any, Any]:
    """The CPU attention kernel has no formula in torch 2.13; without one all attention would count nothing."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return {} if kernel in flop_registry else {kernel: _cpu_attention}


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of one attention call from the shapes (B, H, S, d) of its tensors."""
    del out_shape
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
