"""Where the parts of a DeepSeek-VL model are, and which grid an image makes."""

from tokenprune.families.family import Family, VisionTower
from tokenprune.families.layouts import equal_grids, patches_per_side


def layout(config, inputs, runs):
    side = patches_per_side(config)
    return equal_grids(runs, side, side)


DEEPSEEK_VL = Family(
    name="deepseek_vl",
    layout=layout,
    refused={"pixels": "its vision encoder runs on images of one size"},
    vision=VisionTower(
        tower="model.vision_model",
        layers="encoder.layers",
        projector="model.aligner",
        read_layer=lambda config: config.vision_config.num_hidden_layers - 1,
        has_cls=lambda _config: False,
        patch_size=lambda config: config.vision_config.patch_size,
    ),
)
