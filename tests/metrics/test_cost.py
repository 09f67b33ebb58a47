"""What one cell costs: the parts of a run add up, the floor lies beside it, and the answer says how sure it is."""

from __future__ import annotations

import gc
import inspect
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.sweep.fixtures import Workshop
from tests.sweep.tiny import TOKENS
from tokenprune import Budget
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.engine import pruned
from tokenprune.engine.timestamps import Timestamps
from tokenprune.errors import IncompatibleError
from tokenprune.evaluation.batches import prepare
from tokenprune.evaluation.cost import efficiency
from tokenprune.evaluation.cost.efficiency import Cost, Refusal, measure_cost
from tokenprune.evaluation.cost.flops import Counted, count
from tokenprune.evaluation.cost.runs import Subject, Times
from tokenprune.evaluation.machine.busy import Busy
from tokenprune.evaluation.machine.memory import MIB
from tokenprune.evaluation.machine.timing import HostClock, clock_of, no_collection, pinned_threads
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.sweep.config.schema import EfficiencyConfig
from tokenprune.sweep.plan.cells import plan_cells

QUICK = {"warmup": 0, "repeats": 2, "new_tokens": 2, "max_repeats": 2}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(workshop: Workshop) -> LoadedModel:
    return load_model(str(workshop.model), host=workshop.host)


@pytest.fixture(scope="module")
def inputs(workshop: Workshop) -> Any:
    return prepared(workshop, [0])


def prepared(workshop: Workshop, indices: list[int]) -> Any:
    cell = plan_cells(workshop.config(), workshop.host)[0]
    cache = ModelCache(workshop.host, "cpu")
    return prepare(cache.model(cell), cache.task(cell), indices).inputs


def measured(loaded: LoadedModel, inputs: Any, pruner: Any = "grid", tokens: int = 4, **changes: Any) -> Cost:
    budget = Budget(tokens=tokens)
    found = measure_cost(loaded.model, inputs, lambda: pruned(loaded.model, pruner, budget), **{**QUICK, **changes})
    assert isinstance(found, Cost)
    return found


@pytest.fixture(scope="module")
def whole(loaded: LoadedModel, inputs: Any) -> Cost:
    return measured(loaded, inputs, None, TOKENS)


@pytest.fixture(scope="module")
def quarter(loaded: LoadedModel, inputs: Any) -> Cost:
    return measured(loaded, inputs)


def test_parts_of_a_run_lie_inside_each_other(whole: Cost, quarter: Cost) -> None:
    assert whole.overhead_ms.median == whole.overhead_share.median == 0.0
    assert 0 < quarter.overhead_ms.median < quarter.prefill_ms.median
    assert 0 < quarter.overhead_share.median < 1
    for cost in (whole, quarter):
        for found in (cost, cost.floor):
            assert found is not None
            assert found.encoder_ms is not None
            assert 0 < found.encoder_ms.median < found.prefill_ms.median < found.first_token_ms.median
            assert found.first_token_ms.median < found.total_ms.median
            assert found.decode_ms_per_token.median > 0
            assert {found.prefill_ms.repeats, found.total_ms.repeats} == {2}
        assert cost.over_floor is not None
        assert cost.over_floor.repeats == 1  # one round of two turns


def test_what_can_be_counted_is_exact(loaded: LoadedModel, inputs: Any, whole: Cost, quarter: Cost) -> None:
    text = inputs["input_ids"].shape[1] - TOKENS
    config = loaded.model.config.text_config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert whole.kv_mib == (text + TOKENS) * row / MIB
    assert quarter.kv_mib == (text + 4) * row / MIB
    assert quarter.prefill_tflops is not None
    assert whole.prefill_tflops is not None
    assert quarter.prefill_tflops < whole.prefill_tflops
    assert quarter.floor is not None
    assert whole.floor is not None
    assert (whole.floor.tokens, quarter.floor.tokens) == (TOKENS, 4)
    # `grid` multiplies no matrices, so it does exactly the floor's work
    assert quarter.floor.prefill_tflops == quarter.prefill_tflops
    assert quarter.floor.kv_mib == quarter.kv_mib
    assert whole.floor.prefill_tflops == whole.prefill_tflops
    assert quarter.floor.peak_mem_mib < whole.floor.peak_mem_mib


def test_a_deep_cut_has_the_floor_of_its_layer_average(loaded: LoadedModel, inputs: Any, workshop: Workshop) -> None:
    cost = measured(loaded, inputs, workshop.host.pruners.get("fastv").build({"layer": 2}), 3)
    assert cost.floor is not None
    assert cost.floor.tokens == 10  # (16 + 16 + 3 + 3) / 4 = 9.5, rounded up
    assert cost.floor.kv_mib > measured(loaded, inputs, "grid", 3).kv_mib


def test_the_answer_says_how_it_was_measured(quarter: Cost) -> None:
    assert (quarter.device, quarter.clock, quarter.attention) == ("cpu", "perf_counter", "sdpa")
    assert quarter.threads == torch.get_num_threads()
    assert quarter.new_tokens == 2
    assert quarter.kernels == ("scaled_dot_product_flash_attention_for_cpu",)
    assert quarter.energy_j is None  # and not 0
    assert "no driver tells about the device `cpu`" in quarter.unmeasured["energy_j"]
    data = json.loads(json.dumps(quarter.to_json(), allow_nan=False))
    assert data["prefill_ms"]["repeats"] == 2
    assert data["floor"]["prefill_ms"]["q1"] <= data["floor"]["prefill_ms"]["q3"]
    assert data["energy_j"] is None
    assert {"busy", "before", "during", "limit"} <= set(data["busy"])


def test_repeats_go_on_until_the_ratios_are_known(loaded: LoadedModel, inputs: Any) -> None:
    soon = measured(loaded, inputs, repeats=12, max_repeats=24, tolerance=1e9)
    assert (soon.precision.repeats, soon.precision.met) == (12, True)
    never = measured(loaded, inputs, repeats=4, max_repeats=8, tolerance=1e-12)
    assert (never.precision.repeats, never.precision.met, never.precision.uncertainty) == (8, False, None)
    assert never.prefill_ms.repeats == never.overhead_ms.repeats == 8
    assert never.over_unpruned.repeats == 4
    assert never.total_ms.repeats == never.decode_ms_per_token.repeats == 6  # the rest times the prefill alone
    assert never.floor is not None
    assert never.floor.prefill_ms.repeats == 8
    assert never.floor.total_ms.repeats == 6
    short = measured(loaded, inputs, repeats=3, max_repeats=None, tolerance=1e-12, time_limit_s=1e-9)
    assert short.precision.repeats == 4


def test_without_a_floor(loaded: LoadedModel, inputs: Any) -> None:
    cost = measured(loaded, inputs, floor=False)
    assert (cost.floor, cost.over_floor, cost.unmeasured["floor"]) == (None, None, "switched off")
    assert cost.floor_over_unpruned is None


def test_several_samples_have_a_cost_but_no_floor(loaded: LoadedModel, workshop: Workshop) -> None:
    cost = measured(loaded, prepared(workshop, [0, 1]))
    assert cost.floor is None
    assert "only one prompt at a time" in cost.unmeasured["floor"]


def test_a_floor_that_cannot_run_leaves_the_cost(
    loaded: LoadedModel, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("sizes do not match\nmore")

    monkeypatch.setattr(efficiency, "shorter_prompt", broken)
    cost = measured(loaded, inputs)
    assert (cost.floor, cost.over_floor) == (None, None)
    assert cost.unmeasured["floor"] == "RuntimeError: sizes do not match"
    assert cost.prefill_ms.repeats == 2


def test_attention_that_torch_does_not_count_is_said(
    loaded: LoadedModel, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "prefill_tflops" not in measured(loaded, inputs).unmeasured
    monkeypatch.setattr(efficiency, "_attention", lambda parts: "flash_attention_2")
    assert "prefill_tflops" not in measured(loaded, inputs).unmeasured  # a fused kernel was counted
    monkeypatch.setattr("tokenprune.evaluation.cost.runs.count", lambda run: Counted(7, ()))
    cost = measured(loaded, inputs)
    assert cost.unmeasured["prefill_tflops"] == "torch cannot count the attention of `flash_attention_2`"
    assert cost.prefill_tflops is None
    assert cost.floor is not None
    assert cost.floor.prefill_tflops is None


@pytest.mark.parametrize(("mode", "moment"), [("mark", "before"), ("refuse", "before"), ("refuse", "after")])
def test_a_busy_device(
    loaded: LoadedModel, inputs: Any, monkeypatch: pytest.MonkeyPatch, mode: Any, moment: str
) -> None:
    quiet, loud = Busy(False, {"cpu": 0.0}, {}), Busy(True, {"cpu": 0.0}, {"cpu": 0.7})

    class Watch:
        def __init__(self, *args: Any) -> None:
            pass

        def before(self) -> Busy:
            return loud if moment == "before" else quiet

        def after(self) -> Busy:
            return loud

    monkeypatch.setattr(efficiency, "Watch", Watch)
    found = measure_cost(loaded.model, inputs, lambda: pruned(loaded.model, "grid", 0.5), **QUICK, busy=mode)
    if mode == "mark":
        assert isinstance(found, Cost)
        assert found.busy == loud
    else:
        assert isinstance(found, Refusal)
        data = found.to_json()
        assert data["error"] == "the device is busy: other work had 70 % of the CPU during it"
        assert "\n" not in data["error"] + data["hint"]
        assert data["busy"]["busy"] is True


def test_a_device_that_nobody_can_look_at_is_no_quiet_one(
    loaded: LoadedModel, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Busy(None, {}, {}, unknown={"gpu": "the package `nvidia-ml-py` is not installed"})
    monkeypatch.setattr(efficiency.Watch, "before", lambda watch: unknown)
    monkeypatch.setattr(efficiency.Watch, "after", lambda watch: unknown)

    def asked(mode: Any) -> Cost | Refusal:
        return measure_cost(loaded.model, inputs, lambda: pruned(loaded.model, "grid", 0.5), **QUICK, busy=mode)

    found = asked("refuse")
    assert isinstance(found, Refusal)
    assert found.to_json()["error"] == (
        "whether the device is busy is not known: the package `nvidia-ml-py` is not installed"
    )
    marked = asked("mark")
    assert isinstance(marked, Cost)
    assert marked.busy.busy is None


def slowing(monkeypatch: pytest.MonkeyPatch, shares: Mapping[int, float]) -> list[tuple[int, bool]]:
    """A machine on which every run takes a tenth longer than the first one; the visual tokens decide on the work.

    Args:
        monkeypatch: Undoes it.
        shares: Time of the first run by the number of tokens that reach the last decoder layer.

    Returns:
        Tokens of each run, and whether it was of full length.
    """
    ran: list[tuple[int, bool]] = []

    def timed(subject: Subject, timestamps: Any, times: Times, *, whole: bool = True) -> None:
        length = subject.first().past_key_values.layers[-1].keys.shape[-2]
        took = shares[length] * (1.0 + 0.1 * len(ran))
        ran.append((length, whole))
        times.prefill.append(took)
        for kept in (times.first_token, times.decode, times.total) if whole else ():
            kept.append(took)

    monkeypatch.setattr(Subject, "time", timed)
    return ran


def test_three_take_turns_in_a_rotating_order(
    loaded: LoadedModel, inputs: Any, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that gets slower and slower the ratio is that of the work, whoever is first."""
    text = inputs["input_ids"].shape[1] - TOKENS
    deep = workshop.host.pruners.get("fastv").build({"layer": 2})
    # 16, 16, 3 and 3 tokens in its layers: the floor has 10, so the three can be told apart
    unpruned, pruning, floor = text + TOKENS, text + 3, text + 10
    ran = slowing(monkeypatch, {unpruned: 4.0, pruning: 3.0, floor: 2.0})
    cost = measured(loaded, inputs, deep, 3, repeats=12, max_repeats=12)
    names = {unpruned: "U", pruning: "P", floor: "F"}
    order = "".join(names[length] for length, _ in ran)
    assert order == 2 * ("UPFFPU" + "PFUUFP" + "FUPPUF")
    assert [whole for _, whole in ran] == [True] * 18 + [False] * 18
    for ratio, expected in ((cost.over_unpruned, 0.75), (cost.over_floor, 1.5), (cost.floor_over_unpruned, 0.5)):
        assert ratio is not None
        assert ratio.repeats == 6
        assert [ratio.low, ratio.median, ratio.high] == pytest.approx([expected] * 3, rel=1e-12)
    assert cost.precision.met
    assert cost.unpruned.prefill_ms.repeats == 12


def test_the_unpruned_model_against_itself_is_one(
    loaded: LoadedModel, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`none` and its floor are the stock model, timed as such: no hook of the engine is in any of the three."""
    hooks = []

    def timed(subject: Subject, timestamps: Any, times: Times, *, whole: bool = True) -> None:
        hooks.append([len(module._forward_pre_hooks) + len(module._forward_hooks) for module in loaded.model.modules()])
        slowed(subject, timestamps, times, whole=whole)

    slowing(monkeypatch, {inputs["input_ids"].shape[1]: 5.0})
    slowed = Subject.time
    monkeypatch.setattr(Subject, "time", timed)
    cost = measured(loaded, inputs, None, TOKENS, repeats=12, max_repeats=12)
    for ratio in (cost.over_unpruned, cost.over_floor, cost.floor_over_unpruned):
        assert ratio is not None
        assert [ratio.low, ratio.median, ratio.high] == pytest.approx([1.0] * 3, rel=1e-12)
    assert len(hooks) == 36
    assert all(each == hooks[0] for each in hooks)
    assert cost.floor is not None
    assert cost.floor.tokens == TOKENS


def test_choosing_is_timed_with_the_clock_of_the_device(loaded: LoadedModel, inputs: Any) -> None:
    """By its marks alone: nobody waits for a device between the layers."""
    with pruned(loaded.model, "fastv", 0.25) as session:
        reads = iter(range(1000))
        session.stopwatch.mark = lambda: next(reads)
        loaded.model.generate(**inputs, do_sample=False, max_new_tokens=3)
    intervals = session.stopwatch.intervals
    assert intervals == sorted(intervals)
    assert all(end == begin + 1 for begin, end in intervals)  # one mark at each end, and none inside
    assert 1 <= len(intervals) <= 3  # layers up to the cut, and no decoding step


def test_the_options_of_a_sweep_file_are_those_of_the_measurement() -> None:
    parameters = inspect.signature(measure_cost).parameters
    options = {name: each.default for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    config = EfficiencyConfig().model_dump(exclude={"enabled"})
    assert list(options) == list(config)
    given = {name: value for name, value in options.items() if value is not inspect.Parameter.empty}
    assert given == {name: config[name] for name in given}


def test_parts_are_told_apart_by_their_moments() -> None:
    class Model:
        """Encodes for 5 ms, prefills to 30 ms, gives the first token at 34 ms and one every 10 ms."""

        def generate(self, **arguments: Any) -> None:
            assert arguments["max_new_tokens"] == arguments["min_new_tokens"]
            assert arguments["do_sample"] is False
            assert not gc.isenabled()
            timestamps.encoder += [(0.001, 0.004), (0.004, 0.006)]
            timestamps.forward += [(0.007, 0.030), (0.034, 0.043), (0.044, 0.053)][: arguments["max_new_tokens"]]

    class Clock(HostClock):
        def __init__(self) -> None:
            super().__init__(CPU)
            self.reads = iter([0.0, 0.054])

        def mark(self) -> float:
            return next(self.reads)

    timestamps: Timestamps[float] = Timestamps([(9.0, 9.0)], [(9.0, 9.0)])  # of a run before
    times = Times()
    Subject(Model(), {}, 2, Clock()).time(timestamps, times)
    Subject(Model(), {}, 2, Clock()).time(timestamps, short := Times(), whole=False)
    assert (short.encoder, short.prefill) == (times.encoder, times.prefill)
    assert short.first_token == short.decode == short.total == []
    assert gc.isenabled()
    assert times.encoder == [pytest.approx(5.0)]
    assert (times.prefill, times.first_token) == ([pytest.approx(30.0)], [pytest.approx(34.0)])
    assert (times.decode, times.total) == ([pytest.approx(10.0)], [pytest.approx(54.0)])


def test_a_model_that_runs_otherwise_is_refused() -> None:
    class Model:
        def generate(self, **arguments: Any) -> None:
            timestamps.forward.append((0.0, 1.0))

    timestamps: Timestamps[float] = Timestamps()
    with pytest.raises(IncompatibleError, match="ran the model 1 times for 3 tokens"):
        Subject(Model(), {}, 2, HostClock(CPU)).time(timestamps, Times())


def test_threads_are_held_and_given_back() -> None:
    before = torch.get_num_threads()
    with pinned_threads(before + 1) as held:
        assert held == torch.get_num_threads() == before + 1
    with pytest.raises(ZeroDivisionError), pinned_threads(before + 2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with pinned_threads(None) as held:
        assert held == before


def test_garbage_waits() -> None:
    with no_collection():
        assert not gc.isenabled()
        with no_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_clock_of_a_cpu_is_monotonic() -> None:
    clock = clock_of(CPU)
    first, second = clock.mark(), clock.mark()
    assert clock.between(first, second) >= 0.0
    assert clock.between(1.0, 1.25) == 250.0


def test_sdpa_and_eager_count_the_same(workshop: Workshop, loaded: LoadedModel, inputs: Any) -> None:
    """The reason for the formula: as torch ships it, all attention on a CPU counts nothing."""
    eager = load_model(str(workshop.model), attention="eager", host=workshop.host)
    with torch.no_grad():
        fused = count(lambda: loaded.model(**inputs, use_cache=True)).flops
        plain = count(lambda: eager.model(**inputs, use_cache=True)).flops
    assert fused == plain > 0


def test_nothing_is_left_in_the_model(loaded: LoadedModel, inputs: Any) -> None:
    loaded.model(**inputs)  # transformers notes at the first run that its own hooks are there

    def state() -> Any:
        return {
            name: (len(module._forward_pre_hooks), len(module._forward_hooks), set(vars(module)))
            for name, module in loaded.model.named_modules()
        }

    before = state()
    measured(loaded, inputs, "random")
    assert state() == before
    assert not loaded.model.training
