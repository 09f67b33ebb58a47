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
    """A CLIP model with the same vision tower as the vision-language model: its text tower and both projections.

    Args:
        clip: The `CLIPModel`.
        tokenizer: The CLIP tokenizer.
        decode: Converts token ids of the vision-language model to text.
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
        """Joint embeddings of texts, not normalised: (B, P), float32; texts are truncated to the tower's length."""
        length = self.clip.config.text_config.max_position_embeddings
        device = self.clip.text_projection.weight.device
        rows = []
        for text in texts:  # one by one: in a batch, a text's embedding would depend on the padding
            tokens = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=length).to(device)
            pooled = self.clip.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens.get("attention_mask")
            ).pooler_output
            rows.append(self.clip.text_projection(pooled)[0])
        return torch.stack(rows).float()

    @classmethod
    def load(cls, path: str | Path, decode: Callable[[Sequence[int]], str], *, device: str, dtype: Any) -> JointSpace:
        """Load a CLIP model from a directory or a hub name.

        Raises:
            PrerequisiteError: The directory has no weights as safetensors.
        """
        from transformers import AutoTokenizer, CLIPModel

        if Path(path).is_dir():
            check_weights(Path(path), _CONVERT)
        clip = CLIPModel.from_pretrained(path, dtype=dtype, use_safetensors=True).to(device).eval()
        return cls(clip, AutoTokenizer.from_pretrained(path), decode)
