"""Which rows of a batch are visual tokens, and of which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.errors import IncompatibleError


@dataclass(frozen=True)
class ImageSpan:
    """One image of the batch, or several that are the frames of one video.

    Args:
        sample: Row of the batch.
        image: Ordinal of the (first) image within its sample.
        index: Ordinal of the (first) image in the batch, the order of the vision tower's outputs.
        slots: (N,) positions in the padded sequence, frame by frame.
        grid: Rows and columns of one frame.
        frames: F, 1 for an image.
    """

    sample: int
    image: int
    index: int
    slots: Tensor
    grid: tuple[int, int]
    frames: int = 1


def join_frames(spans: Sequence[ImageSpan]) -> ImageSpan:
    """Consecutive images of one sample, in order, as the frames of one video.

    Raises:
        IncompatibleError: Their grids differ.
    """
    first = spans[0]
    if any(span.grid != first.grid for span in spans):
        raise IncompatibleError(
            f"the images of sample {first.sample} have grids {sorted({span.grid for span in spans})}",
            hint="frames of one video have the same size; leave `frames` off for separate images",
        )
    return replace(first, slots=torch.cat([span.slots for span in spans]), frames=len(spans))


def find_images(input_ids: Tensor, image_token_id: int, grids: Sequence[tuple[int, int]]) -> tuple[ImageSpan, ...]:
    """Assign the image placeholders of a batch (B, S) to its images, in order.

    Raises:
        IncompatibleError: The placeholders and the grids do not add up, or an image spans two samples.
    """
    places = (input_ids == image_token_id).nonzero()
    sizes = [rows * columns for rows, columns in grids]
    if sum(sizes) != len(places):
        raise IncompatibleError(
            f"the batch has {len(places)} image placeholders, but its images make {sum(sizes)} visual tokens",
            hint="make the inputs with the checkpoint's own processor",
        )
    spans: list[ImageSpan] = []
    seen: dict[int, int] = {}
    for index, (part, grid) in enumerate(zip(torch.split(places, sizes), grids, strict=True)):
        sample = int(part[0, 0])
        if int(part[-1, 0]) != sample:
            raise IncompatibleError(
                f"image {index} spans samples {sample} and {int(part[-1, 0])}",
                hint="make the inputs with the checkpoint's own processor",
            )
        spans.append(ImageSpan(sample, seen.get(sample, 0), index, part[:, 1].contiguous(), grid))
        seen[sample] = seen.get(sample, 0) + 1
    return tuple(spans)
