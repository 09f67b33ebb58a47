"""The description of a family of vision-language models: paths of its parts, placeholders, image layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from tokenprune.errors import IncompatibleError
from tokenprune.families.encoder_rows import EncoderRows
from tokenprune.families.reasons import OBSERVED_ONLY, VISION_KINDS, no_resize, no_vision
from tokenprune.families.supported import UnknownInternalError
from tokenprune.families.unwrap import uncompiled
from tokenprune.pruner import ModelFacts
from tokenprune.site import SITE_KINDS, Site

#: Types of decoder layers from whose keys single tokens can be removed.
ATTENTION_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True, slots=True)
class Visual:
    """The layout of one image, tile or video in the prompt.

    Args:
        placeholders: Number of placeholders in the prompt.
        grid: Rows and columns of its visual tokens, for a video of one frame; `None` if they form no grid.
        frames: Number of frames, 1 for an image.
        separators: Indices of placeholders that are not visual tokens, such as row ends; they are always kept.
        pixels: Its pixels: name of the processor's tensor, first row and end row in it. `None`: the tensor has one row
            per image of the batch, in order.
    """

    placeholders: int
    grid: tuple[int, int] | None
    frames: int = 1
    separators: tuple[int, ...] = ()
    pixels: tuple[str, int, int] | None = None

    @property
    def tokens(self) -> int:
        """N, the number of visual tokens."""
        return self.placeholders - len(self.separators)

    @property
    def source(self) -> tuple[str, slice]:
        """The processor's tensor with its pixels, and the rows in it.

        Raises:
            IncompatibleError: The layout does not say where its pixels are.
        """
        if self.pixels is None:
            raise IncompatibleError(
                "the layout of this family does not name the pixels of its images",
                hint="describe the family in a plugin (hook `register_families`)",
            )
        name, start, stop = self.pixels
        return name, slice(start, stop)


Layout = Callable[[Any, Mapping[str, Any], tuple[int, ...]], list[Visual]]
"""(model config, processor's tensors, lengths of the runs of placeholders) -> images and videos in prompt order."""


@dataclass(frozen=True)
class VisionTower:
    """A vision side that can be cut: its tensors are (images, patches, C), one patch per visual token, raster order.

    Args:
        tower: Path of the vision tower in the model.
        layers: Path of the encoder layers in the tower.
        projector: Path of the projector in the model.
        read_layer: Returns the encoder layer (0-based) whose output the projector reads, from the config.
        has_cls: Returns whether row 0 of the encoder is a CLS row, from the config.
        patch_size: Returns the pixels per token side, from the config.
        resize: Keyword arguments with which the tower's forward runs on a smaller image; `None` if it cannot.
        attention: Name of the attention module in an encoder layer.
        mlp: Name of the MLP in an encoder layer.
    """

    tower: str
    layers: str
    projector: str
    read_layer: Callable[[Any], int]
    has_cls: Callable[[Any], bool]
    patch_size: Callable[[Any], int]
    resize: Mapping[str, Any] | None = None
    attention: str = "self_attn"
    mlp: str = "mlp"


RowsOf = Callable[[Any, Mapping[str, Any], Sequence[Visual]], EncoderRows]
"""(model config, processor's tensors, images and videos in prompt order) -> the encoder rows of their tokens."""


def _no_cls(config: Any) -> int | None:
    del config
    return None


@dataclass(frozen=True)
class ObservedEncoder:
    """A vision side that can be observed but not cut, because it merges, pools or packs patches.

    Args:
        layers: Paths of the lists of encoder layers in the model, one per tower, in running order.
        rows: Returns which encoder rows make each visual token.
        read_layer: Returns the encoder layer (0-based) whose output makes the tokens, from the config.
        attention_layer: Returns the default layer of attention views, from the config; `None` means `read_layer`.
        cls_row: Returns the row of each image's CLS token, 0 or -1, or `None`, from the config.
        norms: Paths of the final norms after the last layer, one per tower; empty if there are none.
    """

    layers: tuple[str, ...]
    rows: RowsOf
    read_layer: Callable[[Any], int]
    attention_layer: Callable[[Any], int] | None = None
    cls_row: Callable[[Any], int | None] = _no_cls
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """The description of one family; paths are dotted attribute paths in the model.

    Args:
        name: Family name.
        layout: Returns the images and videos of a batch, with their grids.
        placeholders: Config attributes that hold the ids of the placeholders (images, videos).
        pixels: Names of the processor's tensors of images and videos.
        vision: The vision side, if it can be observed and cut.
        observed_encoder: The vision side, if it can be observed but not cut. A cut between encoder and projector is
            then made at the LLM input, with the same decision.
        blind: Why the encoder cannot be observed, if neither of the two is given.
        base: Path of the multimodal model whose forward receives `input_ids`; empty for the model itself.
        text: Path of the text model (embeddings in, hidden states out).
        layers: Path of the decoder layers in the text model.
        final_norm: Path of the final norm in the text model.
        rotary: Path of the rotary embedding in the text model.
        attention: Name of the attention module in a decoder layer.
        mlp: Name of the MLP in a decoder layer.
        video: Whether prompts may hold videos.
        refused: Kinds of sites at which the family cannot be cut, with the reasons.
        plain_prompts: Whether its checkpoints have no chat template, so that a prompt is the placeholders of its
            images followed by the question.
    """

    name: str
    layout: Layout
    placeholders: tuple[str, ...] = ("image_token_id",)
    pixels: tuple[str, ...] = ("pixel_values",)
    vision: VisionTower | None = None
    observed_encoder: ObservedEncoder | None = None
    blind: str = ""
    base: str = "model"
    text: str = "model.language_model"
    layers: str = "layers"
    final_norm: str = "norm"
    rotary: str = "rotary_emb"
    attention: str = "self_attn"
    mlp: str = "mlp"
    video: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    plain_prompts: bool = False

    def made_at(self, site: Site) -> Site:
        """The site at which a planned cut is really made: the LLM input instead of an encoder that cannot be cut."""
        return (
            Site("input")
            if site.kind == "encoder" and self.vision is None and self.observed_encoder is not None
            else site
        )

    def refusal(self, kind: str) -> str | None:
        """Why the family cannot be cut at sites of a kind; `None` if it can."""
        if kind in self.refused:
            return self.refused[kind]
        if kind == "encoder" and self.vision is None:
            return OBSERVED_ONLY if self.observed_encoder is not None else self.blind or no_vision(self.name)
        if kind in VISION_KINDS and self.vision is None:
            return no_vision(self.name)
        if kind == "pixels" and self.vision is not None and self.vision.resize is None:
            return no_resize(self.name)
        return None


@dataclass(frozen=True)
class TowerParts:
    """The modules of a vision side that can be cut."""

    about: VisionTower
    tower: nn.Module
    layers: tuple[nn.Module, ...]
    projector: nn.Module


@dataclass(frozen=True)
class ObservedEncoderParts:
    """The modules of a vision side that can be observed but not cut.

    Args:
        about: Its description.
        towers: By tower, its encoder layers.
        read: By tower, the module whose output makes the tokens.
    """

    about: ObservedEncoder
    towers: tuple[tuple[nn.Module, ...], ...]
    read: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Parts:
    """The modules of one model, found by the paths of its family."""

    family: Family
    model: nn.Module
    base: nn.Module
    text: nn.Module
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module
    rotary: nn.Module
    vision: TowerParts | None
    observed_encoder: ObservedEncoderParts | None
    placeholder_ids: tuple[int, ...]
    layer_types: tuple[str, ...]
    kv_sources: tuple[int, ...]
    """By decoder layer, the layer whose keys and values it reads: itself, unless layers share a cache."""
    facts: ModelFacts

    def refusal(self, kind: str) -> str | None:
        """Why the model cannot be cut at sites of a kind; `None` if it can."""
        return self.family.refusal(kind)

    def is_placeholder(self, input_ids: Tensor) -> Tensor:
        """True for token ids (B, S) that are placeholders of an image or video."""
        found = input_ids == self.placeholder_ids[0]
        for token in self.placeholder_ids[1:]:
            found = found | (input_ids == token)
        return found

    def visuals(self, inputs: Mapping[str, Any]) -> list[Visual]:
        """Images and videos of a batch, in prompt order, sample by sample.

        Raises:
            IncompatibleError: The placeholders and the processor's tensors do not add up.
        """
        runs = placeholder_runs(self.is_placeholder(inputs["input_ids"]))
        found = self.family.layout(self.model.config, inputs, runs)
        if sum(visual.placeholders for visual in found) != sum(runs):
            raise IncompatibleError(
                f"the batch has {sum(runs)} image placeholders, but its images make "
                f"{sum(visual.placeholders for visual in found)} visual tokens",
                hint="make the inputs with the checkpoint's own processor",
            )
        return found


def placeholder_runs(mask: Tensor) -> tuple[int, ...]:
    """Lengths of the runs of True in (B, S), row by row."""
    lengths = []
    for row in mask.tolist():
        length = 0
        for is_placeholder in [*row, False]:
            if is_placeholder:
                length += 1
            elif length:
                lengths.append(length)
                length = 0
    return tuple(lengths)


def layout_by_runs(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """The layout without a description: every run of placeholders is one image with an unknown grid."""
    del config, inputs
    return [Visual(length, None) for length in runs]


def resolve(model: nn.Module, family: Family) -> Parts:
    """Follow the family's paths in a model.

    Raises:
        IncompatibleError: A path does not exist, or models of this family or with these layers cannot be pruned.
    """
    reasons = {family.refusal(kind) for kind in SITE_KINDS}
    if None not in reasons:
        raise IncompatibleError(
            f"family `{family.name}` cannot be pruned: {'; '.join(sorted(filter(None, reasons)))}",
            hint="`tokenprune families` lists what can be cut in which family",
        )

    def follow(root: nn.Module, path: str) -> Any:
        if not path:
            return root
        try:
            found = attrgetter(path)(root)
            return uncompiled(found) if isinstance(found, nn.Module) else found
        except AttributeError:
            raise UnknownInternalError(
                f"`{type(model).__name__}` has no `{path}`, which the family `{family.name}` needs",
                otherwise="describe the family in a plugin (hook `register_families`)",
            ) from None

    text = follow(model, family.text)
    layers = tuple(map(uncompiled, follow(text, family.layers)))
    types = tuple(getattr(text.config, "layer_types", None) or ("full_attention",) * len(layers))
    other = sorted(set(types) - ATTENTION_TYPES)
    if other:
        raise IncompatibleError(
            f"`{type(model).__name__}` has decoder layers of the kinds {other}, from which tokens cannot be removed",
            hint=f"choose a model whose decoder layers are of the kinds {sorted(ATTENTION_TYPES)}",
        )
    about = family.vision
    vision = None
    if about is not None:
        tower = follow(model, about.tower)
        vision = TowerParts(
            about, tower, tuple(map(uncompiled, follow(tower, about.layers))), follow(model, about.projector)
        )
    config: Any = model.config
    observed = None
    if vision is None and family.observed_encoder is not None:
        towers = tuple(tuple(map(uncompiled, follow(model, path))) for path in family.observed_encoder.layers)
        last = family.observed_encoder.read_layer(config)
        normed = bool(family.observed_encoder.norms) and last == len(towers[0]) - 1
        read = (
            tuple(follow(model, path) for path in family.observed_encoder.norms)
            if normed
            else tuple(layers[last] for layers in towers)
        )
        observed = ObservedEncoderParts(family.observed_encoder, towers, read)
    ids = tuple(int(token) for name in family.placeholders if (token := getattr(config, name, None)) is not None)
    if not ids:
        raise IncompatibleError(
            f"the config of `{type(model).__name__}` has none of the placeholder ids {list(family.placeholders)}",
            hint="describe the family in a plugin (hook `register_families`)",
        )
    return Parts(
        family=family,
        model=model,
        base=follow(model, family.base),
        text=text,
        layers=layers,
        final_norm=follow(text, family.final_norm),
        rotary=follow(text, family.rotary),
        vision=vision,
        observed_encoder=observed,
        placeholder_ids=ids,
        layer_types=types,
        kv_sources=_kv_sources(text.config, types),
        facts=_facts(config, family.name, len(layers), vision, observed),
    )


def _facts(
    config: Any, name: str, layers: int, vision: TowerParts | None, observed_encoder: ObservedEncoderParts | None
) -> ModelFacts:
    if vision is not None:
        about = vision.about
        return ModelFacts(name, layers, len(vision.layers), about.has_cls(config), about.read_layer(config))
    if observed_encoder is None:
        return ModelFacts(name, layers, 0, False, 0)
    default = observed_encoder.about.attention_layer or observed_encoder.about.read_layer
    return ModelFacts(
        name,
        layers,
        len(observed_encoder.towers[0]),
        observed_encoder.about.cls_row(config) is not None,
        default(config),
    )


def _kv_sources(config: Any, types: tuple[str, ...]) -> tuple[int, ...]:
    """By layer, the layer whose cache it reads: shared layers read the last unshared layer of their own type."""
    first = len(types) - int(getattr(config, "num_kv_shared_layers", 0) or 0)
    last = {kind: layer for layer, kind in enumerate(types[:first])}
    return tuple(layer if layer < first else last[kind] for layer, kind in enumerate(types))
