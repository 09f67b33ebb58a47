"""What a pruner sees: the engine's `View` of B units of N visual tokens each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.checkpoints.joint import JointSpace
from tokenprune.dual.tiling import tiles
from tokenprune.engine.observe.context import SiteContext, check_declared, known_grid
from tokenprune.engine.patch.split_layer import MidLayerState
from tokenprune.engine.state.prefill import LayerInput, Unit
from tokenprune.engine.state.rows import gather_rows, pack_slots
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import ModelFacts, Rows, Site
from tokenprune.view import Heads, Support

_WHOLE = slice(None)


class EngineView:
    """`tokenprune.pruner.View` over a live model."""

    def __init__(self, context: SiteContext, units: Sequence[Unit], numbers: Sequence[int], keep: int) -> None:
        self._context = context
        self._prefill = context.prefill
        self._units = tuple(units)
        self._numbers = tuple(numbers)
        self.site: Site = context.site
        self.facts: ModelFacts = context.prefill.parts.facts
        self.units: int = len(units)
        self.tokens: int = units[0].tokens
        self.original_tokens: int = units[0].original
        self.keep: int = keep
        self._indices = torch.stack([unit.indices for unit in units])
        self._home = self._indices.device
        """The device of the prompt: all that a pruner sees is there, whatever device a layer is on."""
        self._sample = torch.tensor([unit.span.sample for unit in units], device=self._indices.device)
        frames = torch.arange(units[0].span.frames, device=self._indices.device)
        self._images = torch.tensor([unit.span.index for unit in units], device=frames.device)[:, None] + frames
        self._text: tuple[Tensor, Tensor] | None = None

    def _need(self, need: str) -> None:
        check_declared(self._context.spec.name, self._context.needs, need)

    # --- hidden states ------------------------------------------------------------------------------------------

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D); at `encoder` and inside the `tower` the encoder's, (B, N, C)."""
        self._need("hidden")
        if self.site.kind == "encoder":
            return self._features()
        middle = self._middle()
        return self.layer_input() if middle is None else self._stream(middle.residual)

    def layer_input(self) -> Tensor:
        """What entered the layer of the site, (B, N, D) or (B, N, C)."""
        self._need("hidden")
        if self.site.kind == "encoder":
            return self._features()
        if self.site.kind == "tower":
            return self._stream(self._prefill.vision.encoder_inputs[self.site.layer].hidden)
        return self._stream(self._context.layer(None)[1].hidden)

    def mlp_input(self) -> Tensor:
        """What the MLP of the site's layer would read, (B, N, D) or (B, N, C)."""
        self._need("hidden")
        middle = self._middle()
        if middle is None:
            raise IncompatibleError(
                f"`{self._context.spec.name}` asks for the MLP's input at site `{self.site}`",
                hint="it exists at `mid` points only",
            )
        return self._stream(middle.mlp_input)

    def _middle(self) -> MidLayerState | None:
        middle: MidLayerState | None = (
            self._prefill.vision.middle if self.site.kind == "tower" else self._prefill.middle
        )
        return middle

    def _stream(self, states: Tensor) -> Tensor:
        """The units' rows of states at the site's layer."""
        if self.site.kind == "tower":
            return self._rows_of(states, self._prefill.vision.encoder_inputs[self.site.layer].row_of)
        _, entered = self._context.layer(None)
        return self._gathered(states, self._rows(entered))

    def projected(self) -> Tensor:
        """LLM input embeddings of the visual tokens still there, (B, N, D)."""
        self._need("projected")
        return self._gathered(self._embeddings(), self._own_slots())

    def final_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states entering the site under the decoder's final norm: visual, text, mask."""
        self._need("final_norm")
        _, entered = self._context.layer(None)
        with torch.no_grad():
            normed = self._prefill.parts.final_norm(entered.hidden)
        rows, mask = self._row_index("text", entered)
        return self._gathered(normed, self._rows(entered)), self._gathered(normed, rows), mask

    # --- decoder projections --------------------------------------------------------------------------------------

    def keys(self, *, rope: bool, layer: int | None = None) -> Tensor:
        """Keys of the visual tokens, (B, G, N, d)."""
        self._need("qkv")
        found, entered = self._context.projections(layer, rope=rope)
        return self._heads(found.keys, self._rows(entered))

    def values(self, *, layer: int | None = None) -> Tensor:
        """Values of the visual tokens, (B, G, N, d)."""
        self._need("qkv")
        found, entered = self._context.projections(layer, rope=True)
        return self._heads(found.values, self._rows(entered))

    def queries(self, rows: Rows = "text", *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) of the named rows with their mask (B, R)."""
        self._need("qkv")
        found, entered = self._context.projections(layer, rope=rope)
        index, mask = self._row_index(rows, entered)
        return self._heads(found.queries, index), mask

    def text_keys(self, *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys of the text after the image, (B, G, T, d), and the mask (B, T)."""
        self._need("qkv")
        found, entered = self._context.projections(layer, rope=rope)
        index, mask = self._row_index("text", entered)
        return self._heads(found.keys, index), mask

    def attention(
        self,
        rows: Rows = "last",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Support = "causal",
    ) -> tuple[Tensor, Tensor]:
        """Attention probabilities (B, H, R, N) of the named rows on the unit's visual tokens, and the mask."""
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
        """Attention that each visual token receives from the named rows, mean over the real rows, (B, N)."""
        self._need("attention")
        found, entered = self._context.projections(layer, rope=rope)
        _, mask = self._row_index(rows, entered)
        entries = found.queries.shape[1] * entered.rows.slots.shape[1]
        total = torch.zeros(self.units, self.tokens, device=mask.device)
        for part in tiles(mask.shape[1], entries):
            attention, _ = self._attention(rows, part, rope=rope, layer=layer, support=support)
            total += (attention.amax(dim=1) if heads == "max" else attention.mean(dim=1)).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True).clamp_min(1)

    def _attention(
        self, rows: Rows, part: slice, *, rope: bool, layer: int | None, support: Support
    ) -> tuple[Tensor, Tensor]:
        """Attention (B, H, r, N) of a part of the named rows on the visual tokens, and the mask (B, r)."""
        _, entered = self._context.projections(layer, rope=rope)
        visual = self._rows(entered)
        slots = entered.rows.slots[self._sample]
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
        """Attention output (B, H, R, d) of the named rows over their whole causal row, and the mask (B, R)."""
        self._need("attention")
        found, entered = self._context.projections(layer, rope=True)
        slots = entered.rows.slots[self._sample]
        columns = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        probabilities, mask = self._probabilities(rows, columns, rope=True, layer=layer)
        values = self._heads(found.values, columns)
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
        """Softmax (B, H, R, C) of the named rows over the columns (B, C) that they see, and the mask (B, R).

        Of the R rows only those of `part`.
        """
        found, entered = self._context.projections(layer, rope=rope)
        index, mask = (given[:, part] for given in self._row_index(rows, entered))
        queries = self._heads(found.queries, index)
        slots = entered.rows.slots[self._sample]
        keys = self._heads(found.keys, columns)
        units, heads, length, width = queries.shape
        grouped = queries.reshape(units, keys.shape[1], -1, width) * found.scaling
        logits = (grouped @ keys.transpose(-1, -2)).reshape(units, heads, length, -1)
        column_slots = slots.gather(1, columns)
        if entered.log_weights is not None:
            logits = logits + entered.log_weights[self._sample].gather(1, columns)[:, None, None, :]
        seen = (column_slots >= 0)[:, None, :].expand(-1, index.shape[1], -1)
        if causal:
            seen = seen & (column_slots[:, None, :] <= slots.gather(1, index)[:, :, None])
        probabilities = logits.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)
        # padded rows carry no meaning, and rows that see nothing would be NaN
        return probabilities.masked_fill(~mask[:, None, :, None], 0.0), mask

    # --- encoder --------------------------------------------------------------------------------------------------

    def encoder_features(self) -> Tensor:
        """What the projector would read of the tokens still there, before any merge, (B, N, C).

        Where patches are merged or pooled into tokens, the mean of each token's patches.
        """
        self._need("encoder")
        return self._features()

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """Attention of the CLS query on the patches in an encoder layer, (B, H, N)."""
        self._need("encoder_attention")
        if self._context.encoder_views is not None:
            found = self._context.encoder_views.cls_attention(self._context.encoder_layer(layer))
            return self._pooled(found).transpose(1, 2)
        attention, rows = self._context.cls_attention(layer)
        return self._rows_of(attention.transpose(1, 2), rows.row_of).transpose(1, 2)

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Mean attention that each patch receives from all encoder rows, head mean, (B, N)."""
        self._need("encoder_attention")
        if self._context.encoder_views is not None:
            return self._pooled(self._context.encoder_views.received_attention(self._context.encoder_layer(layer)))
        received, rows = self._context.received_attention(layer)
        return self._rows_of(received[..., None], rows.row_of)[..., 0]

    def encoder_keys(self, layer: int | None = None) -> Tensor:
        """Raw encoder keys of the patches, (B, H, N, d)."""
        self._need("encoder_attention")
        if self._context.encoder_views is not None:
            return self._pooled(self._context.encoder_views.keys(self._context.encoder_layer(layer))).transpose(1, 2)
        _, found, rows = self._context.encoder(layer)
        heads = found.keys.shape[1]
        flat = self._rows_of(found.keys.transpose(1, 2).flatten(2), rows.row_of)
        return flat.reshape(*flat.shape[:2], heads, -1).transpose(1, 2)

    def joint_image(self) -> Tensor:
        """Joint-space embeddings of the patches, not normalised, (B, N, P)."""
        self._need("joint")
        return self._joint().patches(self._features()).to(self._home)

    def joint_text(self) -> Tensor:
        """Joint-space embedding of the text after the image, (B, P)."""
        self._need("joint")
        joint = self._joint()
        slots, mask = self._text_slots()
        ids = self._prefill.input_ids[self._sample].gather(1, slots)
        texts = [joint.decode(row[real].tolist()) for row, real in zip(ids, mask, strict=True)]
        return joint.text(texts).to(self._home)

    # --- text, geometry, identity -----------------------------------------------------------------------------------

    def text_embeddings(self) -> tuple[Tensor, Tensor]:
        """LLM input embeddings of the text after the image, (B, T, D), and the mask (B, T)."""
        self._need("text")
        slots, mask = self._text_slots()
        return self._gathered(self._embeddings(), slots), mask

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the unit's original token grid."""
        self._need("geometry")
        return known_grid(self._context.spec.name, self._units[0].span.grid)  # the engine groups units by their grid

    def frames(self) -> int:
        """Frames of the unit, 1 for an image."""
        self._need("geometry")
        return self._units[0].span.frames

    def coordinates(self) -> Tensor:
        """Row and column of each visual token still there, (B, N, 2), float."""
        rows, columns = self.grid()
        cell = self._indices % (rows * columns)
        return torch.stack([cell // columns, cell % columns], dim=-1).float()

    def ids(self) -> tuple[int, ...]:
        """A number for each unit, the same at every stop of a prompt."""
        return tuple(unit.span.index for unit in self._units)

    def sizes(self) -> Tensor:
        """How many original tokens each row stands for, (B, N)."""
        return torch.stack([unit.sizes for unit in self._units])

    def indices(self) -> Tensor:
        """Original index of each visual token still there, (B, N), int64."""
        return self._indices

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit made from its content (not from its place in the batch)."""
        self._need("fingerprint")
        return tuple(self._prefill.fingerprint(unit) for unit in self._units)

    # --- where things are -------------------------------------------------------------------------------------------

    def _rows_of(self, values: Tensor, row_of: Sequence[Tensor]) -> Tensor:
        """Rows (B, N, ...) of the units' tokens in tensors of the vision side, (images, R, ...), float32.

        Tokens that were merged away or dropped since are gone from `indices`, so every token here has its row, or had
        one in a layer that ran before.
        """
        frames, cells = self._images.shape[1], self.original_tokens // self._images.shape[1]
        places = torch.stack([row_of[image] for image in self._images.flatten().tolist()])
        places = places.view(self.units, frames * cells).gather(1, self._indices)
        image = self._images.gather(1, self._indices // cells)
        return values[image.to(values.device), places.to(values.device)].detach().float().to(self._home)

    def _pooled(self, values: Tensor) -> Tensor:
        """Means (B, N, ...) over the encoder rows of the units' tokens, of values (rows, ...), float32."""
        observed = self._prefill.vision.observed
        units = [
            torch.cat([tokens.pool(values.detach()) for tokens in observed.tokens_of(unit.span.index, unit.original)])
            for unit in self._units
        ]
        stacked = torch.stack(units).to(self._home)
        index = self._indices.reshape(*self._indices.shape, *[1] * (stacked.ndim - 2))
        return stacked.gather(1, index.expand(-1, -1, *stacked.shape[2:]))

    def _own_slots(self) -> Tensor:
        return torch.stack([unit.places for unit in self._units])

    def _rows(self, entered: LayerInput) -> Tensor:
        """Row of each token (B, N) in the sequence that entered a layer."""
        places = torch.stack([entered.place_of[number] for number in self._numbers]).gather(1, self._indices)
        return entered.rows.inverse[self._sample].gather(1, places)

    def _row_index(self, rows: Rows, entered: LayerInput) -> tuple[Tensor, Tensor]:
        """Row indices (B, R) of the named rows in the sequence that entered a layer, and their mask."""
        if rows == "visual":
            index = self._rows(entered)
            return index, torch.ones_like(index, dtype=torch.bool)
        slots, mask = self._text_slots()
        if rows == "last":
            valid = self._prefill.valid[self._sample]
            positions = torch.arange(valid.shape[1], device=valid.device)
            slots = positions.expand_as(valid).masked_fill(~valid, -1).amax(dim=1, keepdim=True)
            mask = torch.ones_like(slots, dtype=torch.bool)
        elif rows != "text":
            raise IncompatibleError(f"unknown rows `{rows}`", hint="use `last`, `text` or `visual`")
        return entered.rows.inverse[self._sample].gather(1, slots).clamp(min=0), mask

    def _text_slots(self) -> tuple[Tensor, Tensor]:
        """Slots (B, T) of the text after each unit's image, and their mask."""
        if self._text is None:
            ids = self._prefill.input_ids[self._sample]
            end = torch.stack([unit.span.slots[-1] for unit in self._units])
            after = torch.arange(ids.shape[1], device=ids.device)[None, :] > end[:, None]
            text = after & self._prefill.valid[self._sample] & ~self._prefill.parts.is_placeholder(ids)
            self._text = pack_slots(text)
        return self._text

    def _heads(self, values: Tensor, index: Tensor) -> Tensor:
        """Rows `index` (B, K) of per-head tensors (samples, H, S', d), float32."""
        chosen = values[self._sample.to(values.device)]
        expanded = index.to(values.device)[:, None, :, None].expand(-1, chosen.shape[1], -1, chosen.shape[3])
        return chosen.gather(2, expanded).float().to(self._home)

    def _gathered(self, states: Tensor, index: Tensor) -> Tensor:
        """Rows `index` (B, K) of the units' samples in states (samples, S', D), float32."""
        return gather_rows(states[self._sample.to(states.device)], index).detach().float().to(self._home)

    def _features(self) -> Tensor:
        if self._context.encoder_views is not None:
            return self._pooled(self._context.encoder_views.features())
        if self._prefill.vision.features is None:
            raise IncompatibleError(
                f"`{self._context.spec.name}` needs encoder features, but the projector did not run here",
                hint="pass `pixel_values`, not precomputed encoder outputs",
            )
        return self._rows_of(self._prefill.vision.features, self._prefill.vision.row_of)

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
