"""Attention masks for layers whose sequences and caches have lengths of their own.

Where the model has built a mask for the whole chunk, its rows and columns are taken: so sliding windows, two-way image
attention and prefixes stay what the model makes of them. Otherwise the mask is built by transformers' own functions, so
that every kernel gets the form that it expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks, causal_mask_function

from tokenprune.engine.caches import Columns
from tokenprune.errors import IncompatibleError

#: Kernels that take an additive bias for each key.
BIASED_KERNELS = ("sdpa", "eager")


@dataclass(frozen=True)
class Reach:
    """How far back a layer's rows see, counted in the places that tokens have unpruned.

    Args:
        kind: Kind of the layer: full, sliding or chunked attention.
        size: Tokens of the window or chunk; 0 for full attention.
    """

    kind: str
    size: int = 0

    def overlay(self, queries: Tensor, keys: Tensor, start: Tensor, offset: int) -> Any:
        """A mask function of (batch, head, query, key), where query indices start at `offset`.

        Args:
            queries: (B, Q) place of each query.
            keys: (B, T) place of each key.
            start: (B,) place of the first token that is no padding; chunks are counted from there.
            offset: Index of the first query.
        """

        def sliding(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return queries[batch, query - offset] - keys[batch, key] < self.size

        def chunked(batch: Any, head: Any, query: Any, key: Any) -> Any:
            ours = (queries[batch, query - offset] - start[batch]) // self.size
            return ours == (keys[batch, key] - start[batch]) // self.size

        return {"sliding_attention": sliding, "chunked_attention": chunked}[self.kind]


def reach_of(config: Any, kind: str) -> Reach:
    """How far back layers of a kind see, from the text model's config."""
    sizes = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    return Reach(kind, int(getattr(config, sizes[kind]))) if kind in sizes else Reach(kind)


def build_mask(config: Any, columns: Columns, query_length: int, dtype: torch.dtype, reach: Reach) -> Tensor | None:
    """Causal mask of the last `query_length` of the key columns (B, T) over all of them.

    Args:
        config: Config of the text model (names the kernel).
        columns: The key columns; the queries are the last of them.
        query_length: Number of query rows.
        dtype: Dtype of the hidden states.
        reach: How far back rows see.

    Raises:
        IncompatibleError: The kernel cannot express the mask.
    """
    kernel = _kernel(config, columns)
    batch, length = columns.valid.shape
    offset = length - query_length
    function = causal_mask_function
    if reach.size:
        if kernel not in (*BIASED_KERNELS, "flex_attention"):
            raise IncompatibleError(
                f"the attention kernel `{kernel}` counts windows in rows, of which some have been taken out",
                hint="load the model with attention `sdpa` or `eager`",
            )
        queries = columns.logical[:, offset:]
        function = and_masks(function, reach.overlay(queries, columns.logical, columns.start, offset))
    factory = ALL_MASK_ATTENTION_FUNCTIONS["eager" if columns.log_weights is not None else kernel]
    mask: Tensor | None = factory(
        batch_size=batch,
        q_length=query_length,
        kv_length=length,
        q_offset=offset,
        kv_offset=0,
        mask_function=function,
        attention_mask=columns.valid,
        allow_is_causal_skip=not reach.size,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=columns.valid.device,
    )
    return _weighted(mask, columns.log_weights, dtype)


def shorten_mask(config: Any, given: Tensor, rows: Tensor, columns: Columns, dtype: torch.dtype) -> Tensor:
    """Rows and columns of a mask (B or 1, H or 1, S, T) that the model has built for the whole chunk.

    Args:
        config: Config of the text model.
        given: True where a row sees a column, or what is added to the logits.
        rows: (B, S') slot of each row, -1 for padding.
        columns: Key columns after the cut.
        dtype: Dtype of the hidden states.
    """
    _kernel(config, columns)
    batch, width = rows.shape
    wide = given.expand(batch, -1, -1, -1)
    heads, length = wide.shape[1], wide.shape[3]
    mask = wide.gather(2, rows.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, length))
    mask = mask.gather(3, columns.logical[:, None, None, :].expand(-1, heads, width, -1))
    padding, gone = (rows < 0)[:, None, :, None], ~columns.valid[:, None, None, :]
    if mask.dtype == torch.bool:
        # rows of padding see everything that is there: nothing reads them, and a row that sees nothing has no softmax
        mask = (mask | padding) & ~gone
        if columns.log_weights is None:
            return mask
        mask = torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    else:
        mask = mask.masked_fill(padding, 0.0).masked_fill(gone, torch.finfo(mask.dtype).min)
    shorter = _weighted(mask, columns.log_weights, dtype)
    assert shorter is not None  # noqa: S101 - a mask went in
    return shorter


def _kernel(config: Any, columns: Columns) -> str:
    kernel: str = config._attn_implementation
    if columns.log_weights is not None and kernel not in BIASED_KERNELS:
        raise IncompatibleError(
            f"the attention kernel `{kernel}` has no bias for single keys, which token weights need",
            hint="load the model with attention `sdpa` or `eager`, or switch mass correction off",
        )
    return kernel


def _weighted(mask: Tensor | None, log_weights: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if log_weights is None or mask is None:
        return mask
    biased = mask + log_weights.to(dtype)[:, None, None, :]
    return torch.where(mask <= torch.finfo(dtype).min, mask, biased)
