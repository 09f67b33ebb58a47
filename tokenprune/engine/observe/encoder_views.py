"""Attention, keys and features of an observed vision encoder, one value per encoder row.

Queries and keys are projected for all images at once. Packed encoders are probed as if all patches attended to each
other, because projections do not depend on that. The softmax then uses the segments with which the layer really ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.engine.patch.attention_probe import Projections
from tokenprune.engine.state.encoder_run import EncoderLayerCall, EncoderObservation, EncoderRun
from tokenprune.errors import IncompatibleError

#: Largest number of attention probabilities in memory at a time.
_BLOCK = 1 << 24


class EncoderViews:
    """Values by encoder row in one forward pass, computed once and shared by the views of a stop."""

    def __init__(self, observed: EncoderObservation, cls_row: int | None, pruner_name: str) -> None:
        self._observed = observed
        self._cls_row = cls_row
        self._pruner_name = pruner_name
        self._projections: dict[tuple[int, bool], list[Projections]] = {}
        self._values: dict[tuple[str, int], Tensor] = {}

    def features(self) -> Tensor:
        """The rows that make the tokens, (rows, C)."""
        if not self._observed.runs or any(run.features is None for run in self._observed.runs):
            raise self._not_run("encoder features")
        return self._joined([run.features.flatten(0, -2) for run in self._observed.runs if run.features is not None])

    def keys(self, layer: int) -> Tensor:
        """Keys before any rotation, (rows, H, d)."""
        found = self._projected(layer, rotated=False)
        return self._joined([one.keys.transpose(1, 2).flatten(0, 1) for one in found])

    def cls_attention(self, layer: int) -> Tensor:
        """Attention from each image's CLS row to the image's rows, (rows, H)."""
        if self._cls_row is None:
            raise IncompatibleError(
                f"`{self._pruner_name}` needs a CLS token, which this vision encoder does not have",
                hint="choose a pruner that uses received attention (`tokenprune list --json` shows the needs)",
            )
        key = ("cls", layer)
        if key not in self._values:
            parts = []
            for entered, found in self._calls_and_projections(layer):
                for piece in pieces(entered, found):
                    query = piece.queries[:, :, self._cls_row, None]
                    own = None if piece.bias is None else piece.bias[:, :, self._cls_row, None]
                    attention = _attend(query, piece.keys, own, found.scaling)[:, :, 0]
                    parts.append(attention.transpose(1, 2).flatten(0, 1))
            self._values[key] = self._joined(parts)
        return self._values[key]

    def received_attention(self, layer: int) -> Tensor:
        """Mean attention that each row receives from the rows of its image, head mean, (rows,)."""
        key = ("received", layer)
        if key not in self._values:
            runs = zip(self._observed.runs, self._calls_and_projections(layer), strict=True)
            self._values[key] = self._joined([received(run, *both) for run, both in runs])
        return self._values[key]

    def _calls_and_projections(self, layer: int) -> list[tuple[EncoderLayerCall, Projections]]:
        found = self._projected(layer, rotated=True)
        return [(run.layer_calls[layer], one) for run, one in zip(self._observed.runs, found, strict=True)]

    def _projected(self, layer: int, *, rotated: bool) -> list[Projections]:
        if not self._observed.runs or any(layer not in run.layer_calls for run in self._observed.runs):
            raise self._not_run(f"encoder layer {layer}")
        key = (layer, rotated)
        if key not in self._projections:
            self._projections[key] = [
                run.layer_calls[layer].projections(rotated=rotated) for run in self._observed.runs
            ]
        return self._projections[key]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The values of all runs, concatenated.

        Raises:
            IncompatibleError: Their number is not the number of rows that the family description expects.
        """
        values = torch.cat([part.to(parts[0].device) for part in parts])
        expected = None if self._observed.rows is None else self._observed.rows.total
        if len(values) != expected:
            raise IncompatibleError(
                f"the vision encoder ran with {len(values)} rows, but the images make {expected}",
                hint="make the inputs with the checkpoint's own processor",
            )
        return values

    def _not_run(self, what: str) -> IncompatibleError:
        return IncompatibleError(
            f"`{self._pruner_name}` needs {what}, which did not run here",
            hint="pass `pixel_values`, not precomputed encoder outputs",
        )


@dataclass(frozen=True)
class Piece:
    """Segments of one length, whose rows attend to each other.

    Args:
        queries: (n, H, R, d).
        keys: (n, H, R, d).
        rows: (n, R) index of each row in the run.
        bias: (n or 1, 1, R, R) added to the attention logits, or `None`.
    """

    queries: Tensor
    keys: Tensor
    rows: Tensor
    bias: Tensor | None = None


def pieces(entered: EncoderLayerCall, found: Projections) -> Iterator[Piece]:
    """Split the attention of a layer into batches: packed segments of equal length, or everything at once."""
    images, _, length, _ = found.queries.shape
    device = found.queries.device
    if entered.segment_bounds is None:
        rows = torch.arange(images * length, device=device).view(images, length)
        bias = _bias(entered.call.get("attention_mask"))
        yield Piece(found.queries, found.keys, rows, None if bias is None else bias.to(device))
        return
    bounds = entered.segment_bounds.to("cpu", torch.long)
    starts, lengths = bounds[:-1], bounds.diff()
    for width in sorted(set(lengths.tolist())):
        rows = (starts[lengths == width][:, None] + torch.arange(width)).to(device)
        queries, keys = (part[0][:, rows].transpose(0, 1) for part in (found.queries, found.keys))
        yield Piece(queries, keys, rows)


def received(run: EncoderRun, entered: EncoderLayerCall, found: Projections) -> Tensor:
    """Mean attention that each row of a run receives, (rows,), over all rows of its image, masked ones included."""
    device = found.queries.device
    total = torch.zeros(entered.rows, device=device)
    images = run.image_bounds()
    count = None if images is None else images.diff().repeat_interleave(images.diff()).to(device)
    for piece in pieces(entered, found):
        real = torch.ones(piece.rows.shape, device=device)
        if piece.bias is not None:
            seen = piece.bias[:, 0] > torch.finfo(torch.float32).min / 2
            real = seen.any(dim=1).expand_as(real).float()
            count = (seen * real[:, :, None]).sum(dim=1).flatten().clamp(min=1)
        batch, heads, length, _ = piece.queries.shape
        step = max(1, _BLOCK // (batch * heads * length))
        sums = torch.zeros(piece.rows.shape, device=device)
        for start in range(0, length, step):
            block = slice(start, start + step)
            bias = None if piece.bias is None else piece.bias[:, :, block]
            attention = _attend(piece.queries[:, :, block], piece.keys, bias, found.scaling)
            sums += torch.einsum("nhqk,nq->nk", attention, real[:, block])
        total[piece.rows.flatten()] = sums.flatten() / heads
    return total / (entered.hidden.shape[-2] if count is None else count)


def _attend(queries: Tensor, keys: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Attention probabilities (n, H, R', R), float32."""
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    logits = (queries.float() * scaling) @ keys.float().transpose(-1, -2)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def _bias(mask: Tensor | None) -> Tensor | None:
    """A layer's attention mask, over keys or over pairs, as a finite float32 bias on the logits."""
    if mask is None:
        return None
    least = torch.finfo(torch.float32).min
    if mask.ndim == 2:
        mask = mask[:, None, None, :].bool()
    mask = mask.expand(-1, -1, mask.shape[-1], -1)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, least)
    lowest = torch.finfo(mask.dtype).min / 2  # the lowest number of half precision is not the lowest of float32
    return mask.float().masked_fill(mask < lowest, least)
