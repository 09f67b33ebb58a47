"""DeepSeek-VL for tokenprune: what is known without importing torch."""

from tokenprune import hookimpl
from tokenprune.registry import FamilySpec


@hookimpl
def register_families(register):
    register(
        FamilySpec(
            name="deepseek_vl",
            target="tokenprune_deepseek_vl.description:DEEPSEEK_VL",
            summary="DeepSeek-VL: SigLIP tower, MLP projector, one fixed grid",
            model_types=("deepseek_vl",),
            sites=("tower", "encoder", "input", "layer", "decode"),
            refused={"pixels": "its vision encoder runs on images of one size"},
        )
    )
