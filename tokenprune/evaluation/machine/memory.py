"""Peak memory of one run, and the bytes of a KV cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

MIB = 1024.0 * 1024.0
QUIET_PROFILER = ("KINETO_LOG_LEVEL", "6")
"""The profiler writes its stages, and that there is no GPU, past Python to stderr, in the middle of a live display."""


def peak_memory(device: torch.device, run: Callable[[], Any]) -> tuple[int, Any]:
    """Peak of tensor memory during one run above its start, in bytes, and what the run returns.

    From the CUDA allocator on GPUs, from the profiler's allocation events elsewhere: so without the interpreter,
    without weights, and without work space that libraries allocate by themselves.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        made = run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held, made
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault(*QUIET_PROFILER)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        made = run()
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return peak, made


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values of a transformers cache, over all layers."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )
