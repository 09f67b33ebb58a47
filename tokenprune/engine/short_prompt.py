"""Run the stock model on a prompt with fewer visual tokens: the lower bound of the time that a pruner needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.engine.decoder.layer_arguments import shorten_arguments
from tokenprune.engine.state.prefill import open_prefill
from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Parts


@dataclass(frozen=True)
class _ShortPrompt:
    """The slots of a prompt that stay.

    Args:
        length: Slots of the whole prompt, S.
        slots: (S',) the slots that stay.
        placeholders: (P',) indices, among all placeholders of the prompt, of those that stay.
    """

    length: int
    slots: Tensor
    placeholders: Tensor

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the text model for the shorter prompt."""
        width = len(self.slots)
        made = shorten_arguments(given, self.length, self.slots[None])
        if given.get("attention_mask") is not None:
            made["attention_mask"] = self._mask(given["attention_mask"])
        if given.get("position_ids") is not None:
            made["position_ids"] = given["position_ids"][
                ..., :width
            ]  # positions of a prompt of that length, without gaps
        if given.get("visual_pos_masks") is not None:  # DeepStack features
            made["visual_pos_masks"] = given["visual_pos_masks"][:, self.slots]
            made["deepstack_visual_embeds"] = [plane[self.placeholders] for plane in given["deepstack_visual_embeds"]]
        return made

    def _mask(self, mask: Any) -> Any:
        if isinstance(mask, dict):
            return {kind: self._mask(each) for kind, each in mask.items()}
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise IncompatibleError(
                f"a mask of the kind `{type(mask).__name__}` cannot be shortened",
                hint="load the model with attention `sdpa` or `eager`",
            )
        if mask.ndim == 2:
            return mask[:, self.slots]
        return mask[..., self.slots, :][..., self.slots]


@contextlib.contextmanager
def shorter_prompt(parts: Parts, inputs: Mapping[str, Any], tokens: int) -> Iterator[None]:
    """Inside the block, the stock model's decoder receives only `tokens` visual tokens of one prompt.

    The vision side runs whole. At the input of the text model, evenly spaced visual tokens are kept. From there on the
    stock model runs on the shorter prompt, in the prefill and in decoding, with its own masks and kernels and with
    positions without gaps. This is for timing only: the answers mean nothing.

    Args:
        parts: The model; not inside `pruned`.
        inputs: The processor's tensors of one prompt with images.
        tokens: K, 0 to all of its visual tokens.

    Raises:
        IncompatibleError: There are several prompts, none with images, or fewer visual tokens than K.
    """
    found = open_prefill(parts, inputs)
    if found is None:
        raise IncompatibleError("the prompt holds no images", hint="give a prompt made by the processor")
    input_ids, valid, spans = found
    if len(input_ids) != 1 or not bool(valid.all()):
        raise IncompatibleError("only one prompt at a time, without padding, can be shortened", hint="give one sample")
    visual = torch.cat([span.slots for span in spans]).sort().values
    if not 0 <= tokens <= len(visual):
        raise IncompatibleError(f"{tokens} of {len(visual)} visual tokens cannot be kept", hint="keep at most all")
    if tokens == len(visual):
        yield  # the stock model as it is
        return
    stays = torch.ones_like(input_ids[0], dtype=torch.bool)
    stays[visual] = False
    stays[visual[torch.arange(tokens, device=visual.device) * len(visual) // max(tokens, 1)]] = True
    placeholder = parts.is_placeholder(input_ids)[0]
    numbers = placeholder.cumsum(0) - 1
    short = _ShortPrompt(input_ids.shape[1], stays.nonzero()[:, 0], numbers[stays & placeholder])

    gap: list[Tensor] = []  # by how much later positions are lower than those of the whole prompt

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        embeddings, positions = kwargs.get("inputs_embeds"), kwargs.get("position_ids")
        if embeddings is None:
            return None
        if embeddings.shape[1] == short.length:
            if positions is not None:
                gap[:] = [positions[..., -1:] - positions[..., len(short.slots) - 1, None]]
            return args, short.arguments(kwargs)
        # a decoding step: the cache is short already; the mask may be longer, because it hides nothing
        return (args, {**kwargs, "position_ids": positions - gap[0]}) if gap and positions is not None else None

    handle = parts.text.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
