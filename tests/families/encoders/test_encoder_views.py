"""What views show of the vision encoders that are only looked into, against what the stock models do in theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.families.described import REFUSED, Zoo, description, parts
from tests.families.proving import one_of_each_kind
from tests.families.zoo import FAMILIES, Built, Sample
from tokenprune import dual
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.families.encoder_rows import EncoderRows
from tokenprune.families.family import ObservedEncoderParts
from tokenprune.plugins import load_host
from tokenprune.pruner import Axes, Decision, OneCut, Source, State, Stop, View, pruner

LOOKED = [name for name in FAMILIES if description(name).observed_encoder is not None and name not in REFUSED]
BLIND = [name for name in FAMILIES if description(name).blind and name not in REFUSED]
looked = pytest.mark.parametrize("name", LOOKED)


@dataclass
class Seen:
    """What one unit's view showed."""

    site: str
    default: int
    received: list[Tensor]
    keys: Tensor
    features: Tensor
    hidden: Tensor
    cls: Tensor | None


@pruner(
    "looking",
    summary="Keeps what receives most attention, and notes what it saw.",
    source=Source("test"),
    axes=Axes(site="encoder"),
    needs=("encoder", "encoder_attention", "hidden"),
)
@dataclass(frozen=True)
class Looking(OneCut):
    site = "encoder"
    seen: dict[int, Seen] = field(default_factory=dict)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        layers = range(view.facts.encoder_layers)
        received = [view.received_attention(layer) for layer in layers]
        default = view.received_attention()
        cls = view.cls_attention() if view.facts.has_cls else None
        for row, number in enumerate(view.ids()):
            (same,) = [layer for layer in layers if torch.equal(received[layer][row], default[row])]
            self.seen[number] = Seen(
                str(view.site),
                same,
                [one[row] for one in received],
                view.encoder_keys()[row],
                view.encoder_features()[row],
                view.hidden()[row],
                None if cls is None else cls[row],
            )
        return Decision.keep(dual.top_k(default, view.keep))


def samples(built: Built) -> list[Sample]:
    """Pictures of several sizes, left padding, and a video where it has them beside pictures."""
    found = [Sample(images=2), Sample(images=1, seed=3)]
    if built.family.videos and built.family.mixes:
        found.append(Sample(images=1, videos=1, seed=5))
    return found


def batches(built: Built) -> list[list[Sample]]:
    """Pictures with a video, and videos alone."""
    found = [samples(built)]
    if built.family.videos:
        found.append([Sample(images=0, videos=1), Sample(images=0, videos=1, seed=1)])
    return found


def looking(built: Built, inputs: Any) -> tuple[list[Seen], Any]:
    """By unit what was seen in a forward pass, and the session's record."""
    picker = Looking()
    with torch.no_grad(), pruned(built.model, picker, ratio=0.5) as session:
        built.model(**inputs)
    return [picker.seen[number] for number in sorted(picker.seen)], session.last


def rows_of(built: Built, inputs: Any) -> EncoderRows:
    found = parts(built)
    assert found.observed_encoder is not None
    return found.observed_encoder.about.rows(built.model.config, inputs, found.visuals(inputs))


def look_of(built: Built) -> ObservedEncoderParts:
    found = parts(built).observed_encoder
    assert found is not None
    return found


@contextmanager
def attentions(built: Built) -> Iterator[list[list[Tensor]]]:
    """By encoder layer, what the stock attention calls computed: (n, H, rows, rows) each, in order."""
    look = look_of(built)
    layer_of = {
        id(module): index for layers in look.towers for index, layer in enumerate(layers) for module in layer.modules()
    }
    found: list[list[Tensor]] = [[] for _ in look.towers[0]]
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **kwargs: Any) -> Any:
        mask = kwargs.pop("attention_mask", mask)
        if id(module) in layer_of:
            scaling = kwargs.get("scaling")
            logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
            if mask is not None:
                logits = logits.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else logits + mask
            probabilities = logits.softmax(-1)
            if mask is not None:
                real = (mask if mask.dtype == torch.bool else mask > -1).any(dim=(1, 2))
                probabilities = probabilities * real[:, None, :, None]
            found[layer_of[id(module)]].append(probabilities)
        return stock(module, query, key, value, mask, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", record)
        yield found


def summed(calls: list[Tensor]) -> Tensor:
    """Head mean of the attention that every row receives from all rows, summed over these, (rows,)."""
    return torch.cat([call.mean(dim=1).sum(dim=1).flatten() for call in calls])


def like(values: Tensor) -> Tensor:
    """Values up to their scale."""
    return values / values.sum()


def made_of(built: Built, inputs: Any) -> tuple[list[Tensor], Tensor]:
    """What the encoders' read layers made, run by run, as leaves of the graph of the (B, S, D) embeddings."""
    leaves: list[Tensor] = []
    embedded: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        leaf = (output if isinstance(output, Tensor) else output[0]).detach().requires_grad_()
        leaves.append(leaf)
        return leaf if isinstance(output, Tensor) else (leaf, *output[1:])

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        embedded.append(kwargs["inputs_embeds"])

    text = built.model.get_submodule(description(built.family.name).text)
    # before the hooks of transformers itself, which note hidden states
    handles = [read.register_forward_hook(cut, prepend=True) for read in look_of(built).read]
    handles.append(text.register_forward_pre_hook(keep, with_kwargs=True))
    built.model(**inputs)
    for handle in handles:
        handle.remove()
    return leaves, embedded[0]


@looked
def test_tokens_are_made_of_the_rows_that_are_named(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    for batch in batches(built):
        inputs = built.inputs(*batch)
        rows = rows_of(built, inputs)
        leaves, embedded = made_of(built, inputs)
        assert rows.total == sum(leaf.shape[:-1].numel() for leaf in leaves)
        slots = parts(built).is_placeholder(inputs["input_ids"]).nonzero()
        start = 0
        for visual, tokens in zip(parts(built).visuals(inputs), rows.tokens, strict=True):
            own = [place for place in range(visual.placeholders) if place not in visual.separators]
            assert len(tokens.index) == visual.tokens
            for token in sorted({0, 1, visual.tokens // 3, visual.tokens // 2 + 1, visual.tokens - 1}):
                sample, slot = slots[start + own[token]].tolist()
                gradients = torch.autograd.grad(
                    (embedded[sample, slot] ** 2).sum(), leaves, retain_graph=True, allow_unused=True
                )
                flat = [
                    torch.zeros(leaf.shape[:-1]).flatten() if one is None else one.abs().sum(-1).flatten()
                    for leaf, one in zip(leaves, gradients, strict=True)
                ]
                expected = set(torch.cat(flat).nonzero()[:, 0].tolist())
                index = tokens.index[token]
                if tokens.weights is not None:
                    index = index[tokens.weights[token] > 0]
                assert set(index.tolist()) == expected
            start += visual.placeholders


@looked
def test_attention_is_that_of_the_stock_encoder(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    for batch in batches(built):
        inputs = built.inputs(*batch)
        rows = rows_of(built, inputs)
        with attentions(built) as calls, torch.no_grad():
            built.model(**inputs)
        seen, record = looking(built, inputs)
        assert len(seen) == len(rows.tokens)
        assert {one.site for one in record.units} == {"input"}
        facts = parts(built).facts
        for unit, tokens in zip(seen, rows.tokens, strict=True):
            assert unit.site == "encoder"
            assert unit.default == facts.encoder_read_layer
            torch.testing.assert_close(unit.hidden, unit.features)
            for layer, received in enumerate(unit.received):
                torch.testing.assert_close(like(received), like(tokens.pool(summed(calls[layer]))))
            if facts.has_cls:
                assert unit.cls is not None
                row = -1 if name == "llama4" else 0
                own = [call[:, :, row].transpose(1, 2).flatten(0, 1) for call in calls[facts.encoder_read_layer]]
                torch.testing.assert_close(unit.cls, tokens.pool(torch.cat(own)).T)


@looked
def test_received_attention_is_a_mean(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=1))
    rows = rows_of(built, inputs)
    seen, _ = looking(built, inputs)
    with attentions(built) as calls, torch.no_grad():
        built.model(**inputs)
    layer = parts(built).facts.encoder_read_layer
    real = [(call.sum(-1) > 0).any(dim=1).sum(dim=1) for call in calls[layer]]
    counts = torch.cat(
        [many[:, None].expand(-1, call.shape[-1]).flatten() for many, call in zip(real, calls[layer], strict=True)]
    )
    for unit, tokens in zip(seen, rows.tokens, strict=True):
        torch.testing.assert_close(unit.received[layer], tokens.pool(summed(calls[layer]) / counts))


@looked
def test_keys_and_features_are_those_of_the_stock_encoder(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    rows = rows_of(built, inputs)
    look = look_of(built)
    read: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        read.append((output if isinstance(output, Tensor) else output[0]).flatten(0, -2))

    handles = [module.register_forward_hook(keep) for module in look.read]
    with torch.no_grad():
        built.model(**inputs)
    for handle in handles:
        handle.remove()
    seen, _ = looking(built, inputs)
    for unit, tokens in zip(seen, rows.tokens, strict=True):
        torch.testing.assert_close(unit.features, tokens.pool(torch.cat(read)))
        assert unit.keys.shape[1] == len(tokens.index)
        assert unit.keys.isfinite().all()


@one_of_each_kind(LOOKED)
def test_a_batch_shows_what_its_samples_show(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    for batch in batches(built):
        together, _ = looking(built, built.inputs(*batch))
        alone = [unit for sample in batch for unit in looking(built, built.inputs(sample))[0]]
        assert len(together) == len(alone)
        for one, other in zip(together, alone, strict=True):
            for here, there in zip(one.received, other.received, strict=True):
                torch.testing.assert_close(here, there, atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(one.features, other.features, atol=1e-4, rtol=1e-3)


@one_of_each_kind(LOOKED)
def test_an_image_changes_its_own_units_only(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=2))
    visuals = parts(built).visuals(inputs)
    before, _ = looking(built, inputs)
    key = next(key for key in description(name).pixels if inputs.get(key) is not None)
    pixels, last = inputs[key].clone(), visuals[-1]
    shared = last.pixels is None or name in ("idefics3", "smolvlm")  # the tiles of a prompt have one row
    rows: Any = last.source[1] if last.pixels is not None and not shared else slice(len(pixels) - 1, None)
    rows = (slice(None), slice(-1, None)) if name in ("idefics3", "smolvlm") else rows
    pixels[rows] = pixels[rows].flip(-1) * 0.5 + 0.1
    after, _ = looking(built, {**inputs, key: pixels})
    moved = [not torch.equal(one.received[0], other.received[0]) for one, other in zip(before, after, strict=True)]
    if shared:
        own = [number == len(visuals) - 1 for number in range(len(visuals))]
    else:
        own = [visual.pixels == last.pixels for visual in visuals]
    assert moved == own


@one_of_each_kind(LOOKED)
def test_generate_sees_the_same(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    expected, record = looking(built, inputs)
    picker = Looking()
    with torch.no_grad(), pruned(built.model, picker, ratio=0.5) as session:
        built.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert session.records[0].final() == record.final()
    assert [unit.indices for unit in session.records[0].units] == [unit.indices for unit in record.units]
    for number, unit in enumerate(expected):
        torch.testing.assert_close(picker.seen[number].features, unit.features)


def test_copies_of_a_prompt_share_what_was_seen(zoo: Zoo) -> None:
    built = zoo("qwen2_vl")
    inputs = built.inputs(*samples(built))
    _, record = looking(built, inputs)
    with torch.no_grad(), pruned(built.model, Looking(), ratio=0.5) as session:
        built.model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=2, num_return_sequences=2)
    kept = [unit.indices for unit in session.records[0].units]
    assert sorted(kept) == sorted([unit.indices for unit in record.units] * 2)


def test_frames_of_one_sample_are_one_unit(zoo: Zoo) -> None:
    built = zoo("gemma3")
    inputs = built.inputs(Sample(images=2), Sample(images=1, seed=3))
    single, _ = looking(built, inputs)
    picker = Looking()
    with torch.no_grad(), pruned(built.model, picker, ratio=0.5, frames=True) as session:
        built.model(**inputs)
    assert sorted(picker.seen) == [0, 2]
    torch.testing.assert_close(picker.seen[0].received[0], torch.cat([one.received[0] for one in single[:2]]))
    torch.testing.assert_close(picker.seen[2].features, single[2].features)
    assert session.last.final() == (16, 8)


METHODS = {
    "hiprune": (),
    "visionzip": (),
    "vispruner": ("cls",),
    "scope": ("cls",),
    "fastervlm": ("cls",),
    "prumerge": ("cls",),
    "prumerge-plus": ("cls",),
    "holov": ("cls",),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    [
        "llava_next",
        *(pytest.param(name, marks=pytest.mark.thorough) for name in ("internvl", "llama4", "gemma4", "mistral3")),
        "qwen2_5_vl",
    ],
)
def test_methods_of_the_encoder_run_behind_the_projector(zoo: Zoo, name: str, method: str) -> None:
    built = zoo(name)
    chosen = load_host().pruners.get(method).build()
    inputs = built.inputs(*samples(built))
    if METHODS[method] and not parts(built).facts.has_cls:
        with pytest.raises(IncompatibleError, match="needs a CLS token"), pruned(built.model, chosen, ratio=0.5):
            built.model(**inputs)
        return
    with torch.no_grad():
        plain = built.model(**inputs).logits
        with pruned(built.model, chosen, ratio=0.5) as session:
            logits = built.model(**inputs).logits
            built.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(built.model(**inputs).logits, plain)
    assert logits.isfinite().all()
    for record in session.records:
        assert {unit.site for unit in record.units} == {"input"}
        assert all(0 < unit.kept <= unit.asked < unit.before for unit in record.units)
    assert session.records[0].units == session.records[1].units


@pytest.mark.parametrize("name", BLIND)
def test_what_cannot_be_looked_into_is_refused_with_the_reason(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    with pytest.raises(IncompatibleError) as caught, pruned(built.model, Looking(), ratio=0.5):
        built.model(**built.inputs(Sample()))
    assert description(name).blind in caught.value.message
