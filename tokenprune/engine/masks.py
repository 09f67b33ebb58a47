"""Attention masks for layers whose sequences and caches have lengths of their own.

Built by transformers' own mask functions, so that every kernel gets the form that it expects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from tokenprune.errors import IncompatibleError

#: Kernels that take an additive bias for each key.
BIASED_KERNELS = ("sdpa", "eager")


def causal_mask(
    config: Any, columns: Tensor, query_length: int, dtype: torch.dtype, log_weights: Tensor | None = None
) -> Tensor | None:
    """Causal mask of the last `query_length` of the key columns (B, T) over all of them.

    Args:
        config: Config of the text model (names the kernel).
        columns: True where the key is a token.
        query_length: Number of query rows; they stand at the end of the columns.
        dtype: Dtype of the hidden states.
        log_weights: (B, T) added to the logits of the keys, or `None`.

    Raises:
        IncompatibleError: Log weights are asked for and the kernel has no bias for single keys.
    """
    kernel = config._attn_implementation
    batch, length = columns.shape
    if log_weights is not None and kernel not in BIASED_KERNELS:
        raise IncompatibleError(
            f"the attention kernel `{kernel}` has no bias for single keys, which token weights need",
            hint="load the model with attention `sdpa` or `eager`, or switch mass correction off",
        )
    factory = ALL_MASK_ATTENTION_FUNCTIONS["eager" if log_weights is not None else kernel]
    mask: Tensor | None = factory(
        batch_size=batch,
        q_length=query_length,
        kv_length=length,
        q_offset=length - query_length,
        kv_offset=0,
        mask_function=causal_mask_function,
        attention_mask=columns,
        allow_is_causal_skip=True,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=columns.device,
    )
    if log_weights is None or mask is None:
        return mask
    smallest = torch.finfo(dtype).min
    biased = mask + log_weights.to(dtype)[:, None, None, :]
    return torch.where(mask <= smallest, mask, biased)
