from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.sweep.fixtures import Workshop
from tests.sweep.tiny import TOKENS
from tokenprune import Budget
from tokenprune.engine import pruned
from tokenprune.metrics.efficiency import MIB, Spread, _peak_memory, cache_bytes, measure_cost
from tokenprune.metrics.flops import count_flops
from tokenprune.models import LoadedModel, load_model
from tokenprune.sweep.bench import Bench
from tokenprune.sweep.plan import plan_cells


@pytest.fixture(scope="module")
def loaded(workshop: Workshop) -> LoadedModel:
    return load_model(str(workshop.model), host=workshop.host)


@pytest.fixture(scope="module")
def inputs(workshop: Workshop) -> Any:
    cell = plan_cells(workshop.config(), workshop.host)[0]
    bench = Bench(workshop.host, "cpu")
    return bench.prepare(bench.model(cell), bench.task(cell), [0]).inputs


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)


def test_flops_of_known_products() -> None:
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_a_cpu_is_counted(masked: bool) -> None:
    batch, heads, rows, columns, width = 2, 3, 8, 10, 16
    query = torch.randn(batch, heads, rows, width)
    key, value = torch.randn(2, batch, heads, columns, width)
    mask = torch.zeros(rows, columns) if masked else None
    counted = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, mask))
    assert counted == 2 * (2 * batch * heads * rows * columns * width)


def test_sdpa_and_eager_count_the_same(workshop: Workshop, loaded: LoadedModel, inputs: Any) -> None:
    """The reason for the formula: as torch ships it, all attention on a CPU counts nothing."""
    eager = load_model(str(workshop.model), attention="eager", host=workshop.host)
    with torch.no_grad():
        fused = count_flops(lambda: loaded.model(**inputs, use_cache=True))
        plain = count_flops(lambda: eager.model(**inputs, use_cache=True))
    assert fused == plain > 0


def test_peak_memory_of_known_allocations() -> None:
    class Result:
        past_key_values = None

    def run() -> Result:
        first = torch.ones(256, 1024)  # 1 MiB
        second = first + 1  # 2 MiB held
        del first
        third = second + 1  # 2 MiB again
        del second, third
        return Result()

    peak, _ = _peak_memory(torch.device("cpu"), run)
    assert 2 * MIB <= peak < 2.1 * MIB


def test_cost_of_a_cell(loaded: LoadedModel, inputs: Any) -> None:
    model = loaded.model
    settings = {"warmup": 0, "repeats": 2, "new_tokens": 2}
    whole = measure_cost(model, inputs, lambda: pruned(model, None, Budget(ratio=1.0)), **settings)
    half = measure_cost(model, inputs, lambda: pruned(model, "grid", Budget(tokens=4)), **settings)
    assert whole.prefill_ms.repeats == 2
    assert whole.device == "cpu"
    text = inputs["input_ids"].shape[1] - TOKENS
    config = model.config.text_config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert whole.kv_mib == (text + TOKENS) * row / MIB
    assert half.kv_mib == (text + 4) * row / MIB
    assert half.prefill_tflops < whole.prefill_tflops
    assert 0 < half.overhead_ms.median < half.prefill_ms.median
    assert whole.to_json()["prefill_ms"]["repeats"] == 2


def test_cache_bytes_counts_keys_and_values() -> None:
    class Layer:
        keys = torch.zeros(1, 2, 3, 4)
        values = torch.zeros(1, 2, 3, 4, dtype=torch.float16)

    class Cache:
        layers = (Layer, Layer)

    assert cache_bytes(Cache) == 2 * (24 * 4 + 24 * 2)


def test_nothing_is_left_in_the_model(loaded: LoadedModel, inputs: Any) -> None:
    before = {name: len(module._forward_pre_hooks) for name, module in loaded.model.named_modules()}
    measure_cost(
        loaded.model,
        inputs,
        lambda: pruned(loaded.model, "random", Budget(tokens=4)),
        warmup=0,
        repeats=1,
        new_tokens=1,
    )
    assert {name: len(module._forward_pre_hooks) for name, module in loaded.model.named_modules()} == before
    assert not loaded.model.training
