"""FLOPs by torch's own counter, with the attention formula that it lacks on CPUs, and by the closed formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of one call, see `count`."""
    return count(run).flops


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a dense decoder with gated MLPs (LLaMA and its kin).

    Args:
        hidden: D.
        heads: H query heads.
        kv_heads: G key-value heads.
        head: Width d of one head.
        intermediate: Width of the MLPs.
        vocabulary: Rows of the output head.
    """

    hidden: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """From the config of a text model."""
        heads = int(config.num_attention_heads)
        return cls(
            hidden=int(config.hidden_size),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            intermediate=int(config.intermediate_size),
            vocabulary=int(config.vocab_size),
        )

    def prefill_flops(self, lengths: Sequence[int]) -> int:
        """FLOPs of a prefill of one prompt up to the logits of its last token, by the closed formula.

        Each layer that runs with S tokens does 2 S D (2 H d + 2 G d) in its projections, 4 S^2 H d in its attention
        (counted in full) and 6 S D F in its MLP (F its width); the output head 2 D V.

        Args:
            lengths: S of each decoder layer, visual and text tokens: (L,), a row of `PruneRecord.sequence_lengths`.
        """
        wide = self.heads * self.head
        projections = 2 * self.hidden * (2 * wide + 2 * self.kv_heads * self.head)
        mlp = 6 * self.hidden * self.intermediate
        layers = sum(length * (projections + mlp) + 4 * length * length * wide for length in lengths)
        return layers + 2 * self.hidden * self.vocabulary


def _missing_formulas() -> dict[Any, Any]:
    """The CPU attention kernel has no formula in torch 2.13; without one all attention would count nothing."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return {} if kernel in flop_registry else {kernel: _cpu_attention}


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of one attention call from the shapes (B, H, S, d) of its tensors."""
    del out_shape
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
