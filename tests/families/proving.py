"""What the proofs of the families share: prompts, choices, and what the stock model says where it masks instead."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.pruners import ByContent
from tests.families.zoo import FAMILIES, Built, Sample
from tokenprune.engine import pruned
from tokenprune.engine.state.image_spans import find_images
from tokenprune.families.lookup import parts_of
from tokenprune.pruner import Pruner, PruneRecord
from tokenprune.testing.conformance.masking import gone_by_layer, masked, masks_changed

Zoo = Callable[..., Built]
"""A family by name, and by the kernel of its text model where that is not `sdpa`."""
#: Families whose decoder cannot lose tokens, with the words of the refusal.
REFUSED = {"mllama": "cross", "qwen3_5": "linear attention", "lfm2_vl": "conv"}
PRUNED = [name for name in FAMILIES if name not in REFUSED]
#: One of each kind, for the fast tests of what all families share: a plain one, one with tiles and videos, one with
#: rotary positions of three axes, one with features of the encoder in several layers, one with frames as pictures, one
#: whose mask sees both ways inside a picture.
REPRESENTATIVES = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3")
SITES = [("input",), ("layer:2",), ("layer:1", "layer:3")]
#: Two cuts of every pass, for proofs that vary something else.
BOTH = ("input", "layer:2")
DECODED = 20
everyone = pytest.mark.parametrize("name", PRUNED)


def one_of_each_kind(names: Iterable[str] = PRUNED) -> pytest.MarkDecorator:
    """Families under `name`: `REPRESENTATIVES` in the fast tests, the others in the thorough ones."""
    marks = {name: () if name in REPRESENTATIVES else (pytest.mark.thorough,) for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=own) for name, own in marks.items()])


everywhere = pytest.mark.parametrize("sites", SITES, ids="+".join)
#: Two cuts in every run of the tests, each place alone in slow ones; and the same, each place alone in thorough ones.
at_every_site = pytest.mark.parametrize(
    "sites", [BOTH, *(pytest.param(sites, marks=pytest.mark.slow) for sites in SITES)], ids="+".join
)
everywhere_in_turn = pytest.mark.parametrize(
    "sites", [BOTH, *(pytest.param(sites, marks=pytest.mark.thorough) for sites in SITES)], ids="+".join
)


def samples(built: Built) -> list[Sample]:
    """Unequal numbers of pictures, also none where the family takes that, and a video where it has them."""
    found = [Sample(images=2), Sample(images=1, seed=3)]
    if built.family.unequal and built.family.text_only:
        found.append(Sample(images=0, seed=4))
    if built.family.videos and built.family.mixes:
        found.append(Sample(images=1, videos=1, seed=5))
    return found


def chosen(sites: tuple[str, ...], kind: type[ByContent] = ByContent, **options: Any) -> ByContent:
    """Half of the tokens at the first site, a quarter of the original ones at the next."""
    return kind(sites, ratios=tuple(0.5**power for power in range(1, len(sites) + 1)), **options)


def fixed(sites: tuple[str, ...]) -> ByContent:
    """The same choice in every precision."""
    return dataclasses.replace(chosen(sites), by_content=False)


def said(built: Built, inputs: Any, count: int = DECODED, **options: Any) -> Any:
    """What `generate` says greedily, with the logits of every step."""
    return built.model.generate(
        **inputs,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def takes_beams(built: Built, inputs: Any) -> bool:
    """Whether the stock model searches with beams here; some releases lose the videos of the copies."""
    try:
        with torch.no_grad():
            said(built, inputs, 1, num_beams=3)
    except ValueError:
        return False
    return True


def close(found: Tensor, expected: Tensor, near: float = 2e-5) -> None:
    """Equal but for the order of sums, on the scale of the logits."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=near * scale, rtol=1e-4)


def assert_equal_to_masked(
    built: Built,
    inputs: Any,
    picker: Pruner,
    *,
    count: int = 4,
    positions: str = "keep",
    reference: Built | None = None,
) -> None:
    """Prefill and decoded tokens of a pruned run are those of the stock model that masks what is gone.

    Args:
        built: The model that is pruned.
        inputs: A batch.
        picker: It takes out, weighs, or averages runs of neighbours in a row (`Averaging`).
        count: Decoded tokens.
        positions: `keep` or `compact`.
        reference: The model that masks; the same weights under a kernel that takes any mask.
    """
    told = reference or built
    with torch.no_grad():
        with pruned(built.model, picker, positions=positions) as session:  # type: ignore[arg-type]
            prefill, out = built.model(**inputs).logits, said(built, inputs, count)
        parts = parts_of(told.model)
        gone = gone_by_layer(parts, inputs, session.last)
        assert gone.any()
        with contextlib.ExitStack() as stack:
            stack.enter_context(masked(parts, gone))
            stack.enter_context(averaged(told, inputs, session.last))
            plain = told.model(**inputs).logits
            added = weights_by_layer(told, inputs, session.last)
            if added.any():
                stack.enter_context(weighted(told, added))
            if positions == "compact":
                stack.enter_context(renumbered(told, gone, inputs["attention_mask"].bool()))
            expected, reply = told.model(**inputs).logits, said(told, inputs, count)
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    if added.any():  # the proof can fail: weights matter
        assert not torch.allclose(plain[rows], expected[rows], atol=1e-3)
    near = 2e-5 if reference is None else 5e-4  # two kernels: the stock model's masked rows differ as much
    close(prefill[rows], expected[rows], near)
    for step in range(count):
        close(out.logits[step], reply.logits[step], near)
    assert torch.equal(out.sequences, reply.sequences)


# --- references -----------------------------------------------------------------------------------------------------


def slots_of(built: Built, inputs: Any) -> dict[tuple[int, int], Tensor]:
    """By sample and image, the slots of its visual tokens."""
    parts = parts_of(built.model)
    spans = find_images(parts.is_placeholder(inputs["input_ids"]), parts.visuals(inputs))
    return {(span.sample, span.image): span.slots for span in spans}


@contextlib.contextmanager
def averaged(built: Built, inputs: Any, record: PruneRecord) -> Iterator[None]:
    """In the prefill, rows that were merged at a layer are overwritten there with the means of their runs."""
    slots = slots_of(built, inputs)
    length = inputs["input_ids"].shape[1]
    merged = [unit for unit in record.units if unit.merged]

    def hook(layer: int) -> Any:
        def run(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if args[0].shape[1] != length:
                return None
            hidden = args[0].clone()
            for unit in merged:
                if unit.decoder_layer == layer:
                    part = slots[unit.sample, unit.image]
                    runs = unit.kept - unit.held  # a last token that stays against the answer is a row of its own
                    cell = torch.arange(unit.before) * runs // unit.before
                    means = [args[0][unit.sample, part[cell == row]].mean(0) for row in range(runs)]
                    means += [args[0][unit.sample, part[-1]]] * unit.held
                    hidden[unit.sample, part[list(unit.indices)]] = torch.stack(means)
            return (hidden, *args[1:])

        return run

    layers = parts_of(built.model).layers
    handles = [
        layers[index].register_forward_pre_hook(hook(index)) for index in {unit.decoder_layer for unit in merged}
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def weights_by_layer(built: Built, inputs: Any, record: PruneRecord) -> Tensor:
    """(L, B, S) what is added to the logits of each key, from the record alone."""
    parts = parts_of(built.model)
    ids = inputs["input_ids"]
    slots = slots_of(built, inputs)
    added = torch.zeros(parts.facts.num_layers, *ids.shape)
    for unit in record.units:
        if unit.log_weights:
            places = slots[unit.sample, unit.image][list(unit.indices)]
            added[unit.decoder_layer :, unit.sample, places] += torch.tensor(unit.log_weights)
    return added


@contextlib.contextmanager
def weighted(built: Built, added: Tensor) -> Iterator[None]:
    """Inside `masked`: every layer adds the weights (L, B, S) to the logits of the keys of the prompt."""

    def change(layer: int, rows: int, seen: int, mask: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float32).min
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, lowest)
        total = torch.zeros(added.shape[1], seen)
        total[:, : added.shape[2]] = added[layer]
        wide = total[:, None, None, -mask.shape[-1] :]  # a window holds the last keys
        return torch.where(mask <= lowest, mask, mask + wide)

    with masks_changed(parts_of(built.model), change):
        yield


@contextlib.contextmanager
def renumbered(built: Built, gone: Tensor, valid: Tensor) -> Iterator[None]:
    """Inside `masked`: every layer numbers what is left for it without gaps; positions of one axis only.

    A layer that reads another one's keys numbers its queries as that one did.

    Args:
        built: The model.
        gone: (L + 1, B, S) what is gone in each layer, and after the last.
        valid: (B, S) what is no padding.
    """
    parts = parts_of(built.model)
    rotary = parts.rotary
    gone = gone[list(parts.kv_sources)]
    calls: list[tuple[Any, dict[str, Any], Any]] = []
    shifts: dict[int, Tensor] = {}

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.clear()
        if "logits_to_keep" in kwargs:  # layers that share keys would get copies, of the last row alone
            return args, {**kwargs, "logits_to_keep": None}
        return None

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output))

    def numbered(layer: int, positions: Tensor) -> Tensor:
        """Positions (B, S) of the prompt without gaps; those of a decoded token follow on."""
        if positions.shape[-1] < gone.shape[2]:
            return positions - shifts[layer]
        left = valid & ~gone[layer]
        if not (valid & gone[layer]).any():
            shifts[layer] = torch.zeros(len(left), 1, dtype=torch.long)
            return positions
        wide = positions.expand(left.shape)
        first = wide.gather(1, left.long().argmax(1, keepdim=True))
        compact = torch.where(left, first + left.long().cumsum(1) - 1, 0)
        shifts[layer] = (wide - compact)[:, -1:]
        return compact

    def hook(layer: int) -> Any:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = kwargs["position_embeddings"]
            if given is None:
                return None
            ((asked, named, _),) = [call for call in calls if call[2] is given]
            replaced = [numbered(layer, each) if _counts(each) else each for each in asked]
            named = {name: numbered(layer, each) if _counts(each) else each for name, each in named.items()}
            return args, {**kwargs, "position_embeddings": rotary.forward(*replaced, **named)}

        return run

    handles = [
        parts.text.register_forward_pre_hook(begin, with_kwargs=True),
        rotary.register_forward_hook(remember, with_kwargs=True),
    ]
    handles += [
        layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(parts.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point()
