"""Llama 3.2 Vision: images enter by cross attention, so the decoder's own sequence holds no visual token."""

from __future__ import annotations

from tests.families.zoo.base import Family, Parts, decoder, encoder, identity, tokenizer


def _make() -> Parts:
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessor, MllamaProcessor
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    words = tokenizer("<|python_tag|>", "<|image|>")
    processor = MllamaProcessor(MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4), words)
    image = identity(words, "<|image|>")
    vision = encoder(28, 7)
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            **{name: value for name, value in vision.items() if name != "num_attention_heads"},
            attention_heads=4,
            num_global_layers=1,
            intermediate_layers_indices=[0, 1],
            vision_output_dim=3 * vision["hidden_size"],
        ),
        # the placeholder has an embedding of its own, behind the vocabulary
        text_config=MllamaTextConfig(**decoder(words, vocab_size=image), cross_attention_layers=[1, 3]),
        image_token_index=image,
    )
    return Parts(MllamaForConditionalGeneration(config), processor)


FAMILY = Family(
    "mllama",
    "mllama",
    _make,
    image="<|image|>",
    nested=True,
    unequal=False,
    pads_images=False,  # words before the first picture attend to all pictures, padding among them
)
