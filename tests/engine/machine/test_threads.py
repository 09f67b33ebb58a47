"""Several threads that use one session, one model, or a model each."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tests.engine.models import batch, prompt, random_llava
from tests.engine.pruners import ByContent
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Decision, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune.site import SITE_KINDS

INPUTS = [batch([prompt(seed, text=4 + seed % 3)]) for seed in range(6)]
CHOSEN = ByContent(("encoder", "layer:2"), ratios=(0.5, 0.25))
WAIT = 60.0
"""Seconds after which a thread that has not come to its end hangs."""


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls return that begin at the same moment, each in a thread of its own."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        gate.wait(WAIT)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [made.result(WAIT) for made in [threads.submit(run, call) for call in calls]]


def generated(model: Any, inputs: Any, **options: Any) -> Tensor:
    """Eight greedy tokens."""
    with torch.no_grad():
        made: Tensor = model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    return made


def logits(model: Any, inputs: Any) -> Tensor:
    """Of the prompt."""
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


def test_threads_of_one_session_answer_as_alone(model: Any) -> None:
    with pruned(model, CHOSEN, ratio=0.5) as session:
        said = [generated(model, inputs) for inputs in INPUTS]
        seen = [logits(model, inputs) for inputs in INPUTS]
        alone = list(session.records)
        calls: list[Callable[[], Any]] = []
        for inputs in INPUTS:
            calls += [lambda inputs=inputs: generated(model, inputs), lambda inputs=inputs: logits(model, inputs)]
        found = together(*calls)
        assert len(session.records) == 2 * len(alone)
    for ours, theirs in zip(found[::2], said, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(found[1::2], seen, strict=True):
        assert torch.equal(ours, theirs)
    assert sorted(map(repr, session.records[len(alone) :])) == sorted(map(repr, alone))


def test_threads_ask_copies_of_one_cache(model: Any) -> None:
    questions = [torch.tensor([[5, 6, 7 + number]]) for number in range(6)]

    def ask(cache: Any, question: Tensor) -> Tensor:
        found: Tensor = model(input_ids=question, past_key_values=cache).logits
        return found

    with torch.no_grad(), pruned(model, CHOSEN, ratio=0.5):
        cache = model(**INPUTS[0], use_cache=True).past_key_values
        expected = [ask(copy.deepcopy(cache), question) for question in questions]
        calls = [lambda question=question: ask(copy.deepcopy(cache), question) for question in questions]
        with torch.inference_mode():
            found = together(*calls)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


class Pausing(LogitsProcessor):
    """Stops between two tokens until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.reached.set()
        assert self.go_on.wait(WAIT)
        return scores


def test_others_enter_between_the_tokens_of_an_answer(model: Any) -> None:
    """So neither a consumer that is slow nor one that runs the model itself stops anyone for good."""
    pause = Pausing()
    with pruned(model, CHOSEN, ratio=0.5), ThreadPoolExecutor(1) as threads:
        said, seen = generated(model, INPUTS[0]), logits(model, INPUTS[1])
        answer = generated(model, INPUTS[1])
        running = threads.submit(generated, model, INPUTS[0], logits_processor=LogitsProcessorList([pause]))
        assert pause.reached.wait(WAIT)
        assert torch.equal(logits(model, INPUTS[1]), seen)
        assert torch.equal(generated(model, INPUTS[1]), answer)
        pause.go_on.set()
        assert torch.equal(running.result(WAIT), said)


def test_streams_of_two_threads(model: Any) -> None:
    from transformers import TextIteratorStreamer

    class Words:
        """A tokenizer that writes numbers."""

        def decode(self, ids: Any, **options: Any) -> str:
            return "".join(f"{int(each)} " for each in ids)

    with pruned(model, CHOSEN, ratio=0.5), ThreadPoolExecutor(2) as threads:
        said = [generated(model, inputs) for inputs in INPUTS[:2]]
        streams = [TextIteratorStreamer(Words(), skip_prompt=True, timeout=WAIT) for _ in range(2)]  # type: ignore[arg-type]
        for inputs, stream in zip(INPUTS, streams, strict=False):
            threads.submit(generated, model, inputs, streamer=stream)
        heard = []
        for stream in reversed(streams):
            heard.append("".join(stream))
            logits(model, INPUTS[2])
    for text, made in zip(reversed(heard), said, strict=True):
        assert [int(word) for word in text.split()] == made[0, -8:].tolist()


def test_the_model_runs_inside_its_own_generate(model: Any) -> None:
    """A logits processor that asks the model for another picture's logits at each token."""
    seen: list[Tensor] = []

    class Asking(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append(logits(model, INPUTS[1]))
            return scores

    with pruned(model, CHOSEN, ratio=0.5):
        said, expected = generated(model, INPUTS[0]), logits(model, INPUTS[1])
        assert torch.equal(generated(model, INPUTS[0], logits_processor=LogitsProcessorList([Asking()])), said)
    assert len(seen) == 8
    assert all(torch.equal(each, expected) for each in seen)


class Interrupted(BaseException):
    """No `Exception`, as when a key is pressed."""


@pytest.mark.parametrize("error", [ArithmeticError, Interrupted])
@pytest.mark.parametrize("at", ["vision", "layer", "answer"])
def test_a_call_that_fails_lets_the_next_thread_in(model: Any, error: type[BaseException], at: str) -> None:
    modules = {"vision": model.model.multi_modal_projector, "layer": model.model.language_model.layers[3]}

    def fail(*call: Any) -> None:
        raise error

    class Failing(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            raise error

    with pruned(model, CHOSEN, ratio=0.5):
        said, seen = generated(model, INPUTS[1]), logits(model, INPUTS[1])
        if at == "answer":
            with pytest.raises(error):
                generated(model, INPUTS[0], logits_processor=LogitsProcessorList([Failing()]))
        else:
            handle = modules[at].register_forward_pre_hook(fail)
            for call in (generated, logits):
                with pytest.raises(error):
                    call(model, INPUTS[0])
            handle.remove()
        found = together(lambda: generated(model, INPUTS[1]), lambda: logits(model, INPUTS[1]))
    assert torch.equal(found[0], said)
    assert torch.equal(found[1], seen)


@pruner(
    "attended",
    summary="keeps what the last row attends to",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("attention",),
    sites=SITE_KINDS,
)
class Attended(ByContent):
    """Looks into the layer before the cut."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        return Decision.keep(view.attention("last")[0].mean(dim=1)[:, 0].topk(view.keep, dim=1).indices)


def test_two_sessions_on_two_models() -> None:
    """Also where both were made from one config: a model that is looked into leaves the other one's kernel alone."""
    first = random_llava()
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    second.generation_config = copy.deepcopy(first.generation_config)
    chosen = Attended(("layer:1", "layer:3"), ratios=(0.5, 0.25))
    text = second.model.language_model
    kernels: list[str] = []
    first.model.language_model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda *call: kernels.append(text.config._attn_implementation)
    )
    assert text.config is first.model.language_model.config

    def run(model: Any) -> list[Tensor]:
        with pruned(model, chosen, ratio=0.5):
            return [generated(model, inputs) for inputs in INPUTS]

    expected = run(first)
    for found in together(lambda: run(first), lambda: run(second)):
        assert all(map(torch.equal, found, expected))
    assert set(kernels) == {"sdpa"}


def test_one_of_two_threads_gets_a_model(model: Any) -> None:
    inside, refused = threading.Event(), threading.Event()

    def enter() -> str:
        try:
            with pruned(model, CHOSEN, ratio=0.5):
                inside.set()
                assert refused.wait(WAIT)
                return ""
        except IncompatibleError as error:
            assert inside.wait(WAIT)
            refused.set()
            return error.message

    before = dict(vars(model))
    assert sorted(together(enter, enter)) == ["", "this model is already being pruned"]
    assert vars(model) == before


def test_a_session_ends_after_the_pass_of_another_thread(model: Any) -> None:
    """Hooks go when no pass runs that has begun with them."""
    entered, go_on = threading.Event(), threading.Event()
    layer = model.model.language_model.layers[3]

    def slow(*call: Any) -> None:
        entered.set()
        assert go_on.wait(WAIT)

    with ThreadPoolExecutor(1) as threads:
        with pruned(model, CHOSEN, ratio=0.5):
            expected = logits(model, INPUTS[0])
            handle = layer.register_forward_pre_hook(slow)
            running = threads.submit(logits, model, INPUTS[0])
            assert entered.wait(WAIT)
            threading.Timer(0.05, go_on.set).start()
        handle.remove()
        assert torch.equal(running.result(WAIT), expected)


def test_an_answer_that_outlives_its_session_is_refused(model: Any) -> None:
    pause = Pausing()
    with ThreadPoolExecutor(1) as threads:
        with pruned(model, CHOSEN, ratio=0.5):
            running = threads.submit(generated, model, INPUTS[0], logits_processor=LogitsProcessorList([pause]))
            assert pause.reached.wait(WAIT)
        pause.go_on.set()
        with pytest.raises(IncompatibleError, match="its session ended"):
            running.result(WAIT)
