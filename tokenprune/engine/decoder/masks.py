"""Attention masks for layers whose sequence and cache lengths differ.

If the model has built a mask for the whole prompt, the engine selects rows and columns of it. This keeps the model's
own sliding windows, two-way image attention and prefixes. Otherwise transformers' functions build a mask, in the form
that the attention kernel expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from tokenprune.engine.cache.caches import KeyColumns
from tokenprune.engine.patch.internals import BIASED_KERNELS, mask_functions
from tokenprune.errors import IncompatibleError


@dataclass(frozen=True)
class AttentionWindow:
    """How far back a layer attends, counted in the positions of the unpruned sequence.

    Args:
        kind: Layer type of transformers: full, sliding or chunked attention.
        size: Tokens of the window or chunk; 0 for full attention.
    """

    kind: str
    size: int = 0

    def overlay(self, queries: Tensor, keys: Tensor, start: Tensor, offset: int) -> Any:
        """A mask function of (batch, head, query, key), where query indices start at `offset`.

        Args:
            queries: (B, Q) unpruned position of each query.
            keys: (B, T) unpruned position of each key.
            start: (B,) unpruned position of the first token that is not padding; chunks are counted from there.
            offset: Index of the first query.
        """

        def sliding(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return queries[batch, query - offset] - keys[batch, key] < self.size

        def chunked(batch: Any, head: Any, query: Any, key: Any) -> Any:
            ours = (queries[batch, query - offset] - start[batch]) // self.size
            return ours == (keys[batch, key] - start[batch]) // self.size

        return {"sliding_attention": sliding, "chunked_attention": chunked}[self.kind]


def window_of(config: Any, kind: str) -> AttentionWindow:
    """How far back layers of a type attend, from the text model's config."""
    sizes = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    return AttentionWindow(kind, int(getattr(config, sizes[kind]))) if kind in sizes else AttentionWindow(kind)


def build_mask(
    config: Any, columns: KeyColumns, query_length: int, dtype: torch.dtype, reach: AttentionWindow
) -> Tensor | None:
    """Causal mask of the last `query_length` of the key columns (B, T) over all of them.

    Args:
        config: Config of the text model (names the kernel).
        columns: The key columns; the queries are the last of them.
        query_length: Number of query rows.
        dtype: Dtype of the hidden states.
        reach: How far back queries attend.

    Raises:
        IncompatibleError: The kernel cannot express the mask.
    """
    kernel = _kernel(config, columns)
    batch, length = columns.valid.shape
    offset = length - query_length
    masks = mask_functions()
    function = masks.causal
    if reach.size:
        if kernel not in BIASED_KERNELS:
            raise IncompatibleError(
                f"the attention kernel `{kernel}` counts windows in rows, but some rows were removed",
                hint="load the model with attention `sdpa`, `eager` or `flex_attention`",
            )
        queries = columns.logical[:, offset:]
        function = masks.both(function, reach.overlay(queries, columns.logical, columns.start, offset))
    factory = masks.factories["eager" if columns.log_weights is not None else kernel]
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


def is_whole(given: Any) -> bool:
    """Whether a mask has rows and columns, so that some of them can be selected."""
    return isinstance(given, Tensor | BlockMask) and len(given.shape) == 4


def shorten_mask(
    config: Any, given: Tensor | BlockMask, rows: Tensor, columns: KeyColumns, dtype: torch.dtype
) -> Tensor | BlockMask:
    """Select rows and columns of a mask (B or 1, H or 1, S, T) that the model has built for the whole prompt.

    Args:
        config: Config of the text model.
        given: A bool mask (True: the row sees the column), a bias on the logits, or a `flex_attention` block mask.
        rows: (B, S') slot of each row, -1 for padding.
        columns: Key columns after the cut.
        dtype: Dtype of the hidden states.

    Raises:
        IncompatibleError: The kernel cannot express the mask.
    """
    kernel = _kernel(config, columns)
    given = given.to(columns.valid.device)  # row and column indices are on one device, the layer may be on another
    if isinstance(given, BlockMask):
        if columns.log_weights is None:
            return _shorten_blocks(kernel, given, rows, columns)
        batch, heads, length, key_length = given.shape  # a block mask cannot hold the weights
        given = create_mask(given.mask_mod, batch, heads, length, key_length, rows.device)
    batch, width = rows.shape
    wide = given.expand(batch, -1, -1, -1)
    heads, length = wide.shape[1], wide.shape[3]
    mask = wide.gather(2, rows.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, length))
    mask = mask.gather(3, columns.logical[:, None, None, :].expand(-1, heads, width, -1))
    padding, removed = (rows < 0)[:, None, :, None], ~columns.valid[:, None, None, :]
    if mask.dtype == torch.bool:
        # padding rows attend to everything: the softmax of a fully masked row is NaN, and nothing reads padding rows
        mask = (mask | padding) & ~removed
        if columns.log_weights is None:
            return mask
        mask = torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    else:
        mask = mask.masked_fill(padding, 0.0).masked_fill(removed, torch.finfo(mask.dtype).min)
    shorter = _weighted(mask, columns.log_weights, dtype)
    assert shorter is not None  # noqa: S101 - a mask went in
    return shorter


def _shorten_blocks(kernel: str, given: BlockMask, rows: Tensor, columns: KeyColumns) -> BlockMask:
    """Select rows and columns of a block mask; the result is a block mask."""
    query_slots, key_slots = rows.clamp(min=0), columns.logical
    batch, width = rows.shape

    def seen(sample: Any, head: Any, query: Any, key: Any) -> Any:
        return given.mask_mod(sample, head, query_slots[sample, query], key_slots[sample, key])

    mask: BlockMask = mask_functions().factories[kernel](
        batch_size=batch,
        q_length=width,
        kv_length=key_slots.shape[1],
        mask_function=seen,
        attention_mask=columns.valid,
        device=rows.device,
    )
    return mask


def _kernel(config: Any, columns: KeyColumns) -> str:
    kernel: str = config._attn_implementation
    if columns.log_weights is not None and kernel not in BIASED_KERNELS:
        raise IncompatibleError(
            f"the attention kernel `{kernel}` has no bias for single keys, which token weights need",
            hint="load the model with attention `sdpa`, `eager` or `flex_attention`, or switch mass correction off",
        )
    return kernel


def _weighted(mask: Tensor | None, log_weights: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if log_weights is None or mask is None:
        return mask
    biased = mask + log_weights.to(dtype)[:, None, None, :]
    return torch.where(mask <= torch.finfo(dtype).min, mask, biased)
