"""Attention kernels and precisions: pruning gives what masking gives under each kernel that takes the family."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.pruners import ByContent
from tests.families.conftest import missing
from tests.families.test_proofs import PRUNED, chosen, close, said, samples
from tests.families.zoo import FAMILIES, Built, Sample
from tokenprune.correction import MassCorrected
from tokenprune.engine import pruned
from tokenprune.engine.layout import find_images
from tokenprune.errors import IncompatibleError
from tokenprune.models.loading import parts_of
from tokenprune.pruner import PruneRecord
from tokenprune.testing.conformance.masking import gone_by_layer, masked

Kernels = Callable[[str, str], Built]
#: Families of every run; the others are slow.
FAST = ("llava", "idefics3", "smolvlm")
SITES = [("input",), ("layer:2",)]
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRUNED]
)
everywhere = pytest.mark.parametrize("sites", SITES, ids="+".join)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """A function that builds a family with an attention kernel, once per session."""
    folder: Path = tmp_path_factory.mktemp("kernels")
    made: dict[tuple[str, str], Built] = {}

    def build(name: str, kernel: str) -> Built:
        why = missing(FAMILIES[name])
        if why is not None:
            pytest.skip(f"{name} {why}")
        if (name, kernel) not in made:
            try:
                made[name, kernel] = FAMILIES[name].build(folder, kernel)
            except (ValueError, ImportError) as error:
                pytest.skip(f"{name} cannot be loaded with `{kernel}`: {error}")
        return made[name, kernel]

    return build


def fixed(sites: tuple[str, ...]) -> ByContent:
    """The same choice in every precision."""
    return dataclasses.replace(chosen(sites), by_content=False)


def in_bfloat16(built: Built) -> Built:
    """The same model as loaded in bfloat16."""
    from transformers import AutoModelForImageTextToText

    kernel = built.model.config._attn_implementation
    model = AutoModelForImageTextToText.from_pretrained(built.path, dtype=torch.bfloat16, attn_implementation=kernel)
    return dataclasses.replace(built, model=model.eval())


def weights_by_layer(built: Built, inputs: Any, record: PruneRecord) -> torch.Tensor:
    """(L, B, S) what is added to the logits of each key, from the record alone."""
    parts = parts_of(built.model)
    ids = inputs["input_ids"]
    spans = find_images(parts.is_placeholder(ids), parts.visuals(inputs))
    slots = {(span.sample, span.image): span.slots for span in spans}
    added = torch.zeros(parts.facts.num_layers, *ids.shape)
    for unit in record.units:
        places = slots[unit.sample, unit.image][list(unit.indices)]
        added[unit.decoder_layer :, unit.sample, places] = torch.tensor(unit.log_weights)
    return added


@contextlib.contextmanager
def weighted(built: Built, added: torch.Tensor) -> Iterator[None]:
    """Inside `masked`: every layer adds the weights to the logits of the keys of the prompt."""

    def hook(layer: int) -> Any:
        def run(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            mask = kwargs["attention_mask"]
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            total = torch.zeros(added.shape[1], max(mask.shape[-1], added.shape[2]))
            total[:, : added.shape[2]] = added[layer]
            wide = total[:, None, None, -mask.shape[-1] :]
            lowest = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": torch.where(mask <= lowest, mask, mask + wide)}

        return run

    layers = parts_of(built.model).layers
    handles = [layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assert_equal_to_masked(built: Built, sites: tuple[str, ...], count: int = 4) -> None:
    """Prefill and some decoded tokens of a pruned run are those of the masked one."""
    inputs = built.inputs(*samples(built))
    with torch.no_grad():
        with pruned(built.model, chosen(sites), positions="keep") as session:
            prefill, out = built.model(**inputs).logits, said(built, inputs, count)
        gone = gone_by_layer(parts_of(built.model), inputs, session.last)
        assert gone.any()
        with masked(parts_of(built.model), gone):
            reference, expected = built.model(**inputs).logits, said(built, inputs, count)
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    close(prefill[rows], reference[rows])
    for step in range(count):
        close(out.logits[step], expected.logits[step])


@families
@everywhere
def test_pruned_equals_masked_under_eager(kernels: Kernels, name: str, sites: tuple[str, ...]) -> None:
    assert_equal_to_masked(kernels(name, "eager"), sites)


@families
@everywhere
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_bfloat16_costs_no_more_than_it_does_without_pruning(
    kernels: Kernels, name: str, kernel: str, sites: tuple[str, ...]
) -> None:
    built = kernels(name, kernel)
    half = in_bfloat16(built)
    inputs = built.inputs(*samples(built))
    rounded = inputs.to(torch.bfloat16)
    with torch.no_grad():
        with pruned(half.model, fixed(sites), positions="keep") as session:
            found = half.model(**rounded).logits.float()
            told = said(half, rounded, 2)
        gone = gone_by_layer(parts_of(built.model), inputs, session.records[0])
        with masked(parts_of(half.model), gone):
            rough = half.model(**rounded).logits.float()
        with masked(parts_of(built.model), gone):
            exact = built.model(**inputs).logits
    assert session.records[0].final() == session.records[1].final()
    assert session.records[0].final() < session.records[0].original_visual_tokens
    assert all(logits.isfinite().all() for logits in told.logits)
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    ours, theirs = (found - exact)[rows].abs().mean(), (rough - exact)[rows].abs().mean()
    assert ours <= 1.5 * theirs + 1e-3 * exact[rows].abs().mean()


@families
@everywhere
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_mass_correction_equals_a_bias_on_the_masked_model(
    kernels: Kernels, name: str, kernel: str, sites: tuple[str, ...]
) -> None:
    built = kernels(name, kernel)
    inputs = built.inputs(*samples(built))
    with torch.no_grad():
        with pruned(built.model, MassCorrected(chosen(sites)), positions="keep") as session:
            prefill, out = built.model(**inputs).logits, said(built, inputs, 4)
        added = weights_by_layer(built, inputs, session.last)
        assert added.amax() > 0
        gone = gone_by_layer(parts_of(built.model), inputs, session.last)
        with masked(parts_of(built.model), gone):
            plain = built.model(**inputs).logits
            with weighted(built, added):
                reference, expected = built.model(**inputs).logits, said(built, inputs, 4)
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    assert not torch.allclose(plain[rows], reference[rows], atol=1e-3)
    close(prefill[rows], reference[rows])
    for step in range(4):
        close(out.logits[step], expected.logits[step])


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNED)
@everywhere
def test_flex_attention_equals_the_masked_eager_model(kernels: Kernels, name: str, sites: tuple[str, ...]) -> None:
    flex, eager = kernels(name, "flex_attention"), kernels(name, "eager")
    inputs = eager.inputs(*samples(eager))
    with torch.no_grad():
        try:
            flex.model(**inputs)
        except Exception as error:  # noqa: BLE001 - whatever stops the stock model is the reason to skip
            pytest.skip(f"the stock model of {name} does not run with `flex_attention` here: {error}"[:300])
        with pruned(flex.model, chosen(sites), positions="keep") as session:
            prefill, out = flex.model(**inputs).logits, said(flex, inputs, 2)
        gone = gone_by_layer(parts_of(eager.model), inputs, session.last)
        with masked(parts_of(eager.model), gone):
            reference, expected = eager.model(**inputs).logits, said(eager, inputs, 2)
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    close(prefill[rows], reference[rows])
    for step in range(2):
        close(out.logits[step], expected.logits[step])


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
def test_kernels_without_a_bias_refuse_weights(kernels: Kernels, kernel: str) -> None:
    built = kernels("llava", "sdpa")
    inputs = built.inputs(Sample(images=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built.model.config.get_text_config(), "_attn_implementation_internal", kernel)
        weigh = MassCorrected(ByContent(("input",)))
        refused = pytest.raises(IncompatibleError, match=f"`{kernel}` has no bias for single keys")
        with refused as caught, pruned(built.model, weigh, ratio=0.5):
            built.model(**inputs)
    assert "sdpa" in str(caught.value.hint)
