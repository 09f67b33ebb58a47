"""What methods do where they depart from their published code, on the recorded inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording

GOLDEN = Path(__file__).parent / "golden"


def cases(method: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((GOLDEN / method).glob("*.safetensors"))]


@pytest.mark.parametrize("path", cases("visionzip"))
def test_visionzip_emits_patches_only_and_true_means(path: Path) -> None:
    case = Case.read(path)
    contextual, total = int(case.parameters["contextual"]), int(case.parameters["total"])
    recording = Recording(  # without the CLS rows: a view holds patches
        tokens=case.given("hidden").shape[0] - 1,
        encoder_features=case.given("hidden")[None, 1:],
        encoder_keys=case.given("keys")[None, :, 1:],
        cls_attention=case.given("cls_attn")[None],
    )
    kept = decide(build("visionzip", {"contextual": contextual}), recording, total).units[0]
    assert kept.merge is not None
    assert kept.merge.shape[0] == total
    torch.testing.assert_close(kept.merge.sum(dim=-1), torch.ones(total))


@pytest.mark.parametrize("path", cases("dart"))
def test_dart_keeps_the_same_pivots(path: Path) -> None:
    case = Case.read(path)
    start, tokens = int(case.parameters["image_start"]), case.wanted("key_l1").shape[0]
    end = start + tokens
    recording = Recording(
        tokens=tokens,
        keys=case.given("keys")[None, :, start:end],
        text_keys=case.given("keys")[None, :, end:],
        final_visual=case.given("hidden_normed")[None, start:end],
        final_text=case.given("hidden_normed")[None, end:],
    )
    pruner = build("dart", {name: int(case.parameters[name]) for name in ("pivot_image", "pivot_text")})
    nominal = case.wanted("keep").shape[0] + 3
    anchors = decide(pruner, recording, nominal).units[0].anchors.tolist()
    assert len(anchors) == len(set(anchors)) == nominal
    assert set(case.wanted("pivot_image_official_order").tolist()) <= set(anchors)


def test_cdpruner_does_not_see_its_batch_mates() -> None:
    case = Case.read(GOLDEN / "cdpruner" / "f_batch_of_two_N144_T36.safetensors")
    recording = Recording(
        tokens=144,
        projected=case.given("features"),
        joint_image=case.given("image_embeds"),
        joint_text=case.given("text_embeds").expand(2, -1),
    )
    sound, published = (build("cdpruner", {"published": flag}) for flag in (False, True))
    both = decide(sound, recording, 36)
    for unit in range(2):
        alone = decide(sound, recording.unit(unit), 36)
        assert alone.units[0].anchors.tolist() == both.units[unit].anchors.tolist()
    official = decide(published, recording, 36)
    scales = [pruner.relevance(look(pruner, recording)) for pruner in (sound, published)]  # type: ignore[attr-defined]
    assert not torch.allclose(scales[0], scales[1])
    assert [kept.anchors.tolist() for kept in official.units] == case.wanted("keep").tolist()
