"""Attention kernels: pruning gives what masking gives under every kernel that the stock text model takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.pruners import Averaging, ByContent
from tests.families.proving import (
    BOTH,
    PRUNED,
    Zoo,
    assert_equal_to_masked,
    chosen,
    close,
    everyone,
    everywhere,
    samples,
)
from tests.families.zoo import FAMILIES, Sample
from tokenprune.correction import MassCorrected
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of

#: Families whose stock text model takes no `flex_attention`.
NO_FLEX = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
#: Families whose stock text model takes no flash attention for prompts of more than a chunk.
NO_FLASH = ("llama4",)
FLEXIBLE = [name for name in PRUNED if name not in NO_FLEX]
flexible = pytest.mark.parametrize("name", FLEXIBLE)
#: Each compiles for seconds.
flexible_ones = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llava" else pytest.mark.thorough) for name in FLEXIBLE]
)
in_dense_form = pytest.mark.usefixtures("dense_flex")
#: Means of runs of neighbours with their log sizes, where all visual planes have been added.
MERGES = Averaging(("layer:3",), weighted=True, reverse=False, ratios=(0.25,))
kernels = pytest.mark.parametrize("kernel", ["sdpa", "eager"])


@everyone
def test_pruned_equals_masked_under_eager(zoo: Zoo, name: str) -> None:
    built = zoo(name, "eager")
    assert_equal_to_masked(built, built.inputs(*samples(built)), chosen(BOTH))


@flexible_ones
@in_dense_form
def test_pruned_equals_masked_under_flex(zoo: Zoo, name: str) -> None:
    flex, eager = zoo(name, "flex_attention"), zoo(name, "eager")
    assert parts_of(flex.model).text.config._attn_implementation == "flex_attention"
    assert_equal_to_masked(flex, eager.inputs(*samples(eager)), chosen(BOTH), reference=eager)


@pytest.mark.parametrize("name", NO_FLEX)
def test_the_stock_model_takes_no_flex(zoo: Zoo, name: str) -> None:
    zoo(name)
    with pytest.raises(ValueError, match="does not support an attention implementation through torch's flex_attention"):
        zoo(name, "flex_attention")


@everyone
def test_mass_correction_equals_a_bias_on_the_masked_model(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    assert_equal_to_masked(built, built.inputs(*samples(built)), MassCorrected(chosen(BOTH)))


@flexible_ones
@in_dense_form
def test_merges_with_log_sizes_under_flex(zoo: Zoo, name: str) -> None:
    flex, eager = zoo(name, "flex_attention"), zoo(name, "eager")
    assert_equal_to_masked(flex, eager.inputs(*samples(eager)), MERGES, reference=eager)


@pytest.mark.parametrize("name", ["llava", "paligemma"])
@in_dense_form
def test_merges_inside_the_encoder_under_flex(zoo: Zoo, name: str, tmp_path: Path) -> None:
    sdpa, flex = zoo(name), FAMILIES[name].build(tmp_path)
    flex.model.set_attn_implementation({"vision_config": "flex_attention"})
    vision = parts_of(flex.model).vision
    assert vision is not None
    assert vision.tower.config._attn_implementation == "flex_attention"
    inputs = sdpa.inputs(Sample(), Sample(seed=1))
    logits = []
    for built in (sdpa, flex):
        with torch.no_grad(), pruned(built.model, Averaging(("tower:1",), weighted=True, ratios=(0.5,))):
            logits.append(built.model(**inputs).logits[:, -1])
    close(*logits, 5e-4)


@everyone
def test_kernels_without_a_bias_refuse_weights(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=1))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_of(built.model).text.config, "_attn_implementation_internal", "flash_attention_2")
        if name in NO_FLASH:
            with pytest.raises(ValueError, match="Flash attention cannot handle chunked attention"):
                built.model(**inputs)
            return
        weigh = MassCorrected(ByContent(("input",)))
        refused = pytest.raises(IncompatibleError, match="`flash_attention_2` has no bias for single keys")
        with refused as caught, pruned(built.model, weigh, ratio=0.5):
            built.model(**inputs)
    assert "sdpa" in str(caught.value.hint)


# --- at every site --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@everyone
@everywhere
def test_pruned_equals_masked_under_eager_at_every_site(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    built = zoo(name, "eager")
    assert_equal_to_masked(built, built.inputs(*samples(built)), chosen(sites))


@pytest.mark.slow
@flexible
@everywhere
@in_dense_form
def test_pruned_equals_masked_under_flex_at_every_site(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    flex, eager = zoo(name, "flex_attention"), zoo(name, "eager")
    assert_equal_to_masked(flex, eager.inputs(*samples(eager)), chosen(sites), reference=eager)


@pytest.mark.slow
@everyone
@kernels
@everywhere
def test_mass_correction_at_every_site(zoo: Zoo, name: str, kernel: str, sites: tuple[str, ...]) -> None:
    built = zoo(name, kernel)
    assert_equal_to_masked(built, built.inputs(*samples(built)), MassCorrected(chosen(sites)))


@pytest.mark.slow
@flexible
@everywhere
@in_dense_form
def test_mass_correction_under_flex_at_every_site(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    flex, eager = zoo(name, "flex_attention"), zoo(name, "eager")
    assert_equal_to_masked(flex, eager.inputs(*samples(eager)), MassCorrected(chosen(sites)), reference=eager)


@pytest.mark.slow
@everyone
@kernels
def test_merges_with_log_sizes(zoo: Zoo, name: str, kernel: str) -> None:
    built = zoo(name, kernel)
    assert_equal_to_masked(built, built.inputs(*samples(built)), MERGES)


@pytest.mark.slow
def test_compiled_flex_equals_the_masked_eager_model(zoo: Zoo) -> None:
    """The prefill: torch cannot compile `flex_attention` for single queries on a CPU, whatever model asks."""
    flex, eager = zoo("llava", "flex_attention"), zoo("llava", "eager")
    inputs = eager.inputs(*samples(eager))
    logits = []
    for built in (flex, eager):
        with torch.no_grad(), pruned(built.model, chosen(("input",)), positions="keep"):
            logits.append(built.model(**inputs).logits[:, -1])
    close(*logits, 1e-4)
