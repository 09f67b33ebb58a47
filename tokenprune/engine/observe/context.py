"""Projections and attention of the whole batch at one stop, computed once for all of its views."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.checkpoints.joint import JointSpace
from tokenprune.dual.tiling import tiles
from tokenprune.engine.observe.encoder_views import EncoderViews
from tokenprune.engine.patch.attention_probe import Projections, project, without_rotation
from tokenprune.engine.state.prefill import EncoderInput, LayerSnapshot, Prefill
from tokenprune.errors import IncompatibleError, UndeclaredNeedError
from tokenprune.families.family import TowerParts
from tokenprune.pruner import Pruner, Site


def check_declared(name: str, needs: Collection[str], need: str) -> None:
    """Make sure that a pruner has declared a need that it uses.

    Raises:
        UndeclaredNeedError: It has not.
    """
    if need not in needs:
        raise UndeclaredNeedError(
            f"pruner `{name}` uses `{need}`, which its spec does not declare",
            hint=f"add {need!r} to `needs` in its `@pruner(...)`",
        )


def known_grid(name: str, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The token grid that a pruner asks for.

    Raises:
        IncompatibleError: The grid is not known.
    """
    if grid is None:
        raise IncompatibleError(
            f"`{name}` needs the token grid, which is not known for this image",
            hint="describe the family in a plugin (hook `register_families`), or choose a pruner without the need "
            "`geometry`",
        )
    return grid


class SiteContext:
    """The tensors of one stop in one forward pass, for the whole batch, shared by its views."""

    def __init__(self, prefill: Prefill, site: Site, pruner: Pruner, joint: JointSpace | None) -> None:
        self.prefill = prefill
        self.site = site
        self.spec = pruner.spec
        self.needs = pruner.needs
        self.joint = joint
        self._projections: dict[tuple[int, bool], Projections] = {}
        self._encoder: dict[int, Projections] = {}
        self._cls: dict[int, Tensor] = {}
        self._received: dict[int, Tensor] = {}
        observed = prefill.parts.observed_encoder
        self.encoder_views: EncoderViews | None = None
        """Values by encoder row, in families whose encoder can be observed but not cut."""
        if observed is not None:
            cls_row = observed.about.cls_row(prefill.parts.model.config)
            self.encoder_views = EncoderViews(prefill.vision.observed, cls_row, self.spec.name)

    def layer(self, layer: int | None) -> tuple[int, LayerSnapshot]:
        """The input of a decoder layer; `None` means the layer at which the stop cuts."""
        index = self.site.decoder_layer if layer is None else layer
        if index not in self.prefill.layers:
            available = sorted(self.prefill.layers)
            raise IncompatibleError(
                f"`{self.spec.name}` asks for decoder layer {index} at site `{self.site}`; available: {available}",
                hint="only layers up to the cut have run; at `pixels` and `encoder` none has",
            )
        return index, self.prefill.layers[index]

    def projections(self, layer: int | None, *, rope: bool) -> tuple[Projections, LayerSnapshot]:
        """Projections of the whole batch at a decoder layer."""
        index, snapshot = self.layer(layer)
        key = (index, rope)
        if key not in self._projections:
            embeddings = snapshot.position_embeddings if rope else without_rotation(snapshot.position_embeddings)
            given = {**snapshot.call, "position_embeddings": embeddings}
            found = self._project("decoder", index, rope, snapshot.hidden, given)
            source = self.prefill.parts.kv_sources[index]
            self._projections[key] = found if source == index else self._with_keys_of(source, found, snapshot, rope)
        return self._projections[key], snapshot

    def _with_keys_of(self, source: int, found: Projections, snapshot: LayerSnapshot, rope: bool) -> Projections:
        """Projections of a layer that reads the keys and values of an earlier one: those of the rows still there."""
        theirs, ran = self.projections(source, rope=rope)
        row = ran.rows.inverse.gather(1, snapshot.rows.slots.clamp(min=0)).clamp(min=0)

        def present(heads: Tensor) -> Tensor:
            index = row.to(heads.device)[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3])
            return heads.gather(2, index)

        return replace(found, keys=present(theirs.keys), values=present(theirs.values))

    def tower(self) -> TowerParts:
        """The parts of the vision side.

        Raises:
            IncompatibleError: The family does not describe them.
        """
        if self.prefill.parts.vision is None:
            family = self.prefill.parts.family
            reason = family.blind or f"family `{family.name}` does not describe it"
            raise IncompatibleError(
                f"`{self.spec.name}` looks into the vision encoder: {reason}",
                hint="choose a pruner without the needs `encoder`, `encoder_attention` and `joint`",
            )
        return self.prefill.parts.vision

    def encoder_layer(self, layer: int | None) -> int:
        """An encoder layer, negative from the end; `None` is the site's own, or the one that the projector reads."""
        facts = self.prefill.parts.facts
        if self.encoder_views is None:
            self.tower()
        if layer is not None:
            return layer % facts.encoder_layers
        return self.site.layer if self.site.kind == "tower" else facts.encoder_read_layer

    def encoder(self, layer: int | None) -> tuple[int, Projections, EncoderInput]:
        """Projections of all images at an encoder layer, and the layer's input rows."""
        index = self.encoder_layer(layer)
        if index not in self.prefill.vision.encoder_inputs:
            raise IncompatibleError(
                f"`{self.spec.name}` needs encoder layer {index}, which did not run here",
                hint="inside the encoder only the layers up to the cut have run; elsewhere pass `pixel_values`, not "
                "precomputed encoder outputs",
            )
        rows = self.prefill.vision.encoder_inputs[index]
        if index not in self._encoder:
            self._encoder[index] = self._project("encoder", index, True, rows.hidden, {})
        return index, self._encoder[index], rows

    def _project(self, part: str, index: int, rope: bool, hidden: Tensor, given: Mapping[str, Any]) -> Projections:
        """Projections of a layer, from the memo if another session has computed them from the same states."""
        layers = self.prefill.parts.layers if part == "decoder" else self.tower().layers
        compute = functools.partial(project, layers[index])
        if self.prefill.memo is None:
            return compute(hidden, **given)
        return self.prefill.memo.value((part, index, rope), compute, hidden, **given)

    def cls_attention(self, layer: int | None) -> tuple[Tensor, EncoderInput]:
        """Attention from the CLS row to all rows, (images, H, R)."""
        if not self.prefill.parts.facts.has_cls:
            raise IncompatibleError(
                f"`{self.spec.name}` needs a CLS token, which this vision encoder does not have",
                hint="choose a pruner that uses received attention (`tokenprune list --json` shows the needs)",
            )
        index, found, rows = self.encoder(layer)
        if index not in self._cls:
            self._cls[index] = _attend(found, rows, slice(None), slice(0, 1))[:, :, 0]
        return self._cls[index], rows

    def received_attention(self, layer: int | None) -> tuple[Tensor, EncoderInput]:
        """Mean attention that each row receives from all encoder rows, head mean, (images, R)."""
        index, found, rows = self.encoder(layer)
        if index not in self._received:
            real = torch.ones(found.queries.shape[::2], device=found.queries.device)
            if rows.valid is not None:
                real = rows.valid.to(real.device).float()
            total = torch.zeros_like(real)
            for head in range(found.queries.shape[1]):  # one head and some rows at a time: never (H, R, R) or (R, R)
                for part in tiles(real.shape[1], real.shape[1]):
                    attention = _attend(found, rows, slice(head, head + 1), part)[:, 0]
                    total += (attention * real[:, part, None]).sum(dim=1)
            self._received[index] = total / (found.queries.shape[1] * real.sum(dim=1, keepdim=True))
        return self._received[index], rows


def _attend(found: Projections, rows: EncoderInput, heads: slice, queries: slice) -> Tensor:
    """Attention probabilities of some heads and rows of the encoder over all rows, (images, H', R', R)."""
    logits = (found.queries[:, heads, queries].float() * found.scaling) @ found.keys[:, heads].float().transpose(-1, -2)
    bias = rows.bias()
    return (logits if bias is None else logits + bias.to(logits.device)).softmax(dim=-1)
