"""The recorded view: enforces needs, gives exactly what was recorded, derives attention where it can."""

from __future__ import annotations

import math

import pytest
import torch

from tokenprune import dual
from tokenprune.errors import IncompatibleError, UndeclaredNeedError
from tokenprune.pruner import NEEDS, View
from tokenprune.testing import RecordedView, Recording, random_recording

CALLS = {
    "hidden": [lambda view: view.hidden()],
    "projected": [lambda view: view.projected()],
    "qkv": [
        lambda view: view.keys(rope=True),
        lambda view: view.keys(rope=False),
        lambda view: view.values(),
        lambda view: view.queries("text", rope=True)[0],
        lambda view: view.queries("last", rope=False)[0],
        lambda view: view.text_keys(rope=True)[0],
    ],
    "attention": [
        lambda view: view.attention("text")[0],
        lambda view: view.attention("last", rope=False, support="visual")[0],
        lambda view: view.attention_output("visual")[0],
    ],
    "final_norm": [lambda view: view.final_hidden()[0]],
    "encoder": [lambda view: view.encoder_features()],
    "encoder_attention": [
        lambda view: view.cls_attention(),
        lambda view: view.received_attention(),
        lambda view: view.encoder_keys(),
    ],
    "joint": [lambda view: view.joint_image(), lambda view: view.joint_text()],
    "text": [lambda view: view.text_embeddings()[0]],
    "geometry": [lambda view: view.coordinates()],
    "fingerprint": [lambda view: torch.tensor(view.fingerprints(), dtype=torch.float32)],
}


def test_every_need_has_its_accessors() -> None:
    assert set(CALLS) == set(NEEDS)


@pytest.mark.parametrize("need", sorted(NEEDS))
def test_needs_are_enforced_and_values_are_float32(need: str) -> None:
    recording = random_recording(seed=1).to(torch.bfloat16)
    for call in CALLS[need]:
        given = call(RecordedView(recording, 3, [need]))
        assert given.dtype == torch.float32
        assert given.shape[0] == 2
        with pytest.raises(UndeclaredNeedError, match=need):
            call(RecordedView(recording, 3, set(NEEDS) - {need}))


@pytest.mark.parametrize("need", sorted(set(NEEDS) - {"fingerprint"}))
def test_what_was_not_recorded_cannot_be_asked_for(need: str) -> None:
    empty = Recording(tokens=4, joint_image=None if need == "joint" else torch.zeros(1, 4, 2), **_other(need))
    for call in CALLS[need]:
        with pytest.raises(IncompatibleError, match="not recorded"):
            call(RecordedView(empty, 2, [need]))


def _other(need: str) -> dict[str, torch.Tensor]:
    return {"hidden": torch.zeros(1, 4, 2)} if need == "joint" else {}


def test_attention_and_its_output_are_softmax_over_visual_and_context() -> None:
    recording = random_recording(seed=2)
    view: View = RecordedView(recording, 3, ["attention", "qkv"])
    attention, mask = view.attention("text")
    output, _ = view.attention_output("text")
    queries, _ = view.queries("text", rope=True)
    assert recording.context_keys is not None
    assert recording.context_values is not None
    keys = torch.cat((view.keys(rope=True), recording.context_keys), dim=2)
    values = torch.cat((view.values(), recording.context_values), dim=2)
    everything = torch.softmax(queries @ dual.expand_groups(keys, 4).transpose(-1, -2) / math.sqrt(8), dim=-1)
    torch.testing.assert_close(attention, everything[..., :48])
    torch.testing.assert_close(output, everything @ dual.expand_groups(values, 4))
    assert bool(mask.all())
    assert (attention.sum(dim=-1) < 1).all()
    visual, _ = view.attention("text", support="visual")
    torch.testing.assert_close(visual.sum(dim=-1), torch.ones(2, 4, 5))


def test_given_attention_comes_before_derived_attention() -> None:
    given = torch.softmax(torch.randn(1, 2, 1, 5), dim=-1)[..., :4]
    view = RecordedView(Recording(tokens=4, attention={"last": given}), 2, ["attention"])
    assert torch.equal(view.attention("last")[0], given)
    with pytest.raises(IncompatibleError, match="has RoPE"):
        view.attention("last", rope=False)


def test_units_fingerprints_and_random_state() -> None:
    before = torch.random.get_rng_state()
    recording = random_recording(seed=7, units=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    prints = RecordedView(recording, 2, ["fingerprint"]).fingerprints()
    assert len(set(prints)) == 3
    for unit in range(3):
        assert RecordedView(recording.unit(unit), 2, ["fingerprint"]).fingerprints() == (prints[unit],)
    assert RecordedView(random_recording(seed=7, units=3), 2, ["fingerprint"]).fingerprints() == prints
    with pytest.raises(IncompatibleError, match="no units"):
        _ = Recording(tokens=3).units
