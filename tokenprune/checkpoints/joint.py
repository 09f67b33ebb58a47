"""The joint image-text space of a CLIP pair, for pruners that rank patches by their relevance to the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenprune.checkpoints.weights import check_weights

_CONVERT = (
    "from transformers import CLIPModel as M; M.from_pretrained({0!r}, use_safetensors=False).save_pretrained({0!r})"
)


@dataclass(frozen=True)
class JointSpace:
    """A CLIP text tower with both projections, beside a vision-language model with the same vision tower.

    Args:
        clip: A `CLIPModel` whose vision tower is the one that the vision-language model uses.
        tokenizer: The CLIP tokenizer.
        decode: Turns token ids of the vision-language model back into text.
    """

    clip: Any
    tokenizer: Any
    decode: Callable[[Sequence[int]], str]

    @torch.no_grad()
    def patches(self, features: Tensor) -> Tensor:
        """Joint embeddings of encoder features (B, N, C), not normalised: (B, N, P), float32."""
        vision = self.clip.vision_model
        weight = self.clip.visual_projection.weight
        hidden = vision.post_layernorm(features.to(weight.device, weight.dtype))
        joint: Tensor = self.clip.visual_projection(hidden).float()
        return joint

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """Joint embeddings of texts, not normalised: (B, P), float32; each text is cut at the tower's length."""
        length = self.clip.config.text_config.max_position_embeddings
        device = self.clip.text_projection.weight.device
        rows = []
        for text in texts:  # one by one, so that a text's embedding does not depend on its neighbours' padding
            tokens = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=length).to(device)
            pooled = self.clip.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens.get("attention_mask")
            ).pooler_output
            rows.append(self.clip.text_projection(pooled)[0])
        return torch.stack(rows).float()

    @classmethod
    def load(cls, path: str | Path, decode: Callable[[Sequence[int]], str], *, device: str, dtype: Any) -> JointSpace:
        """Load the pair from a directory or a hub name.

        Raises:
            PrerequisiteError: The directory holds no weights as safetensors.
        """
        from transformers import AutoTokenizer, CLIPModel

        if Path(path).is_dir():
            check_weights(Path(path), _CONVERT)
        clip = CLIPModel.from_pretrained(path, dtype=dtype, use_safetensors=True).to(device).eval()
        return cls(clip, AutoTokenizer.from_pretrained(path), decode)
