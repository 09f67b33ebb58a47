"""NaN and infinite values: said by name, for the unit that has them, without a further read of the device."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tests.engine.pruners import Alternating, Averaging, ByContent
from tokenprune.engine import pruned
from tokenprune.engine.finite import WatchedView
from tokenprune.errors import NotFiniteError, NothingPrunedError
from tokenprune.pruner import Decision, Kept, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

INPUTS = batch([prompt(1), prompt(2, text=9)])


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


def brought(dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """A model and its inputs in a precision."""
    return random_llava().to(dtype), {**INPUTS, "pixel_values": INPUTS["pixel_values"].to(dtype)}


@contextlib.contextmanager
def spoiled(module: Any, value: float, sample: int = 1, row: int = 3) -> Iterator[None]:
    """What a module answers, with one value of one row replaced."""

    def spoil(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[sample, row, 0] = value
        return output

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["iwp", "fastv", "divprune", "sparsevlm"])
def test_a_pruner_that_sees_it_is_stopped(model: Any, name: str, value: float) -> None:
    word = "NaN" if value != value else "(NaN|infinite values)"  # layers make NaN of infinity
    told = rf"`{name}` cannot choose at site `\S+`: {word} in `\w+` of sample 1, image 0"
    with (
        torch.no_grad(),
        spoiled(model.model.multi_modal_projector, value),
        pytest.raises(NotFiniteError, match=told) as raised,
        pruned(model, name, tokens=4),
    ):
        model(**INPUTS)
    assert "float32 or bfloat16" in raised.value.hint


@pytest.mark.parametrize("name", ["grid", "random"])
def test_a_pruner_that_does_not_look_is_not_stopped(model: Any, name: str) -> None:
    with torch.no_grad(), pruned(model, name, tokens=4) as session:
        model(**INPUTS)
        with spoiled(model.model.multi_modal_projector, float("nan")):
            model(**INPUTS)
    chosen = [[unit.indices for unit in record.units] for record in session.records]
    assert chosen[0] == chosen[1]


def test_half_precision_that_overflows_is_named() -> None:
    """What is finite in bfloat16 and infinite in float16."""
    for dtype in (torch.bfloat16, torch.float16):
        half, inputs = brought(dtype)
        told = pytest.raises(NotFiniteError, match=r"infinite values in `\w+` of sample 0")
        expected: Any = told if dtype == torch.float16 else contextlib.nullcontext()
        with torch.no_grad(), spoiled(half.model.multi_modal_projector, 1e5, sample=0), expected:
            prune_with(half, "divprune", inputs)


@pruner(
    "looking",
    summary="looks, and keeps what it would keep blindly",
    source=Source("test"),
    axes=Axes(site="layer"),
    needs=("hidden", "qkv", "attention", "text", "fingerprint"),
    sites=("input", "layer"),
)
@dataclass(frozen=True)
class Looking(ByContent):
    """Asks for much and keeps what `ByContent` keeps; can fail, and can answer weights."""

    fails: bool = False
    weights: float | None = None

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        view.hidden(), view.keys(rope=True), view.values(), view.queries(rope=False), view.text_embeddings()
        view.attention("text"), view.attention_output("text"), view.attention_received()
        if self.fails:
            raise ValueError("a matrix is not positive")
        found = super().decide(view, stop, state)
        if self.weights is None:
            return found
        return Decision(
            tuple(
                Kept(kept.anchors, log_weights=torch.tensor([self.weights] * len(kept.anchors))) for kept in found.units
            )
        )


def prune_with(model: Any, chosen: Any, inputs: Any = INPUTS) -> None:
    """One prefill."""
    with pruned(model, chosen, tokens=4):
        model(**inputs)


class HostReads(TorchFunctionMode):
    """Counts what reads a tensor on the host, and so waits for its device."""

    NAMES = frozenset(
        {"tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in self.NAMES:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def test_watching_costs_no_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many reads on the host as without: what is not finite comes with the kept indices."""
    counts = []
    for watches in (True, False):
        if not watches:
            monkeypatch.setattr(WatchedView, "_note", lambda *given: None)
        with torch.no_grad(), pruned(model, Looking(("layer:2",)), tokens=4):
            model(**INPUTS)  # first, so that nothing is set up late
            with HostReads() as reads:
                model(**INPUTS)
        counts.append(reads.found)
    assert counts[0] == counts[1]
    assert counts[0]["tolist"] > 0


def test_one_read_tells_the_indices_and_what_is_not_finite() -> None:
    view = WatchedView(SimpleNamespace(site="input", keys=lambda: torch.ones(2, 3, 4)), "looking", ["one", "two"])
    view.keys()
    with HostReads() as reads:
        assert view.read(1, Kept(torch.tensor([2, 0]), log_weights=torch.zeros(2))) == [2, 0]
    assert reads.found == {"tolist": 1}


def test_a_pruner_that_fails_on_it_is_told_why(model: Any) -> None:
    failing = Looking(("layer:1",), fails=True)
    with torch.no_grad(), pruned(model, failing, tokens=4):
        with pytest.raises(ValueError, match="not positive"):
            model(**INPUTS)
        with spoiled(model.model.multi_modal_projector, float("nan")):
            error = pytest.raises(NotFiniteError, match="`looking` cannot choose at site `layer:1`: NaN in `hidden`")
            with error as raised:
                model(**INPUTS)
    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(model: Any, value: float) -> None:
    with pytest.raises(NotFiniteError, match="in `answered log_weights` of sample 0, image 0"), torch.no_grad():
        prune_with(model, Looking(("input",), weights=value))


def test_a_merge_that_is_not_finite_is_refused(model: Any) -> None:
    class Broken(Averaging):
        def decide(self, view: View, stop: Stop, state: State) -> Decision:
            kept = super().decide(view, stop, state).units[0]
            assert kept.merge is not None
            return Decision((Kept(kept.anchors, merge=kept.merge / 0.0),) * view.units)

    with pytest.raises(NotFiniteError, match="NaN in `answered merge`"), torch.no_grad():
        prune_with(model, Broken(("input",)))


def test_a_decoding_step_is_watched(model: Any) -> None:
    seen = Alternating((), layer=2, seen=lambda view: view.attention())
    layer = model.model.language_model.layers[1].input_layernorm
    with torch.no_grad(), pruned(model, seen) as session:
        made = model(**INPUTS)
        with spoiled(layer, float("nan"), row=-1):
            error = pytest.raises(NotFiniteError, match="site `decode:2`: NaN in `attention` of sample 1, image 0")
            with error:
                model(input_ids=torch.tensor([[5], [6]]), past_key_values=made.past_key_values)
    assert len(session.steps) == 0


def test_padding_is_not_looked_at() -> None:
    """Rows that a mask calls padding may hold anything."""
    mask = torch.tensor([[True, True], [True, False]])
    for shape, name in (((2, 3, 2, 4), "queries"), ((2, 2, 4), "text_embeddings")):
        values = torch.ones(shape)
        values[1, ..., 1, :] = float("nan")
        given = {"site": "input", name: lambda values=values: (values, mask)}
        view = WatchedView(SimpleNamespace(**given), "looking", ["one", "two"])
        getattr(view, name)()
        assert view.read(1, Kept(torch.tensor([0]))) == [0]
        values[0, ..., 1, :] = float("nan")
        getattr(view, name)()
        with pytest.raises(NotFiniteError, match=f"NaN in `{name}` of one"):
            view.read(0, Kept(torch.tensor([0])))


@pytest.mark.parametrize("anchors", [[0, 0], [0, TOKENS], [-1, 0]])
def test_answers_are_checked_as_before(model: Any, anchors: list[int]) -> None:
    class Wrong(ByContent):
        def decide(self, view: View, stop: Stop, state: State) -> Decision:
            return Decision((Kept(torch.tensor(anchors)),) * view.units)

    with pytest.raises(NothingPrunedError, match="names"), torch.no_grad(), pruned(model, Wrong(), tokens=4):
        model(**INPUTS)
