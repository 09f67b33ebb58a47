"""The zoo against the published implementations: the public pruner code on recorded inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenprune_zoo import CDPruner, Dart, DivPrune, FastV, VisionZip
from torch import Tensor

from tokenprune import Budget
from tokenprune.pruner import Decision, Pruner, Stop
from tokenprune.testing import RecordedView, Recording

COPIED = Path(__file__).parent.parent / "golden"
METHODS = ("fastv", "divprune", "visionzip", "dart", "cdpruner")


@dataclass(frozen=True)
class Case:
    path: Path

    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    def parameters(self) -> dict[str, float]:
        with safe_open(self.path, "pt") as file:
            return dict(json.loads(file.metadata()["hyper_parameters"]))


def cases(method: str) -> list[pytest.param]:
    return [pytest.param(Case(path), id=path.stem) for path in sorted((COPIED / method).glob("*.safetensors"))]


def decide(pruner: Pruner, recording: Recording, keep: int) -> Decision:
    view = RecordedView.for_pruner(recording, pruner, keep)
    return pruner.decide(view, Stop(view.site, Budget(tokens=keep)), {})


def test_the_copied_cases_are_there() -> None:
    for method in METHODS:
        assert len(list((COPIED / method).glob("*.safetensors"))) >= 2


@pytest.mark.parametrize("case", cases("fastv"))
def test_fastv(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    start, tokens = int(parameters["image_start"]), tensors["out.score"].shape[0]
    row = tensors["in.attn_last_row"][None, :, None, start : start + tokens]
    recording = Recording(tokens=tokens, attention={"last": row})
    pruner = FastV()
    view = RecordedView.for_pruner(recording, pruner, 1)
    torch.testing.assert_close(pruner.score(view)[0], tensors["out.score"], rtol=1e-3, atol=1e-7)
    decision = decide(pruner, recording, int(parameters["T"]))
    assert decision.units[0].anchors.tolist() == tensors["out.keep"].tolist()


@pytest.mark.parametrize("case", cases("divprune"))
def test_divprune(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    features = tensors["in.features"][None]
    decision = decide(DivPrune(), Recording(tokens=features.shape[1], projected=features), int(parameters["T"]))
    assert decision.units[0].anchors.tolist() == tensors["out.keep"].tolist()


def visionzip_recording(tensors: dict[str, Tensor]) -> Recording:
    """Without the CLS rows: a view holds patches."""
    return Recording(
        tokens=tensors["in.hidden"].shape[0] - 1,
        encoder_features=tensors["in.hidden"][None, 1:],
        encoder_keys=tensors["in.keys"][None, :, 1:],
        cls_attention=tensors["in.cls_attn"][None],
    )


@pytest.mark.parametrize("case", cases("visionzip"))
def test_visionzip(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    contextual = int(parameters["contextual"])
    recording = visionzip_recording(tensors)
    kept = decide(VisionZip(published=True, contextual=contextual), recording, int(parameters["total"])).units[0]
    dominant, targets = kept.anchors[:-contextual], kept.anchors[-contextual:]
    assert dominant.tolist() == tensors["out.dominant_patches"].tolist()
    assert targets.tolist() == tensors["out.target_patches"].tolist()
    assert kept.merge is not None
    merged_into = kept.merge[-contextual:][:, tensors["out.merged_patches"]].argmax(dim=0)
    assert merged_into.tolist() == tensors["out.merged_into_target"].tolist()
    assert recording.encoder_features is not None
    # the first official row is CLS, which a view does not have
    torch.testing.assert_close(
        kept.merge @ recording.encoder_features[0], tensors["out.features"][1:], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("case", cases("visionzip"))
def test_the_sound_visionzip_emits_patches_only_and_true_means(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    contextual, total = int(parameters["contextual"]), int(parameters["total"])
    kept = decide(VisionZip(contextual=contextual), visionzip_recording(tensors), total).units[0]
    assert kept.merge is not None
    assert kept.merge.shape[0] == total
    torch.testing.assert_close(kept.merge.sum(dim=-1), torch.ones(total))


def dart_recording(tensors: dict[str, Tensor], parameters: dict[str, float]) -> Recording:
    start, tokens = int(parameters["image_start"]), tensors["out.key_l1"].shape[0]
    end = start + tokens
    return Recording(
        tokens=tokens,
        keys=tensors["in.keys"][None, :, start:end],
        text_keys=tensors["in.keys"][None, :, end:],
        final_visual=tensors["in.hidden_normed"][None, start:end],
        final_text=tensors["in.hidden_normed"][None, end:],
    )


@pytest.mark.parametrize("case", cases("dart"))
def test_dart(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    options = {name: int(parameters[name]) for name in ("pivot_image", "pivot_text", "image_start")}
    pruner = Dart(published=True, **options)
    decision = decide(pruner, dart_recording(tensors, parameters), int(parameters["kept_total"]))
    assert decision.units[0].anchors.tolist() == tensors["out.keep"].tolist()


@pytest.mark.parametrize("case", cases("dart"))
def test_the_sound_dart_keeps_the_same_pivots(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    pruner = Dart(pivot_image=int(parameters["pivot_image"]), pivot_text=int(parameters["pivot_text"]))
    nominal = tensors["out.keep"].shape[0] + 3
    decision = decide(pruner, dart_recording(tensors, parameters), nominal)
    anchors = decision.units[0].anchors.tolist()
    assert len(anchors) == len(set(anchors)) == nominal
    assert set(tensors["out.pivot_image_official_order"].tolist()) <= set(anchors)


@pytest.mark.parametrize("case", cases("cdpruner"))
def test_cdpruner(case: Case) -> None:
    tensors, parameters = case.tensors(), case.parameters()
    features = tensors["in.features"]
    # several 77-token segments: the mean of their cosines is the cosine with the mean direction, up to a scale that
    # the min-max removes
    segments = torch.nn.functional.normalize(tensors["in.text_embeds"], dim=-1).mean(dim=0)
    recording = Recording(
        tokens=features.shape[1],
        projected=features,
        joint_image=tensors["in.image_embeds"],
        joint_text=segments.expand(features.shape[0], -1),
    )
    pruner = CDPruner(published=True)
    view = RecordedView.for_pruner(recording, pruner, 1)
    torch.testing.assert_close(pruner.relevance(view), tensors["out.relevance"], rtol=1e-3, atol=1e-5)
    decision = decide(pruner, recording, int(parameters["T"]))
    for unit, kept in enumerate(decision.units):
        assert kept.anchors.tolist() == tensors["out.keep"][unit].tolist()


def test_the_sound_cdpruner_does_not_see_its_batch_mates() -> None:
    case = Case(COPIED / "cdpruner" / "f_batch_of_two_N144_T36.safetensors")
    tensors = case.tensors()
    recording = Recording(
        tokens=144,
        projected=tensors["in.features"],
        joint_image=tensors["in.image_embeds"],
        joint_text=tensors["in.text_embeds"].expand(2, -1),
    )
    both = decide(CDPruner(), recording, 36)
    for unit in range(2):
        alone = decide(CDPruner(), recording.unit(unit), 36)
        assert alone.units[0].anchors.tolist() == both.units[unit].anchors.tolist()
    official = decide(CDPruner(published=True), recording, 36)
    scales = [CDPruner(published=flag).relevance(RecordedView.for_pruner(recording, CDPruner(), 1)) for flag in (0, 1)]
    assert not torch.allclose(scales[0], scales[1])
    assert [kept.anchors.tolist() for kept in official.units] == tensors["out.keep"].tolist()
