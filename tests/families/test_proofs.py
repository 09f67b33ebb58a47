"""The engine's proofs for every family: real classes, real processors, real pictures and videos."""

from __future__ import annotations

import pytest
import torch

from tests.engine.pruners import Averaging, ByContent, Ragged
from tests.families.proving import (
    BOTH,
    DECODED,
    PRUNED,
    REFUSED,
    SITES,
    Zoo,
    assert_equal_to_masked,
    at_every_site,
    chosen,
    close,
    everyone,
    everywhere_in_turn,
    one_of_each_kind,
    said,
    samples,
    takes_beams,
)
from tests.families.zoo import FAMILIES, Sample
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.testing.conformance.masking import gone_by_layer, masked

#: Families whose stock `generate` fails with beams: it copies the prompts, but not what the encoder made of them.
NO_BEAMS = ("llama4",)
#: Families whose stock processors take videos of one length in a batch.
ONE_LENGTH = ("internvl", "llava_next_video", "llava_onevision", "perception_lm", "video_llava")


@one_of_each_kind()
@everywhere_in_turn
def test_keep_all_is_bit_identical(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    with torch.no_grad():
        logits = built.model(**inputs).logits
        greedy = said(built, inputs, 6).sequences
        without = name in NO_BEAMS or not takes_beams(built, inputs)
        beams = None if without else said(built, inputs, 4, num_beams=3).sequences
        with pruned(built.model, ByContent(sites), ratio=1.0) as session:
            assert torch.equal(built.model(**inputs).logits, logits)
            assert torch.equal(said(built, inputs, 6).sequences, greedy)
            if beams is not None:
                assert torch.equal(said(built, inputs, 4, num_beams=3).sequences, beams)
    assert session.records[0].final() == session.records[0].original_visual_tokens
    assert torch.equal(built.model(**inputs).logits, logits)


CHOICES = [
    pytest.param(SITES[0], ByContent, id="+".join(SITES[0])),
    *(pytest.param(sites, ByContent, id="+".join(sites), marks=pytest.mark.thorough) for sites in SITES[1:]),
    *(pytest.param(sites, Ragged, id="+".join(sites) + "-ragged", marks=pytest.mark.slow) for sites in SITES[:2]),
    pytest.param(SITES[2], Ragged, id="+".join(SITES[2]) + "-ragged"),
]


@everyone
@pytest.mark.parametrize(("sites", "kind"), CHOICES)
def test_pruned_equals_masked(zoo: Zoo, name: str, sites: tuple[str, ...], kind: type[ByContent]) -> None:
    built = zoo(name)
    assert_equal_to_masked(built, built.inputs(*samples(built)), chosen(sites, kind), count=DECODED)


@one_of_each_kind()
@at_every_site
def test_pruned_equals_masked_with_compact_positions(zoo: Zoo, name: str, sites: tuple[str, ...]) -> None:
    built = zoo(name)
    assert_equal_to_masked(built, built.inputs(*samples(built)), chosen(sites), positions="compact")


with_videos = pytest.mark.parametrize("name", [name for name in PRUNED if FAMILIES[name].videos])


@with_videos
@pytest.mark.parametrize("positions", ["keep", pytest.param("compact", marks=pytest.mark.slow)])
def test_pruned_equals_masked_on_videos(zoo: Zoo, name: str, positions: str) -> None:
    built = zoo(name)
    frames = 4 if name in ONE_LENGTH else 2
    inputs = built.inputs(Sample(images=0, videos=1), Sample(images=0, videos=1, frames=frames, seed=6))
    assert_equal_to_masked(built, inputs, chosen(BOTH), positions=positions)


@pytest.mark.parametrize("name", ONE_LENGTH)
def test_the_stock_processor_takes_no_videos_of_several_lengths(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    with pytest.raises(ValueError, match="tensor"):
        built.inputs(Sample(images=0, videos=1), Sample(images=0, videos=1, frames=2))


@one_of_each_kind(name for name in PRUNED if name not in NO_BEAMS)
def test_beams_of_a_pruned_prompt_are_those_of_the_masked_one(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(*samples(built))
    if not takes_beams(built, inputs):
        pytest.skip("the stock model fails with beams on these inputs in this transformers")
    beams = {"num_beams": 3, "output_scores": True}
    parts = parts_of(built.model)
    with torch.no_grad():
        with pruned(built.model, chosen(BOTH), positions="keep") as session:
            built.model(**inputs)
            out = said(built, inputs, 5, **beams)
        gone = gone_by_layer(parts, inputs, session.records[0]).repeat_interleave(3, dim=1)
        with masked(parts, gone):
            expected = said(built, inputs, 5, **beams)
        plain = said(built, inputs, 5, **beams)
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(out.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(out.sequences_scores, plain.sequences_scores, atol=1e-4)


@pytest.mark.parametrize("name", NO_BEAMS)
def test_the_stock_model_fails_with_beams(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    for many in ([Sample()], samples(built)):
        with torch.no_grad(), pytest.raises((ValueError, RuntimeError), match=r"tokens|match|shape"):
            said(built, built.inputs(*many), 4, num_beams=3)


@one_of_each_kind()
def test_batch_equals_singles(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    many = samples(built)
    for policy in ("keep", "compact"):
        with pruned(built.model, chosen(BOTH), positions=policy) as session:
            together = said(built, built.inputs(*many), 6)
            alone = [said(built, built.inputs(sample), 6) for sample in many]
        for row, single in enumerate(alone):
            for step in range(6):
                close(together.logits[step][row], single.logits[step][0])
        assert session.records[0].final()[0] == session.records[1].final()[0]


@one_of_each_kind()
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


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused_with_the_reason(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    inputs = built.inputs(Sample())
    before = built.model(**inputs).logits
    with pytest.raises(IncompatibleError, match=REFUSED[name]), pruned(built.model, ByContent(), ratio=0.5):
        built.model(**inputs)
    assert torch.equal(built.model(**inputs).logits, before)
