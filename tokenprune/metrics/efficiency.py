"""What a cell costs: time, memory and FLOPs of one sample, alone on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenprune.engine import Session
from tokenprune.metrics.flops import count_flops

MIB = 1024.0 * 1024.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    q1: float
    q3: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summary of at least one value (quartiles by linear interpolation)."""
        q1, median, q3 = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
        return cls(float(median), float(q1), float(q3), len(values))


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one sample.

    Args:
        prefill_ms: From the prepared inputs to the first answer token: vision encoder, projector, pruner, decoder.
        decode_ms_per_token: Each further token, from runs that differ only in their length.
        total_ms: Prefill and `new_tokens` further tokens.
        overhead_ms: Part of the prefill that went into the pruner's views and decisions.
        peak_mem_mib: Peak memory of tensors allocated during one prefill, above what was held at its start; from
            the CUDA allocator on GPUs, from the profiler's allocation events on CPUs (so without the interpreter,
            without weights, and without work space that libraries allocate by themselves).
        kv_mib: Bytes in the cache after the prefill, of all layers and all tokens.
        prefill_tflops: See `tokenprune.metrics.flops.count_flops`.
        new_tokens: Further tokens of the decode measurement.
        device: Where it ran.
        threads: CPU threads that torch used.
    """

    prefill_ms: Spread
    decode_ms_per_token: Spread
    total_ms: Spread
    overhead_ms: Spread
    peak_mem_mib: float
    kv_mib: float
    prefill_tflops: float
    new_tokens: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def measure_cost(
    model: Any,
    inputs: Mapping[str, Tensor],
    session: Callable[[], AbstractContextManager[Session]],
    *,
    warmup: int,
    repeats: int,
    new_tokens: int,
) -> Cost:
    """Measure one prepared batch (normally of one sample).

    Args:
        model: A stock model with `generate`.
        inputs: Tensors of the processor, on the model's device.
        session: Makes the pruning context; entered once, outside the timed region.
        warmup: Untimed runs before.
        repeats: Timed runs; short and long ones take turns, so that drift of the machine meets both.
        new_tokens: Tokens after the first in the long runs.
    """
    device = next(model.parameters()).device
    short: list[float] = []
    long: list[float] = []
    overhead: list[float] = []
    with session() as running:

        def run(further: int) -> float:
            _synchronise(device)
            started = time.perf_counter()
            _generate(model, inputs, 1 + further)
            _synchronise(device)
            return 1000.0 * (time.perf_counter() - started)

        for _ in range(warmup):
            run(new_tokens)
        for _ in range(repeats):
            short.append(run(0))
            overhead.append(float(running.last.decide_ms))
            long.append(run(new_tokens))
        flops = count_flops(lambda: _generate(model, inputs, 1))
        peak, cache = _peak_memory(device, lambda: _generate(model, inputs, 1))
    per_token = [(both - first) / new_tokens for first, both in zip(short, long, strict=True)]
    return Cost(
        prefill_ms=Spread.of(short),
        decode_ms_per_token=Spread.of(per_token),
        total_ms=Spread.of(long),
        overhead_ms=Spread.of(overhead),
        peak_mem_mib=peak / MIB,
        kv_mib=cache_bytes(cache) / MIB,
        prefill_tflops=flops / 1e12,
        new_tokens=new_tokens,
        device=_device_name(device),
        threads=torch.get_num_threads(),
    )


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values of a transformers cache, over all layers."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )


def _generate(model: Any, inputs: Mapping[str, Tensor], tokens: int) -> Any:
    """Greedy generation of exactly `tokens` tokens."""
    return model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        return_dict_in_generate=True,
    )


def _peak_memory(device: torch.device, run: Callable[[], Any]) -> tuple[int, Any]:
    """Peak of tensor memory during one call above its start, in bytes, and the cache that the call leaves."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        cache = run().past_key_values
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held, cache
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        cache = run().past_key_values
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return peak, cache


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
