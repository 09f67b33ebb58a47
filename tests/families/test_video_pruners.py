"""The video methods, and some image methods, on the frames that the real video processors make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.families.proving import PRUNED, close, said
from tests.families.zoo import FAMILIES, Built, Sample
from tokenprune import load_host, pruned
from tokenprune.budget import Budget
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.pruner import Pruner

Zoo = Callable[[str], Built]
VIDEO_METHODS = ("prunevid", "dycoke", "fastvid", "holitom", "vidcom2", "evs")
IMAGE_METHODS = ("divprune", "fastv", "iwp")
METHODS = (*VIDEO_METHODS, *IMAGE_METHODS)
WITH_VIDEOS = [name for name in PRUNED if FAMILIES[name].videos]
#: What a method asks for that a family cannot give, with the words of the refusal.
REFUSED = {
    ("gemma4", "prunevid"): "(?i)sliding",
    ("gemma4", "dycoke"): "(?i)sliding",
    ("perception_lm", "fastvid"): "timm",
    ("perception_lm", "holitom"): "timm",
}
#: Families of every run: pooled frames, frames with separators, merged frames, frames as units of their own.
FAST = ("llava_onevision", "video_llava", "qwen2_5_vl", "smolvlm")
RATIO = 0.5
FILMS = (Sample(images=0, videos=1, seed=1, frames=4), Sample(images=0, videos=1, seed=2, frames=4))

everyone = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in WITH_VIDEOS]
)
every_method = pytest.mark.parametrize("method", METHODS)


def build(method: str) -> Pruner:
    found: Pruner = load_host().pruners.get(method).build()
    return found


def refused(built: Built, inputs: Any, method: str) -> bool:
    """Whether a family cannot give what a method asks for; then it says so."""
    words = REFUSED.get((built.family.name, method))
    if words is not None:
        with pytest.raises(IncompatibleError, match=words), pruned(built.model, build(method), ratio=RATIO):
            built.model(**inputs)
    return words is not None


@everyone
@every_method
def test_counts_are_exact(zoo: Zoo, family: str, method: str) -> None:
    built = zoo(family)
    inputs = built.inputs(*FILMS)
    if refused(built, inputs, method):
        return
    original = [unit.placeholders - len(unit.separators) for unit in parts_of(built.model).visuals(inputs)]
    with torch.no_grad(), pruned(built.model, build(method), ratio=RATIO) as session:
        built.model(**inputs)
    record = session.last
    assert all(unit.kept == unit.asked for unit in record.units)
    assert sum(record.original_visual_tokens) == sum(original)
    budget = Budget(ratio=RATIO)
    assert {unit.sample for unit in record.units} == {0, 1}
    last = {(unit.sample, unit.image): unit.kept for unit in record.units}  # of several stops the last one
    for sample, total in enumerate(record.final()):
        assert total == sum(kept for (owner, _), kept in last.items() if owner == sample)
        assert total == budget.count(record.original_visual_tokens[sample])


@everyone
@every_method
def test_batch_equals_singles(zoo: Zoo, family: str, method: str) -> None:
    built = zoo(family)
    inputs = built.inputs(*FILMS)
    if refused(built, inputs, method):
        return
    pruner = build(method)
    with torch.no_grad(), pruned(built.model, pruner, ratio=RATIO) as session:
        together = said(built, inputs, 4)
        alone = [said(built, built.inputs(film), 4) for film in FILMS]
    both, *single = session.records
    for row, record in enumerate(single):
        ours = [(unit.site, unit.indices) for unit in both.units if unit.sample == row]
        assert ours == [(unit.site, unit.indices) for unit in record.units]
        for step in range(4):
            close(together.logits[step][row], alone[row].logits[step][0])
