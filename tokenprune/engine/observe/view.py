"""The engine's implementation of `View`: what a pruner reads of B units of N visual tokens each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.checkpoints.joint import JointSpace
from tokenprune.dual.tiling import tiles
from tokenprune.engine.observe.context import SiteContext, check_declared, known_grid
from tokenprune.engine.observe.unit_rows import UnitRows
from tokenprune.engine.patch.split_layer import MidLayerState
from tokenprune.engine.state.prefill import Unit
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import ModelFacts, Rows, Site
from tokenprune.view import Heads, Support

_WHOLE = slice(None)


class EngineView(UnitRows):
    """`tokenprune.pruner.View` on a running model."""

    def __init__(self, context: SiteContext, units: Sequence[Unit], numbers: Sequence[int], keep: int) -> None:
        super().__init__(context.prefill, units, numbers)
        self._context = context
        self.site: Site = context.site
        self.facts: ModelFacts = context.prefill.parts.facts
        self.units: int = len(units)
        self.tokens: int = units[0].tokens
        self.keep: int = keep

    def _need(self, need: str) -> None:
        check_declared(self._context.spec.name, self._context.needs, need)

    # --- hidden states ------------------------------------------------------------------------------------------

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D); those of the encoder, (B, N, C), at `encoder` and `tower` sites."""
        self._need("hidden")
        if self.site.kind == "encoder":
            return self._features()
        middle = self._middle()
        return self.layer_input() if middle is None else self._unit_states(middle.residual)

    def layer_input(self) -> Tensor:
        """Input of the site's layer, (B, N, D) or (B, N, C)."""
        self._need("hidden")
        if self.site.kind == "encoder":
            return self._features()
        if self.site.kind == "tower":
            return self._unit_states(self._prefill.vision.encoder_inputs[self.site.layer].hidden)
        return self._unit_states(self._context.layer(None)[1].hidden)

    def mlp_input(self) -> Tensor:
        """Input of the MLP in the site's layer, (B, N, D) or (B, N, C)."""
        self._need("hidden")
        middle = self._middle()
        if middle is None:
            raise IncompatibleError(
                f"`{self._context.spec.name}` asks for the MLP's input at site `{self.site}`",
                hint="it exists at `mid` points only",
            )
        return self._unit_states(middle.mlp_input)

    def _middle(self) -> MidLayerState | None:
        middle: MidLayerState | None = (
            self._prefill.vision.middle if self.site.kind == "tower" else self._prefill.middle
        )
        return middle

    def _unit_states(self, states: Tensor) -> Tensor:
        """The units' rows in states of the site's layer."""
        if self.site.kind == "tower":
            return self._vision_rows(states, self._prefill.vision.encoder_inputs[self.site.layer].row_of)
        _, snapshot = self._context.layer(None)
        return self._gather_states(states, self._visual_rows(snapshot))

    def projected(self) -> Tensor:
        """LLM input embeddings of the remaining visual tokens, (B, N, D)."""
        self._need("projected")
        return self._gather_states(self._embeddings(), self._present_slots())

    def final_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the site's layer after the decoder's final norm: visual (B, N, D), text (B, T, D), mask (B, T)."""
        self._need("final_norm")
        _, snapshot = self._context.layer(None)
        with torch.no_grad():
            normed = self._prefill.parts.final_norm(snapshot.hidden)
        rows, mask = self._named_rows("text", snapshot)
        return self._gather_states(normed, self._visual_rows(snapshot)), self._gather_states(normed, rows), mask

    # --- decoder projections --------------------------------------------------------------------------------------

    def keys(self, *, rope: bool, layer: int | None = None) -> Tensor:
        """Keys of the visual tokens, (B, G, N, d)."""
        self._need("qkv")
        found, snapshot = self._context.projections(layer, rope=rope)
        return self._gather_heads(found.keys, self._visual_rows(snapshot))

    def values(self, *, layer: int | None = None) -> Tensor:
        """Values of the visual tokens, (B, G, N, d)."""
        self._need("qkv")
        found, snapshot = self._context.projections(layer, rope=True)
        return self._gather_heads(found.values, self._visual_rows(snapshot))

    def queries(self, rows: Rows = "text", *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) of the named rows, and the mask (B, R)."""
        self._need("qkv")
        found, snapshot = self._context.projections(layer, rope=rope)
        index, mask = self._named_rows(rows, snapshot)
        return self._gather_heads(found.queries, index), mask

    def text_keys(self, *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys of the text after the image, (B, G, T, d), and the mask (B, T)."""
        self._need("qkv")
        found, snapshot = self._context.projections(layer, rope=rope)
        index, mask = self._named_rows("text", snapshot)
        return self._gather_heads(found.keys, index), mask

    def attention(
        self,
        rows: Rows = "last",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Support = "causal",
    ) -> tuple[Tensor, Tensor]:
        """Attention probabilities (B, H, R, N) from the named rows to the unit's visual tokens, and the mask (B, R)."""
        self._need("attention")
        return self._attention(rows, slice(None), rope=rope, layer=layer, support=support)

    def attention_received(
        self,
        rows: Rows = "visual",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Support = "causal",
        heads: Heads = "mean",
    ) -> Tensor:
        """Attention that each visual token receives from the named rows, mean over the rows in the mask, (B, N)."""
        self._need("attention")
        found, snapshot = self._context.projections(layer, rope=rope)
        _, mask = self._named_rows(rows, snapshot)
        entries = found.queries.shape[1] * snapshot.rows.slots.shape[1]
        total = torch.zeros(self.units, self.tokens, device=mask.device)
        for part in tiles(mask.shape[1], entries):
            attention, _ = self._attention(rows, part, rope=rope, layer=layer, support=support)
            total += (attention.amax(dim=1) if heads == "max" else attention.mean(dim=1)).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True).clamp_min(1)

    def _attention(
        self, rows: Rows, part: slice, *, rope: bool, layer: int | None, support: Support
    ) -> tuple[Tensor, Tensor]:
        """Attention (B, H, r, N) from a part of the named rows to the visual tokens, and the mask (B, r)."""
        _, snapshot = self._context.projections(layer, rope=rope)
        visual = self._visual_rows(snapshot)
        slots = snapshot.rows.slots[self._sample]
        everything = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        columns = visual if support == "visual" else everything
        probabilities, mask = self._probabilities(
            rows, columns, rope=rope, layer=layer, causal=support != "all", part=part
        )
        if support != "visual":
            heads, length = probabilities.shape[1:3]
            probabilities = probabilities.gather(-1, visual[:, None, None, :].expand(-1, heads, length, -1))
        return probabilities, mask

    def attention_output(self, rows: Rows = "last", *, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Attention output (B, H, R, d) of the named rows over all tokens before them, and the mask (B, R)."""
        self._need("attention")
        found, snapshot = self._context.projections(layer, rope=True)
        slots = snapshot.rows.slots[self._sample]
        columns = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        probabilities, mask = self._probabilities(rows, columns, rope=True, layer=layer)
        values = self._gather_heads(found.values, columns)
        units, heads, length, _ = probabilities.shape
        grouped = probabilities.reshape(units, values.shape[1], -1, probabilities.shape[3]) @ values
        return grouped.reshape(units, heads, length, -1), mask

    def _probabilities(
        self,
        rows: Rows,
        columns: Tensor,
        *,
        rope: bool,
        layer: int | None,
        causal: bool = True,
        part: slice = _WHOLE,
    ) -> tuple[Tensor, Tensor]:
        """Attention (B, H, R, C) from the named rows to the columns (B, C) that they see, and the mask (B, R).

        Only the rows in `part` are computed.
        """
        found, snapshot = self._context.projections(layer, rope=rope)
        index, mask = (given[:, part] for given in self._named_rows(rows, snapshot))
        queries = self._gather_heads(found.queries, index)
        slots = snapshot.rows.slots[self._sample]
        keys = self._gather_heads(found.keys, columns)
        units, heads, length, width = queries.shape
        grouped = queries.reshape(units, keys.shape[1], -1, width) * found.scaling
        logits = (grouped @ keys.transpose(-1, -2)).reshape(units, heads, length, -1)
        column_slots = slots.gather(1, columns)
        if snapshot.log_weights is not None:
            logits = logits + snapshot.log_weights[self._sample].gather(1, columns)[:, None, None, :]
        seen = (column_slots >= 0)[:, None, :].expand(-1, index.shape[1], -1)
        if causal:
            seen = seen & (column_slots[:, None, :] <= slots.gather(1, index)[:, :, None])
        probabilities = logits.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)
        # the softmax of a padded row may be NaN
        return probabilities.masked_fill(~mask[:, None, :, None], 0.0), mask

    # --- encoder --------------------------------------------------------------------------------------------------

    def encoder_features(self) -> Tensor:
        """Input of the projector for the remaining tokens, before any merge, (B, N, C).

        If the model merges or pools patches into tokens, the mean of each token's patches.
        """
        self._need("encoder")
        return self._features()

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """Attention from the CLS row to the patches in an encoder layer, (B, H, N)."""
        self._need("encoder_attention")
        if self._context.encoder_views is not None:
            found = self._context.encoder_views.cls_attention(self._context.encoder_layer(layer))
            return self._encoder_means(found).transpose(1, 2)
        attention, rows = self._context.cls_attention(layer)
        return self._vision_rows(attention.transpose(1, 2), rows.row_of).transpose(1, 2)

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Mean attention that each patch receives from all encoder rows, head mean, (B, N)."""
        self._need("encoder_attention")
        if self._context.encoder_views is not None:
            return self._encoder_means(
                self._context.encoder_views.received_attention(self._context.encoder_layer(layer))
            )
        received, rows = self._context.received_attention(layer)
        return self._vision_rows(received[..., None], rows.row_of)[..., 0]

    def encoder_keys(self, layer: int | None = None) -> Tensor:
        """Encoder keys of the patches before any rotation, (B, H, N, d)."""
        self._need("encoder_attention")
        if self._context.encoder_views is not None:
            return self._encoder_means(self._context.encoder_views.keys(self._context.encoder_layer(layer))).transpose(
                1, 2
            )
        _, found, rows = self._context.encoder(layer)
        heads = found.keys.shape[1]
        flat = self._vision_rows(found.keys.transpose(1, 2).flatten(2), rows.row_of)
        return flat.reshape(*flat.shape[:2], heads, -1).transpose(1, 2)

    def joint_image(self) -> Tensor:
        """Joint-space embeddings of the patches, not normalised, (B, N, P)."""
        self._need("joint")
        return self._joint().patches(self._features()).to(self._device)

    def joint_text(self) -> Tensor:
        """Joint-space embedding of the text after the image, (B, P)."""
        self._need("joint")
        joint = self._joint()
        slots, mask = self._text_slots()
        ids = self._prefill.input_ids[self._sample].gather(1, slots)
        texts = [joint.decode(row[real].tolist()) for row, real in zip(ids, mask, strict=True)]
        return joint.text(texts).to(self._device)

    # --- text, geometry, identity -----------------------------------------------------------------------------------

    def text_embeddings(self) -> tuple[Tensor, Tensor]:
        """LLM input embeddings of the text after the image, (B, T, D), and the mask (B, T)."""
        self._need("text")
        slots, mask = self._text_slots()
        return self._gather_states(self._embeddings(), slots), mask

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the unit's original token grid."""
        self._need("geometry")
        return known_grid(self._context.spec.name, self._units[0].span.grid)  # the engine groups units by their grid

    def frames(self) -> int:
        """Frames of the unit, 1 for an image."""
        self._need("geometry")
        return self._units[0].span.frames

    def coordinates(self) -> Tensor:
        """Row and column of each remaining visual token, (B, N, 2), float."""
        rows, columns = self.grid()
        cell = self._indices % (rows * columns)
        return torch.stack([cell // columns, cell % columns], dim=-1).float()

    def ids(self) -> tuple[int, ...]:
        """A number for each unit, the same at every stop of a prompt."""
        return tuple(unit.span.index for unit in self._units)

    def sizes(self) -> Tensor:
        """Number of original tokens that each row represents, (B, N)."""
        return torch.stack([unit.sizes for unit in self._units])

    def indices(self) -> Tensor:
        """Original index of each remaining visual token, (B, N), int64."""
        return self._indices

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit, a hash of its content that does not depend on the batch."""
        self._need("fingerprint")
        return tuple(self._prefill.fingerprint(unit) for unit in self._units)

    def _features(self) -> Tensor:
        if self._context.encoder_views is not None:
            return self._encoder_means(self._context.encoder_views.features())
        if self._prefill.vision.features is None:
            raise IncompatibleError(
                f"`{self._context.spec.name}` needs encoder features, but the projector did not run here",
                hint="pass `pixel_values`, not precomputed encoder outputs",
            )
        return self._vision_rows(self._prefill.vision.features, self._prefill.vision.row_of)

    def _embeddings(self) -> Tensor:
        if self._prefill.embeddings is None:
            raise IncompatibleError(
                f"`{self._context.spec.name}` needs LLM input embeddings, which do not exist yet at site `{self.site}`",
                hint="cut at `input` or at a decoder layer",
            )
        return self._prefill.embeddings

    def _joint(self) -> JointSpace:
        if self._context.joint is None:
            raise IncompatibleError(
                f"`{self._context.spec.name}` needs a joint image-text space (a CLIP text tower)",
                hint="pass `joint=` to `pruned`, or load a model that ships one",
            )
        return self._context.joint
