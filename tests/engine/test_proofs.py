"""The engine's proofs (a-f), on small random models: for every site, position policy and attention kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.models import IMAGE, TOKENS, batch, prompt, random_llava
from tests.engine.pruners import Averaging, ByContent, Ragged
from tests.engine.reference import dropped_by_layer, fingerprint_of, masked_from, positions_of, tower_masked
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError, NothingPrunedError

SITES = [
    ("input",),
    ("encoder",),
    ("layer:0",),
    ("layer:2",),
    ("layer:1", "layer:3"),
    ("encoder", "layer:2"),
    ("input", "layer:1", "layer:2"),
    ("layer:3.mid",),
    ("layer:1", "layer:1.mid", "layer:2.mid"),
    ("tower:1",),
    ("tower:0.mid", "tower:1.mid", "layer:2"),
    ("tower:1.mid", "encoder", "input", "layer:0.mid"),
]
KERNELS = ["sdpa", pytest.param("eager", marks=pytest.mark.thorough)]
POLICIES = ["keep", "compact"]
#: Samples of unequal length and unequal numbers of images; the last has none.
SAMPLES = [prompt(1), prompt(2, images=2), prompt(3, text=11), prompt(4, images=0, text=5)]


@pytest.fixture(scope="module", params=KERNELS)
def model(request: pytest.FixtureRequest) -> Any:
    return random_llava(request.param)


def shrinking(sites: tuple[str, ...]) -> ByContent:
    """Half at the first site, a quarter of the original at the next, an eighth at the third."""
    return ByContent(sites, ratios=tuple(0.5**power for power in range(1, len(sites) + 1)))


@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_keep_all_is_bit_identical(model: Any, sites: tuple[str, ...]) -> None:
    inputs = batch(SAMPLES)
    expected = model(**inputs).logits
    greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    beams = model.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False)
    with pruned(model, ByContent(sites), ratio=1.0) as session:
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), greedy)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False), beams)
    assert session.records[0].visual_tokens[1] == (32, 32, 32, 32)
    assert len(session.records[0].units) == 4 * len(sites)


@pytest.mark.parametrize("site", ["input", "encoder"])
def test_input_pruning_equals_shortened_embeddings(model: Any, site: str) -> None:
    inputs = batch([SAMPLES[1]])
    embeddings: list[torch.Tensor] = []
    text = model.model.language_model
    handle = text.register_forward_pre_hook(
        lambda module, args, kwargs: embeddings.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    with pruned(model, ByContent((site,)), ratio=0.25) as session:
        logits = model(**inputs).logits
    gone = dropped_by_layer(session.last, inputs, IMAGE, 4)[0]
    left = (~gone[0]).nonzero()[:, 0]
    shortened = text(
        inputs_embeds=embeddings[0][:, left],
        position_ids=left[None],
        attention_mask=torch.ones(1, len(left), dtype=torch.long),
    ).last_hidden_state
    torch.testing.assert_close(logits[0, left], model.lm_head(shortened)[0], atol=1e-5, rtol=1e-5)
    assert gone.sum() == 2 * 12


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_pruned_equals_masked_in_prefill_and_twenty_decoded_tokens(
    model: Any, sites: tuple[str, ...], policy: Any
) -> None:
    inputs = batch(SAMPLES)
    with pruned(model, shrinking(sites), positions=policy) as session:
        prefill = model(**inputs).logits
        out = model.generate(
            **inputs, max_new_tokens=20, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    gone = dropped_by_layer(session.last, inputs, IMAGE, 4)
    assert gone.any()
    valid = torch.cat([inputs["attention_mask"], torch.ones(len(SAMPLES), 20, dtype=torch.long)], dim=1)
    with masked_from(model, gone, valid, compact=policy == "compact"), tower_masked(model, session.last, TOKENS):
        reference = model(
            input_ids=out.sequences,
            pixel_values=inputs["pixel_values"],
            attention_mask=valid,
            position_ids=positions_of(valid),
            use_cache=False,
        ).logits
    length = inputs["input_ids"].shape[1]
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    # a cut inside the encoder changes the order of its sums, too
    near = {"atol": 2e-5 if sites[0].startswith("tower") else 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(prefill[rows], reference[:, :length][rows], **near)
    for step in range(20):
        torch.testing.assert_close(out.logits[step], reference[:, length - 1 + step], **near)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sites", SITES, ids="+".join)
@pytest.mark.parametrize("kind", [ByContent, Ragged])
def test_batch_equals_singles_and_left_equals_right_padding(
    model: Any, sites: tuple[str, ...], policy: Any, kind: type[ByContent]
) -> None:
    chosen = kind(sites, ratios=shrinking(sites).ratios)
    left, right = batch(SAMPLES), batch(SAMPLES, side="right")
    with pruned(model, chosen, positions=policy) as session:
        at_left, at_right = model(**left).logits, model(**right, position_ids=None).logits
        together = model.generate(**left, max_new_tokens=6, do_sample=False)
        singles = [model(**batch([sample])).logits for sample in SAMPLES]
        alone = [model.generate(**batch([sample]), max_new_tokens=6, do_sample=False) for sample in SAMPLES]
    for row, (ids, _) in enumerate(SAMPLES):
        torch.testing.assert_close(at_left[row, -len(ids) :], singles[row][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(at_right[row, : len(ids)], singles[row][0], atol=1e-5, rtol=1e-5)
        assert together[row, -6:].tolist() == alone[row][0, -6:].tolist()
    assert session.records[0].visual_tokens == session.records[1].visual_tokens
    if kind is Ragged:
        assert len({unit.kept for unit in session.records[0].units}) > 1


@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_cache_lengths_equal_the_record_and_memory_is_freed(model: Any, sites: tuple[str, ...]) -> None:
    inputs = batch(SAMPLES[:3])
    with pruned(model, shrinking(sites)) as session:
        cache = model(**inputs, use_cache=True).past_key_values
    lengths = session.last.sequence_lengths
    full = inputs["input_ids"].shape[1]
    for layer in range(4):
        keys = cache.layers[layer].keys
        assert keys.shape[-2] == max(row[layer] for row in lengths)
        assert keys.untyped_storage().nbytes() == keys.numel() * keys.element_size()
    if session.last.sequence_lengths[0][3] < session.last.sequence_lengths[0][0]:
        assert cache.layers[3].keys.shape[-2] < full
    text = [len(ids) - images * 16 for (ids, _), images in zip(SAMPLES, (1, 2, 1), strict=False)]
    assert [row[3] for row in lengths] == [
        visual[3] + count for visual, count in zip(session.last.visual_tokens, text, strict=True)
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_restored(model: Any, fails: bool) -> None:
    inputs = batch(SAMPLES)
    generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    before = fingerprint_of(model)  # after a first run, which lets transformers install hooks of its own
    if fails:

        class Exploding(ByContent):
            def decide(self, view: Any, stop: Any, state: Any) -> Any:
                raise ArithmeticError("inside")

        Exploding.spec = ByContent.spec
        for site in ("layer:2", "layer:2.mid", "tower:1.mid", "encoder"):
            with pytest.raises(ArithmeticError), pruned(model, Exploding((site,)), ratio=0.5):
                model.generate(**inputs, max_new_tokens=5)
    else:
        with pruned(model, ByContent(("encoder", "layer:2")), ratio=0.5):
            model.generate(**inputs, max_new_tokens=5)
    assert fingerprint_of(model) == before
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), generated)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sites", [("input",), ("layer:2",), ("layer:1", "layer:3")], ids="+".join)
def test_several_turns_on_one_cache(model: Any, sites: tuple[str, ...], policy: Any) -> None:
    """Turn 2 brings text, turn 3 another image; the reference sees the whole conversation at once."""
    first, second, third = prompt(11), prompt(12, images=0, text=4), prompt(13, images=1, text=4)
    with pruned(model, shrinking(sites), positions=policy) as session:
        out = model(**batch([first]), use_cache=True)
        cache = out.past_key_values
        ids = list(first[0])
        for turn in (second, third):
            ids += turn[0]
            inputs = batch([turn])
            inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.long)
            out = model(**inputs, past_key_values=cache, use_cache=True)
        ids += [5]
        last = model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True).logits
    whole = {"input_ids": torch.tensor([ids]), "pixel_values": torch.cat([first[1], third[1]])}
    gone = torch.zeros(4, 1, len(ids), dtype=torch.bool)
    slots = (whole["input_ids"][0] == IMAGE).nonzero()[:, 0].chunk(2)
    for record, part in zip(session.records, slots, strict=True):
        for unit in record.units:
            out_mask = torch.ones(16, dtype=torch.bool)
            out_mask[list(unit.indices)] = False
            gone[unit.decoder_layer :, 0, part[out_mask]] = True
    valid = torch.ones(1, len(ids), dtype=torch.long)
    with masked_from(model, gone, valid, compact=policy == "compact"):
        reference = model(**whole, attention_mask=valid, use_cache=False).logits
    torch.testing.assert_close(last[0, -1], reference[0, -1], atol=1e-5, rtol=1e-5)
    turn = out.logits[0]
    rows = ~gone[-1][0, -len(turn) - 1 : -1]
    torch.testing.assert_close(turn[rows], reference[0, -len(turn) - 1 : -1][rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sites", [("input",), ("encoder",), ("layer:2",)], ids="+".join)
def test_generate_goes_on_with_a_pruned_cache(model: Any, sites: tuple[str, ...]) -> None:
    """The usual chat loop: the whole conversation is passed again with the cache of the turn before."""
    from transformers import DynamicCache

    first, second = prompt(21), prompt(22, images=0, text=5)
    # a choice by prompt would differ between the first turn alone and the whole conversation
    with pruned(model, ByContent(sites, ratios=(0.25,), by_content=False)) as session:
        cache = DynamicCache(config=model.config.text_config)
        one = model.generate(**batch([first]), max_new_tokens=4, do_sample=False, past_key_values=cache)
        ids = torch.cat([one, torch.tensor([second[0]])], dim=1)
        conversation = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        two = model.generate(**conversation, max_new_tokens=8, do_sample=False, past_key_values=cache)
        together = model.generate(**conversation, pixel_values=first[1], max_new_tokens=8, do_sample=False)
    assert two.tolist() == together.tolist()
    assert len(session.records) == 2


@pytest.mark.parametrize("sites", [("input",), ("encoder",), ("layer:2",)], ids="+".join)
def test_beams_and_sampling_see_the_same_choice(model: Any, sites: tuple[str, ...]) -> None:
    inputs = batch(SAMPLES)
    with pruned(model, shrinking(sites)) as session:
        beams = model.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False)
        torch.manual_seed(0)
        sampled = model.generate(**inputs, max_new_tokens=6, do_sample=True, num_return_sequences=2)
        alone = [
            model.generate(**batch([sample]), max_new_tokens=6, num_beams=3, do_sample=False) for sample in SAMPLES
        ]
    assert sampled.shape[0] == 8
    for row, single in enumerate(alone):
        assert beams[row, -6:].tolist() == single[0, -6:].tolist()
    expanded = session.records[0]
    assert len(expanded.visual_tokens) == 12
    by_sample = {(unit.sample, unit.image): unit.indices for unit in expanded.units}
    assert by_sample[0, 0] == by_sample[1, 0] == by_sample[2, 0]
    assert by_sample[3, 0] != by_sample[3, 1]


@pytest.mark.parametrize("site", ["input", "layer:2"])
@pytest.mark.parametrize("weighted", [False, True])
def test_merged_rows_stand_at_their_anchors(model: Any, site: str, weighted: bool) -> None:
    """Reference: the layer's input is overwritten with the merged rows and the rest is masked."""
    inputs = batch([SAMPLES[0]])
    layer = 0 if site == "input" else 2
    with pruned(model, Averaging((site,), weighted=weighted, reverse=False), tokens=4) as session:
        logits = model(**inputs).logits
        generated = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    length = inputs["input_ids"].shape[1]
    anchors = slots[torch.tensor(session.last.units[0].indices)]
    columns = torch.ones(length, dtype=torch.bool)
    columns[slots] = False
    columns[anchors] = True
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & columns
    bias = torch.zeros(length)
    bias[anchors] = torch.tensor(4.0).log() if weighted else 0.0
    mask = torch.where(allowed, bias.expand(length, -1), torch.finfo(torch.float32).min)[None, None]

    def overwrite(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0].clone()
        hidden[0, anchors] = args[0][0, slots].reshape(4, 4, -1).mean(1)
        return (hidden,), {**kwargs, "attention_mask": mask}

    def masked(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    layers = model.model.language_model.layers
    handles = [layers[layer].register_forward_pre_hook(overwrite, with_kwargs=True)]
    handles += [later.register_forward_pre_hook(masked, with_kwargs=True) for later in layers[layer + 1 :]]
    reference = model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(logits[0, columns], reference[0, columns], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(generated.logits[0][0], reference[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["encoder", "input", "layer:2"])
def test_emission_order_and_merges_are_the_same_in_any_batch(model: Any, site: str) -> None:
    with pruned(model, Averaging((site,), weighted=True), tokens=5):
        together = model.generate(**batch(SAMPLES), max_new_tokens=6, do_sample=False)
        for row, sample in enumerate(SAMPLES):
            alone = model.generate(**batch([sample]), max_new_tokens=6, do_sample=False)
            assert alone[0, -6:].tolist() == together[row, -6:].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    model = random_llava().to(dtype)
    inputs = batch(SAMPLES)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with pruned(model, shrinking(("encoder", "layer:2"))):
        logits = model(**inputs).logits
    assert torch.isfinite(logits).all()
    assert logits.dtype == dtype


def test_refusals() -> None:
    model = random_llava()
    inputs = batch(SAMPLES[:1])
    with pruned(model, ByContent(), ratio=0.5):
        with pytest.raises(IncompatibleError, match="already being pruned"), pruned(model, None):
            pass
        with pytest.raises(IncompatibleError, match="fixed size"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="static")
        with pytest.raises(IncompatibleError, match="inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 4, 32), pixel_values=inputs["pixel_values"])
    with pruned(model, ByContent(("layer:9",)), ratio=0.5), pytest.raises(IncompatibleError, match="9"):
        model(**inputs)
    with pytest.raises(IncompatibleError, match="no model family"), pruned(torch.nn.Linear(1, 1), None):
        pass
    with pruned(model, None) as session, pytest.raises(NothingPrunedError):
        session.last  # noqa: B018
