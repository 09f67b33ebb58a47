"""The families that tokenprune describes itself, as specs that import no torch."""

from __future__ import annotations

from collections.abc import Mapping

from tokenprune.families.reasons import (
    CONVOLUTION,
    CROSS_ATTENTION,
    LINEAR_ATTENTION,
    NO_ENCODER_ATTENTION,
    SEVERAL_LAYERS,
    UNSEEN_ATTENTION,
    everywhere,
    no_cuts,
)
from tokenprune.registry import FamilySpec
from tokenprune.site import SITE_KINDS


def _family(
    name: str,
    target: str,
    summary: str,
    *,
    video: bool = False,
    blind: str = "",
    refused: Mapping[str, str] | None = None,
) -> FamilySpec:
    """The spec of a family whose name is the model type of its checkpoints.

    Without `refused`, its encoder can be observed but not cut; `blind` says why it cannot be observed either.
    """
    reasons = no_cuts(name) if refused is None else refused
    if blind:
        reasons = {**reasons, "encoder": blind}
    return FamilySpec(
        name=name,
        target=f"tokenprune.families.described.{target}",
        summary=summary,
        model_types=(name,),
        sites=tuple(kind for kind in SITE_KINDS if kind not in reasons),
        video=video,
        refused=reasons,
    )


#: The specs; the module in `described/` says what a unit is in each family.
FAMILIES: tuple[FamilySpec, ...] = (
    _family(
        "llava", "llava:LLAVA", "LLaVA 1.5: CLIP or SigLIP tower, MLP projector, one fixed grid per image", refused={}
    ),
    _family(
        "vipllava",
        "vipllava:VIPLLAVA",
        "ViP-LLaVA: as LLaVA 1.5, its projector reads several encoder layers",
        refused={"tower": SEVERAL_LAYERS},
    ),
    _family(
        "llava_next", "llava_next:LLAVA_NEXT", "LLaVA-NeXT: a coarse grid, and tiles as one grid with newline tokens"
    ),
    _family(
        "llava_next_video",
        "llava_next:LLAVA_NEXT_VIDEO",
        "LLaVA-NeXT-Video: as LLaVA-NeXT for images, pooled frames for videos",
        video=True,
    ),
    _family(
        "llava_onevision",
        "llava_onevision:LLAVA_ONEVISION",
        "LLaVA-OneVision: tiles for one image, a grid each for several, pooled frames for videos",
        video=True,
    ),
    _family(
        "video_llava",
        "video_llava:VIDEO_LLAVA",
        "Video-LLaVA: a tower for images and one for videos, whose frames keep their CLS rows",
        video=True,
    ),
    _family("qwen2_vl", "qwen_vl:QWEN2_VL", "Qwen2-VL: images of any aspect, patches merged two by two", video=True),
    _family("qwen2_5_vl", "qwen_vl:QWEN2_5_VL", "Qwen2.5-VL: as Qwen2-VL, windows in the encoder", video=True),
    _family(
        "qwen3_vl", "qwen_vl:QWEN3_VL", "Qwen3-VL: features of several encoder layers enter the decoder", video=True
    ),
    _family("qwen3_vl_moe", "qwen_vl:QWEN3_VL_MOE", "Qwen3-VL with experts: as Qwen3-VL", video=True),
    _family(
        "qwen3_5",
        "qwen_vl:QWEN3_5",
        "Qwen3.5: linear attention in three of four decoder layers",
        video=True,
        refused=everywhere(LINEAR_ATTENTION),
    ),
    _family("internvl", "internvl:INTERNVL", "InternVL: square tiles and the whole picture, a unit each", video=True),
    _family("gemma3", "gemma3:GEMMA3", "Gemma 3: one pooled grid per image, sliding windows in the decoder"),
    _family("gemma4", "gemma4:GEMMA4", "Gemma 4: images of any aspect, decoder layers that share keys", video=True),
    _family(
        "paligemma", "paligemma:PALIGEMMA", "PaliGemma: SigLIP tower, linear projector, one fixed grid", refused={}
    ),
    _family("idefics3", "idefics3:IDEFICS3", "Idefics3: square tiles and the whole picture, a unit each"),
    _family("smolvlm", "idefics3:SMOLVLM", "SmolVLM: as Idefics3, frames of videos as pictures", video=True),
    _family("mistral3", "mistral3:MISTRAL3", "Mistral 3: images of any aspect, a break token after every row"),
    _family("aya_vision", "aya_vision:AYA_VISION", "Aya Vision: square tiles and the whole picture, a unit each"),
    _family("ovis2", "ovis2:OVIS2", "Ovis2: the whole picture and square tiles, a unit each"),
    _family(
        "fast_vlm", "fast_vlm:FAST_VLM", "FastVLM: convolutional tower, one grid per image", blind=NO_ENCODER_ATTENTION
    ),
    _family("glm4v", "glm4v:GLM4V", "GLM-4V: images of any aspect, frames of videos as runs of their own", video=True),
    _family(
        "perception_lm",
        "perception_lm:PERCEPTION_LM",
        "Perception LM: the whole picture and pooled tiles, a unit each; videos in frames",
        video=True,
        blind=UNSEEN_ATTENTION,
    ),
    _family("lfm2_vl", "lfm2_vl:LFM2_VL", "LFM2-VL: convolutions in the decoder", refused=everywhere(CONVOLUTION)),
    _family("llama4", "llama4:LLAMA4", "Llama 4: square tiles and the whole picture, attention in chunks"),
    _family(
        "mllama",
        "mllama:MLLAMA",
        "Llama 3.2 Vision: images enter through cross-attention layers",
        refused=everywhere(CROSS_ATTENTION),
    ),
)
