"""What the engine must know about a family of vision-language models: paths, token ids, geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from tokenprune.errors import IncompatibleError
from tokenprune.pruner import ModelFacts


@dataclass(frozen=True)
class Family:
    """Description of one family; paths are dotted attribute paths from the model.

    Args:
        name: Family name.
        base: The multimodal model whose forward receives `input_ids`; empty for the model itself.
        text: The text model (embeddings in, hidden states out).
        layers: Decoder layers, below `text`.
        final_norm: Final norm, below `text`.
        rotary: Rotary embedding, below `text`.
        tower: Vision tower.
        tower_layers: Its encoder layers, below `tower`.
        projector: The connector between tower and text model.
        image_token: Config attribute that holds the id of the image placeholder.
        read_layer: Encoder layer (0-based) whose output the projector reads, from the config.
        grids: Token grid (rows, columns) of every image of a batch, from the config and the processor's tensors.
        has_cls: Whether the encoder has a CLS row in front, from the config.
        resize: How to run the tower on a smaller image: extra keyword arguments for its forward; `None` where it
            cannot.
        patch_size: Pixels per token side, from the config.
        attention: Attention module of a decoder layer, below it.
        mlp: MLP of a decoder layer, below it.
        tower_attention: Attention module of an encoder layer.
        tower_mlp: MLP of an encoder layer.
    """

    name: str
    base: str
    text: str
    layers: str
    final_norm: str
    rotary: str
    tower: str
    tower_layers: str
    projector: str
    image_token: str
    read_layer: Callable[[Any], int]
    grids: Callable[[Any, Mapping[str, Any], int], list[tuple[int, int]]]
    has_cls: Callable[[Any], bool]
    patch_size: Callable[[Any], int]
    resize: Mapping[str, Any] | None = None
    attention: str = "self_attn"
    mlp: str = "mlp"
    tower_attention: str = "self_attn"
    tower_mlp: str = "mlp"


@dataclass(frozen=True)
class Parts:
    """The parts of one loaded model that a family's paths lead to."""

    family: Family
    model: nn.Module
    base: nn.Module
    text: nn.Module
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module
    rotary: nn.Module
    tower: nn.Module
    tower_layers: tuple[nn.Module, ...]
    projector: nn.Module
    image_token_id: int
    facts: ModelFacts

    def grids(self, inputs: Mapping[str, Any], tokens: int) -> list[tuple[int, int]]:
        """Token grid (rows, columns) of every image; `tokens` image placeholders are in the batch."""
        return self.family.grids(self.model.config, inputs, tokens)


def resolve(model: nn.Module, family: Family) -> Parts:
    """Follow the family's paths in a model.

    Raises:
        IncompatibleError: A path does not exist, or the decoder has layers that cannot be pruned.
    """

    def follow(root: nn.Module, path: str) -> Any:
        if not path:
            return root
        try:
            return attrgetter(path)(root)
        except AttributeError:
            raise IncompatibleError(
                f"`{type(model).__name__}` has no `{path}`, which the family `{family.name}` needs",
                hint="check the transformers version, or describe the family in a plugin (hook `register_families`)",
            ) from None

    text = follow(model, family.text)
    tower = follow(model, family.tower)
    layers = tuple(follow(text, family.layers))
    kinds = set(getattr(text.config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise IncompatibleError(
            f"`{type(model).__name__}` mixes decoder layers {sorted(kinds)}; only full attention can be pruned so far",
            hint="choose a model whose decoder layers all use full attention",
        )
    tower_layers = tuple(follow(tower, family.tower_layers))
    facts = ModelFacts(
        family=family.name,
        num_layers=len(layers),
        encoder_layers=len(tower_layers),
        has_cls=family.has_cls(model.config),
        encoder_read_layer=family.read_layer(model.config),
    )
    return Parts(
        family=family,
        model=model,
        base=follow(model, family.base),
        text=text,
        layers=layers,
        final_norm=follow(text, family.final_norm),
        rotary=follow(text, family.rotary),
        tower=tower,
        tower_layers=tower_layers,
        projector=follow(model, family.projector),
        image_token_id=int(getattr(model.config, family.image_token)),
        facts=facts,
    )
