"""Ways to generate: the answer is that of plain `generate`, or a refusal before the first token."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from tests.engine.pruners import Alternating, ByContent, Reaching
from tests.families.evenly import PLAIN, EvenlySpaced
from tests.families.proving import BOTH, Zoo, chosen, close, everyone, said, samples
from tests.families.zoo import Sample
from tokenprune.budget import Budget
from tokenprune.engine import pruned
from tokenprune.engine.short_prompt import shorter_prompt
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.families.supported import PIECES_OF_A_TURN, PIECES_WITH_PICTURES, older_than

STEPS = 3
FP8 = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
#: Earlier releases have no quantised cache that needs no other package.
WITH_FP8 = pytest.mark.skipif(older_than("5.21.0"), reason="this transformers has no quantised cache of its own")
#: Families whose cuts, masks and ways to number tokens differ most.
FEW = pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"])


def assert_same(found: Any, expected: Any) -> None:
    """The same tokens from the same logits."""
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        close(ours, theirs)


@contextlib.contextmanager
def keeping_a_cache() -> Iterator[None]:
    """Inside the block, a cache is kept against the wish, which is said once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told = [str(each.message) for each in caught if "use_cache" in str(each.message)]
    assert len(told) == 1
    assert "chosen once, at the prompt" in told[0]


# --- without a cache ------------------------------------------------------------------------------------------------


@everyone
def test_without_a_cache_the_answer_is_that_with_one(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    with torch.no_grad(), pruned(built.model, chosen(BOTH), positions="keep") as session:
        expected = said(built, inputs, STEPS)
        with keeping_a_cache():
            found = said(built, inputs, STEPS, use_cache=False)
            said(built, inputs, 1, use_cache=False)
        uncached = built.model(**inputs, use_cache=False).logits
    assert [record.units for record in session.records] == [session.last.units] * 4
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.logits, expected.logits, strict=True))
    close(uncached[:, -1], expected.logits[0])


@pytest.mark.parametrize(
    ("name", "picker"), [("llava", "sparsevlm"), ("internvl", "fastv"), ("qwen2_5_vl", "fastv"), ("llava", "visionzip")]
)
def test_pruners_that_look_at_the_last_row_choose_once(zoo: Zoo, name: str, picker: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=1, seed=2))
    with torch.no_grad(), pruned(built.model, picker, ratio=0.5) as session:
        expected = said(built, inputs, 8)
        with keeping_a_cache():
            found = said(built, inputs, 8, use_cache=False)
    assert session.records[0].units == session.records[1].units
    assert_same(found, expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_copies_of_a_prompt_without_a_cache(zoo: Zoo, options: dict[str, Any]) -> None:
    built = zoo("llava")
    inputs = {**built.inputs(*samples(built)), "max_new_tokens": STEPS, **options}
    with torch.no_grad(), pruned(built.model, chosen(BOTH)):
        torch.manual_seed(0)
        expected = built.model.generate(**inputs)
        torch.manual_seed(0)
        with keeping_a_cache():
            found = built.model.generate(**inputs, use_cache=False)
    assert torch.equal(found, expected)


def test_wherever_it_is_said(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo("qwen2_5_vl")
    inputs = built.inputs(Sample())
    config = copy.deepcopy(built.model.generation_config)
    config.update(use_cache=False, max_new_tokens=STEPS)
    with torch.no_grad():
        with pruned(built.model, chosen(BOTH)):
            expected = said(built, inputs, STEPS).sequences
            with keeping_a_cache():
                found = built.model.generate(generation_config=config, **inputs)
        monkeypatch.setattr(built.model.generation_config, "use_cache", False)
        monkeypatch.setattr(built.model.config.get_text_config(), "use_cache", False)
        with pruned(built.model, chosen(BOTH)), keeping_a_cache():
            own = said(built, inputs, STEPS).sequences
    assert torch.equal(found, expected)
    assert torch.equal(own, expected)
    assert (config.use_cache, built.model.generation_config.use_cache) == (False, False)


def test_text_alone_keeps_its_wish(zoo: Zoo) -> None:
    built = zoo("llava")
    words = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad(), warnings.catch_warnings(), pruned(built.model, chosen(BOTH)):
        warnings.simplefilter("error", UserWarning)
        assert said(built, words, 2, use_cache=False).past_key_values is None


# --- caches ---------------------------------------------------------------------------------------------------------


@everyone
def test_caches_of_fixed_size_are_refused_before_anything_runs(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample())
    ran: list[Any] = []
    handle = parts_of(built.model).layers[0].register_forward_pre_hook(lambda *call: ran.append(call))
    static = StaticCache(config=built.model.config.get_text_config(), max_cache_len=512)
    with torch.no_grad(), pruned(built.model, chosen(BOTH)) as session:
        for kind in ("static", "offloaded_static", "hybrid_chunked", "paged"):
            with pytest.raises(IncompatibleError, match=f'="{kind}"` has a fixed size') as raised:
                said(built, inputs, STEPS, cache_implementation=kind)
            assert 'cache_implementation="dynamic"' in raised.value.hint
        with pytest.raises(IncompatibleError, match="`StaticCache` has a fixed size"):
            said(built, inputs, STEPS, past_key_values=static)
        assert ran == []
        with pytest.raises(IncompatibleError, match="`StaticCache` has a fixed size"):
            built.model(**inputs, past_key_values=static)
    handle.remove()
    assert session.records == []


@FEW
def test_the_unpruned_model_runs_with_a_cache_of_fixed_size(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    with torch.no_grad():
        expected = said(built, inputs, STEPS, cache_implementation="static")
        with pruned(built.model, "none", ratio=1.0) as session:
            found = said(built, inputs, STEPS, cache_implementation="static")
    assert torch.equal(found.sequences, expected.sequences)
    assert session.last.final() == session.last.original_visual_tokens


def test_hooks_are_never_compiled(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for all devices; on a GPU `generate` compiles wherever the cache has a fixed size."""
    built = zoo("llava")
    compiling = CompileConfig()
    compiling._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiling}

    def compiled(config: Any) -> Any:
        raise AssertionError("compiled")

    monkeypatch.setattr(built.model, "get_compiled_call", compiled)
    with torch.no_grad(), pruned(built.model, "none", ratio=1.0):
        found = said(built, built.inputs(Sample()), STEPS, **options)
    with torch.no_grad(), pytest.raises(AssertionError, match="compiled"):
        said(built, built.inputs(Sample()), STEPS, **options)
    assert found.sequences.shape[1] > STEPS


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", [pytest.param("fp8", marks=WITH_FP8), "offloaded"])
def test_caches_that_grow_hold_what_is_kept(zoo: Zoo, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the stock model on a prompt of that length, with such a cache."""
    built = zoo(name)
    inputs, parts = built.inputs(), parts_of(built.model)
    options = FP8 if kind == "fp8" else {"cache_implementation": "offloaded"}
    if kind == "offloaded":
        on_one_device(monkeypatch)
    half = Budget(tokens=parts.visuals(inputs)[0].tokens // 2)
    with torch.no_grad():
        with pruned(built.model, EvenlySpaced(), half, positions="compact") as session:
            found = said(built, inputs, STEPS, **options)
        with shorter_prompt(parts, inputs, session.last.final()[0]):
            expected = said(built, inputs, STEPS, **options)
    assert_same(found, expected)


@FEW
def test_an_offloaded_cache_answers_as_one_that_stays(zoo: Zoo, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    on_one_device(monkeypatch)
    with torch.no_grad(), pruned(built.model, chosen(BOTH), positions="keep"):
        expected = said(built, inputs, STEPS)
        assert_same(said(built, inputs, STEPS, cache_implementation="offloaded"), expected)


@WITH_FP8
def test_a_quantised_cache_of_layers_of_several_lengths(zoo: Zoo) -> None:
    built = zoo("llava")
    inputs = built.inputs(*samples(built))
    with torch.no_grad():
        with pruned(built.model, chosen(BOTH)) as session:
            exact, found = said(built, inputs, STEPS), said(built, inputs, STEPS, **FP8)
            cache = found.past_key_values
            assert cache.get_seq_length() == inputs["input_ids"].shape[1] + STEPS - 1
            held = [layer.get_seq_length() - STEPS + 1 for layer in cache.layers]
            assert held == [max(row[layer] for row in session.last.sequence_lengths) for layer in range(len(held))]
        stock = said(built, inputs, STEPS, **FP8)
        with pruned(built.model, ByContent(BOTH), ratio=1.0):
            whole = said(built, inputs, STEPS, **FP8)
    assert torch.equal(found.logits[0], exact.logits[0])
    assert not torch.equal(found.logits[1], exact.logits[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole.logits, stock.logits, strict=True))


@WITH_FP8
@pytest.mark.parametrize("picker", [Reaching(("layer:2",), kv_from=0), Alternating((), layer=2)], ids=["cut", "read"])
def test_keys_that_are_read_or_cut_later_lie_in_a_plain_cache(
    zoo: Zoo, picker: ByContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = zoo("llava")
    on_one_device(monkeypatch)
    with torch.no_grad(), pruned(built.model, picker, ratio=0.5) as session:
        for options, does in ((FP8, "quantises"), ({"cache_implementation": "offloaded"}, "offloads")):
            with pytest.raises(IncompatibleError, match=does):
                said(built, built.inputs(Sample()), STEPS, **options)
    assert session.records == []


def on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an offloaded cache keep its books on a machine without an accelerator, whose streams it asks for."""

    class Stream(contextlib.nullcontext[None]):
        def wait_stream(self, other: Any) -> None:
            """Everything runs in order."""

    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())


# --- prompts in pieces, and several tokens at once ------------------------------------------------------------------


@everyone
def test_a_prompt_in_pieces_is_refused_before_anything_runs(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample())
    length = inputs["input_ids"].shape[1]
    refused = pytest.raises(IncompatibleError, match=f"`prefill_chunk_size=8` splits a prompt of {length} tokens")
    with torch.no_grad(), pruned(built.model, chosen(BOTH)) as session, refused:
        said(built, inputs, STEPS, prefill_chunk_size=8)
    assert session.records == []


@FEW
def test_a_prompt_is_one_piece_of_its_own_length(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample())
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), pruned(built.model, chosen(BOTH)), or_refused(PIECES_WITH_PICTURES, "leaves the pictures"):
        assert_same(said(built, inputs, STEPS, prefill_chunk_size=length), said(built, inputs, STEPS))


@contextlib.contextmanager
def or_refused(release: str, why: str) -> Iterator[None]:
    """Inside the block, an older transformers than a release is refused, because its own answer is wrong."""
    if not older_than(release):
        yield
        return
    with pytest.raises(IncompatibleError, match=why) as raised:
        yield
    assert f"install transformers {release} or newer" in raised.value.hint


@FEW
def test_a_turn_of_text_comes_in_pieces(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(seed=2))
    more = torch.tensor([[5, 6, 7, 8, 9]])

    def turn(**options: Any) -> Any:
        cache = DynamicCache(config=built.model.config.get_text_config())
        first = said(built, inputs, STEPS, past_key_values=cache).sequences
        ids = torch.cat([first, more], dim=1)
        told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        return said(built, told, STEPS, **options)

    with torch.no_grad(), pruned(built.model, chosen(BOTH)), or_refused(PIECES_OF_A_TURN, "reads a whole conversation"):
        assert_same(turn(prefill_chunk_size=2), turn())


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("assisted_generation", {"prompt_lookup_num_tokens": 2}),
        ("assisted_generation", {"assistant_early_exit": 2}),
        ("assisted_generation", {"assistant_model": ...}),
        ("contrastive_search", {"penalty_alpha": 0.6, "top_k": 4}),
        ("dola_generation", {"dola_layers": "low"}),
        ("group_beam_search", {"num_beams": 4, "num_beam_groups": 2}),
        ("constrained_beam_search", {"num_beams": 2, "force_words_ids": [[5]]}),
    ],
)
def test_modes_that_draft_are_refused_by_name(zoo: Zoo, mode: str, options: dict[str, Any]) -> None:
    built = zoo("llava")
    given = {name: built.model if value is ... else value for name, value in options.items()}
    refused = pytest.raises(IncompatibleError, match=f"in the mode `{mode}`")
    with torch.no_grad(), pruned(built.model, chosen(BOTH)) as session, refused:
        built.model.generate(**built.inputs(Sample()), max_new_tokens=STEPS, **given)
    assert session.records == []


def test_views_at_decoding_steps_refuse_beams_before_anything_runs(zoo: Zoo) -> None:
    built = zoo("llava")
    refused = pytest.raises(IncompatibleError, match="do not follow beam search")
    with torch.no_grad(), pruned(built.model, Alternating((), layer=2), ratio=0.5) as session, refused:
        said(built, built.inputs(Sample()), STEPS, num_beams=2)
    assert session.records == []


def test_continuous_batching_is_refused_and_given_back(zoo: Zoo) -> None:
    built = zoo("llava")
    own = built.model.generate_batch
    with pruned(built.model, chosen(BOTH)):
        with pytest.raises(IncompatibleError, match="`generate_batch` packs token ids") as raised:
            built.model.generate_batch(inputs=[[5, 6, 7]], max_new_tokens=2)
        assert "leave the `with pruned" in raised.value.hint
        with pytest.raises(IncompatibleError, match="`generate_batch`"):
            built.model.generate(torch.tensor([[5, 6]]), cache_implementation="paged")
        with pytest.raises(IncompatibleError, match="`continuous_batching_context_manager`"):
            built.model.continuous_batching_context_manager()
    assert built.model.generate_batch == own
