"""The engine's proofs for every family: real classes, real processors, real pictures and videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.pruners import Averaging, ByContent, Ragged
from tests.families.zoo import FAMILIES, Built, Sample
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.models.loading import parts_of
from tokenprune.testing.conformance.masking import gone_by_layer, masked

Zoo = Callable[[str], Built]
#: Families whose decoder cannot lose tokens, with the words of the refusal.
REFUSED = {"mllama": "cross", "qwen3_5": "linear attention", "lfm2_vl": "conv"}
#: Families whose stock `generate` fails with beams and several pictures.
NO_BEAMS = {"llama4"}
PRUNED = [name for name in FAMILIES if name not in REFUSED]
SITES = [("input",), ("layer:2",), ("layer:1", "layer:3")]
DECODED = 20
everyone = pytest.mark.parametrize("name", PRUNED)
everywhere = pytest.mark.parametrize("sites", SITES, ids="+".join)


def samples(built: Built) -> list[Sample]:
    """Unequal numbers of pictures, also none where the family takes that, and a video where it has them."""
    found = [Sample(images=2), Sample(images=1, seed=3)]
    if built.family.unequal and built.family.text_only:
        found.append(Sample(images=0, seed=4))
    if built.family.videos and built.family.mixes:
        found.append(Sample(images=1, videos=1, seed=5))
    return found


def chosen(sites: tuple[str, ...]) -> ByContent:
    return ByContent(sites, ratios=tuple(0.5**power for power in range(1, len(sites) + 1)))


def said(built: Built, inputs: Any, count: int = DECODED, **options: Any) -> Any:
    return built.model.generate(
        **inputs,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=2e-5 * scale, rtol=1e-4)


@everyone
@everywhere
def test_keep_all_is_bit_identical(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    with torch.no_grad():
        logits = built.model(**inputs).logits
        greedy = said(built, inputs, 6).sequences
        beams = None if name in NO_BEAMS else said(built, inputs, 4, num_beams=3).sequences
        with pruned(built.model, ByContent(sites), ratio=1.0) as session:
            assert torch.equal(built.model(**inputs).logits, logits)
            assert torch.equal(said(built, inputs, 6).sequences, greedy)
            if beams is not None:
                assert torch.equal(said(built, inputs, 4, num_beams=3).sequences, beams)
    assert session.records[0].final() == session.records[0].original_visual_tokens
    assert torch.equal(built.model(**inputs).logits, logits)


@everyone
@everywhere
@pytest.mark.parametrize("kind", [ByContent, Ragged])
def test_pruned_equals_masked(zoo: Zoo, name: str, sites: tuple[str, ...], kind: type[ByContent]) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    picker = kind(sites, ratios=chosen(sites).ratios)
    with torch.no_grad():
        with pruned(built.model, picker, positions="keep") as session:
            prefill = built.model(**inputs).logits
            out = said(built, inputs)
        gone = gone_by_layer(parts_of(built.model), inputs, session.last)
        assert gone.any()
        with masked(parts_of(built.model), gone):
            reference = built.model(**inputs).logits
            expected = said(built, inputs)
    rows = inputs["attention_mask"].bool() & ~gone[-1]
    close(prefill[rows], reference[rows])
    for step in range(DECODED):
        close(out.logits[step], expected.logits[step])
    assert torch.equal(out.sequences, expected.sequences)


@everyone
def test_batch_equals_singles(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    many = samples(built)
    for policy in ("keep", "compact"):
        with pruned(built.model, chosen(("input", "layer:2")), positions=policy) as session:
            together = said(built, built.inputs(*many), 6)
            alone = [said(built, built.inputs(sample), 6) for sample in many]
        for row, single in enumerate(alone):
            for step in range(6):
                close(together.logits[step][row], single.logits[step][0])
        assert session.records[0].final()[0] == session.records[1].final()[0]


@everyone
def test_merged_rows_are_the_same_in_any_batch(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    many = samples(built)
    for site in ("input", "layer:1"):
        with pruned(built.model, Averaging((site,), weighted=True, ratios=(0.25,))):
            together = said(built, built.inputs(*many), 4)
            alone = [said(built, built.inputs(sample), 4) for sample in many]
        for row, single in enumerate(alone):
            for step in range(4):
                close(together.logits[step][row], single.logits[step][0])


@everyone
def test_a_second_turn_on_the_same_cache(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample(images=1, seed=2))
    more = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        with pruned(built.model, chosen(("input", "layer:2")), positions="keep") as session:
            first = built.model(**inputs, use_cache=True)
            second = turn(built, more, first.past_key_values)
        with masked(parts_of(built.model), gone_by_layer(parts_of(built.model), inputs, session.last)):
            plain = built.model(**inputs, use_cache=True)
            expected = turn(built, more, plain.past_key_values)
    close(second, expected)


def turn(built: Built, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits of a turn of text after a prompt."""
    more = {"input_ids": ids}  # no mask: some stock models number the positions of a whole mask
    logits: torch.Tensor = built.model(**more, past_key_values=cache, use_cache=True).logits
    return logits


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused_with_the_reason(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample())
    before = built.model(**inputs).logits
    with pytest.raises(IncompatibleError, match=REFUSED[name]), pruned(built.model, ByContent(), ratio=0.5):
        built.model(**inputs)
    assert torch.equal(built.model(**inputs).logits, before)
