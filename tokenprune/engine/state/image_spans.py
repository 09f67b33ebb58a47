"""Find the visual tokens of a batch, and the image to which each belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Visual


@dataclass(frozen=True)
class ImageSpan:
    """One image of the batch, or several that are the frames of one video.

    Args:
        sample: Index of the sample in the batch.
        image: Number of the (first) image within its sample.
        index: Number of the (first) image in the batch, in the order of the vision tower's outputs.
        slots: (N,) slots in the padded prompt, frame by frame.
        grid: Rows and columns of one frame, `None` if the tokens make no grid.
        frames: F, 1 for an image.
        pixels: Name of the processor's tensor with the pixels, and the first and the end row in it.
    """

    sample: int
    image: int
    index: int
    slots: Tensor
    grid: tuple[int, int] | None
    frames: int = 1
    pixels: tuple[str, int, int] | None = None


def join_frames(spans: Sequence[ImageSpan]) -> ImageSpan:
    """Join consecutive images of one sample into one video, each image a frame.

    Raises:
        IncompatibleError: Their grids differ.
    """
    first = spans[0]
    if any(span.grid != first.grid for span in spans):
        raise IncompatibleError(
            f"the images of sample {first.sample} have grids {sorted({str(span.grid) for span in spans})}",
            hint="frames of one video have the same size; leave `frames` off for separate images",
        )
    pixels = first.pixels and (first.pixels[0], first.pixels[1], (spans[-1].pixels or first.pixels)[2])
    return replace(first, slots=torch.cat([span.slots for span in spans]), frames=len(spans), pixels=pixels)


def find_images(placeholder: Tensor, visuals: Sequence[Visual]) -> tuple[ImageSpan, ...]:
    """Assign the placeholders of a batch (B, S) to its images and videos, in order.

    An image or tile without visual tokens is left out: its placeholders stay, and nothing is pruned there. This
    happens with extreme sizes such as 3 by 1000 pixels, of which a model may keep only the row ends.

    Raises:
        IncompatibleError: An image spans two samples.
    """
    positions = placeholder.nonzero()
    spans: list[ImageSpan] = []
    seen: dict[int, int] = {}
    parts = torch.split(positions, [visual.placeholders for visual in visuals])
    for index, (places, visual) in enumerate(zip(parts, visuals, strict=True)):
        if visual.tokens == 0:
            continue
        sample = int(places[0, 0])
        if int(places[-1, 0]) != sample:
            raise IncompatibleError(
                f"image {index} spans samples {sample} and {int(places[-1, 0])}",
                hint="make the inputs with the checkpoint's own processor",
            )
        slots = places[:, 1].contiguous()
        if visual.separators:
            kept = torch.ones(len(slots), dtype=torch.bool, device=slots.device)
            kept[list(visual.separators)] = False
            slots = slots[kept]
        spans.append(ImageSpan(sample, seen.get(sample, 0), index, slots, visual.grid, visual.frames, visual.pixels))
        seen[sample] = seen.get(sample, 0) + 1
    return tuple(spans)
