"""Functions that the layouts of several families share: equal grids, prompt order, config look-ups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.encoder_rows import EncoderRows, Tile, equal_tiles
from tokenprune.families.family import RowsOf, Visual
from tokenprune.families.supported import UnknownInternalError

#: The tiles or grids into which a model splits one image or video of the prompt.
Group = Sequence[Visual]

HINT = "make the inputs with the checkpoint's own processor"


def encoder_depth(config: Any) -> int:
    """Number of layers of the vision encoder.

    Raises:
        IncompatibleError: The config has no attribute of a known name for it.
    """
    vision = config.vision_config
    for name in ("num_hidden_layers", "depth"):  # some configs have only the one, some only the other
        if getattr(vision, name, None) is not None:
            return int(getattr(vision, name))
    raise UnknownInternalError(f"`{type(vision).__name__}` has neither `num_hidden_layers` nor `depth`")


def last_layer(config: Any) -> int:
    """Index (0-based) of the last encoder layer, for families whose projector reads it."""
    return encoder_depth(config) - 1


def named_layer(config: Any) -> int:
    """Index (0-based) of the encoder layer that `vision_feature_layer` names; the last of several."""
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    # hidden_states[0] are the embeddings, so hidden_states[i] is the output of layer i - 1
    count = encoder_depth(config) + 1
    return int(max(layer % count for layer in layers)) - 1


def tile_rows(pool: Callable[[Any], int], cls_row: int | None = None) -> RowsOf:
    """Encoder rows of consecutive square tiles, each pooled to a square of tokens.

    Args:
        pool: Returns the patches along one side of a token, from the config.
        cls_row: Row of the CLS token, 0 or -1, or `None`.
    """

    def rows(config: Any, inputs: Mapping[str, Any], visuals: Sequence[Visual]) -> EncoderRows:
        del inputs
        if not visuals:
            return EncoderRows((), 0)
        side = patches_per_side(config)
        return equal_tiles(len(visuals), Tile(side, cls_row), pool(config), math.isqrt(visuals[0].tokens))

    return rows


def side_of(size: Any) -> int:
    """The side of a square that a config gives as a number or as height and width.

    Raises:
        IncompatibleError: Height and width differ.
    """
    sides = {int(size)} if isinstance(size, int) else {int(side) for side in size}
    if len(sides) > 1:
        raise IncompatibleError(
            f"the vision encoder takes images of {tuple(size)}, but only squares are supported",
            hint="describe the family in a plugin (hook `register_families`)",
        )
    return sides.pop()


def patches_per_side(config: Any) -> int:
    """Patches of the encoder along one side of its square image."""
    vision = config.vision_config
    return side_of(vision.image_size) // side_of(vision.patch_size)


def equal_grids(runs: Sequence[int], rows: int, columns: int) -> list[Visual]:
    """Images, tiles or frames as grids of the same size.

    Raises:
        IncompatibleError: The number of placeholders is not a multiple of the grid's size.
    """
    if sum(runs) % (rows * columns):
        raise IncompatibleError(f"{sum(runs)} image placeholders are not a multiple of {rows} x {columns}", hint=HINT)
    return [Visual(rows * columns, (rows, columns))] * (sum(runs) // (rows * columns))


def tensor(inputs: Mapping[str, Any], name: str) -> Any:
    """One of the processor's tensors.

    Raises:
        IncompatibleError: The inputs do not hold it.
    """
    found = inputs.get(name)
    if found is None:
        raise IncompatibleError(f"the inputs hold image placeholders, but no `{name}`", hint=HINT)
    return found


def in_prompt_order(
    config: Any, inputs: Mapping[str, Any], images: Sequence[Group], videos: Sequence[Group] = ()
) -> list[Visual]:
    """Merge images and videos, which processors keep in separate tensors, in the order of their placeholders.

    Args:
        config: The model's config, with the ids of both placeholders.
        inputs: The processor's tensors.
        images: Images in the order of the batch.
        videos: Videos in the order of the batch.

    Raises:
        IncompatibleError: The number of placeholders does not fit the images and videos.
    """
    waiting: dict[int, Iterator[tuple[int, Group]]] = {int(config.image_token_id): iter(enumerate(images))}
    names = {int(config.image_token_id): "image"}
    video = getattr(config, "video_token_id", None)
    if video is not None:
        waiting[int(video)] = iter(enumerate(videos))
        names[int(video)] = "video"
    found: list[Visual] = []
    flat = [token for row in inputs["input_ids"].tolist() for token in row if token in waiting]
    position = 0
    while position < len(flat):
        token = flat[position]
        following = next(waiting[token], None)
        if following is None:
            left = flat[position:].count(token)
            raise IncompatibleError(f"{left} {names[token]} placeholders belong to no {names[token]}", hint=HINT)
        number, group = following
        count = sum(visual.placeholders for visual in group)
        if flat[position : position + count] != [token] * count:
            raise IncompatibleError(
                f"{names[token]} {number} stands for {count} placeholders, but they end after {_run(flat, position)}",
                hint=HINT,
            )
        found += group
        position += count
    for token, rest in waiting.items():
        if next(rest, None) is not None:
            raise IncompatibleError(f"there are more {names[token]}s than placeholders for them", hint=HINT)
    return found


def _run(flat: Sequence[int], position: int) -> int:
    end = position
    while end < len(flat) and flat[end] == flat[position]:
        end += 1
    return end - position
