"""Rewrite the arguments of each decoder layer, so that its mask and positions fit its own sequence length."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from tokenprune.engine.cache.caches import KeyColumns
from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.decoder.decode_step import visible_columns
from tokenprune.engine.decoder.decoder_pass import DecoderPass
from tokenprune.engine.decoder.layer_arguments import RotaryCalls, shorten_arguments
from tokenprune.engine.decoder.masks import build_mask, is_whole, shorten_mask, window_of
from tokenprune.engine.patch.attention_probe import other_arguments
from tokenprune.errors import IncompatibleError

if TYPE_CHECKING:
    from tokenprune.engine.session import Session


class LayerCalls:
    """Rewrites the arguments of the decoder layers in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parts = session.parts
        self._rotary = RotaryCalls(session.parts.rotary)
        self._windows = tuple(window_of(session.parts.text.config, kind) for kind in session.parts.layer_types)

    def install(self, undo: contextlib.ExitStack) -> None:
        """Record the calls of the rotary embedding; `undo` removes the hook."""
        self._rotary.install(undo)

    def clear(self) -> None:
        """Forget the calls of the last forward pass."""
        self._rotary.clear()

    def arguments_of(
        self,
        decoder_pass: DecoderPass,
        layer: int,
        layer_input: DecoderInput,
        past: KeyColumns,
        columns: KeyColumns,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a layer, with hidden states, mask and positions of the layer's own length."""
        given = kwargs.get("position_embeddings")
        if decoder_pass.compact and given is not None:
            among = decoder_pass.position_rows[self._parts.kv_sources[layer]]
            positions = (decoder_pass.compact_positions(layer_input, among) - past.shift[:, None]).clamp(min=0)
            make = functools.partial(self._rotary.at, given, layer_input.hidden, positions)
            embeddings = decoder_pass.remade(layer_input, (given, past, among), make)
        else:
            embeddings = decoder_pass.embeddings(layer_input, given)
        state = decoder_pass.past
        if state is not None and state.decode and decoder_pass.length == 1:
            call = {**other_arguments(kwargs), "position_embeddings": embeddings}
            columns = visible_columns(self._session, decoder_pass, state, layer, layer_input, columns, call)
        changed = {
            **kwargs,
            "attention_mask": self._mask(decoder_pass, layer, layer_input, columns, kwargs.get("attention_mask")),
            "position_ids": None,  # kernels would read gaps as the bounds of packed sequences
        }
        if given is not None:
            changed["position_embeddings"] = embeddings
        rest = list(args[1:])
        if decoder_pass.cut:
            index = layer_input.positions()
            changed = shorten_arguments(changed, decoder_pass.length, index)
            rest = [
                *shorten_arguments(
                    {str(place): each for place, each in enumerate(rest)}, decoder_pass.length, index
                ).values()
            ]
        if args:
            return (layer_input.hidden, *rest), changed
        return args, {**changed, "hidden_states": layer_input.hidden}

    def _mask(
        self, decoder_pass: DecoderPass, layer: int, layer_input: DecoderInput, columns: KeyColumns, given: Any
    ) -> Any:
        """The layer's attention mask: a part of the model's own mask, or a new one if the model made none."""
        reach, config = self._windows[layer], self._parts.text.config
        width, dtype = layer_input.rows.slots.shape[1], layer_input.hidden.dtype
        cuttable = is_whole(given) and (decoder_pass.past is None or decoder_pass.full_masks)
        if decoder_pass.full_masks and cuttable and given.shape[-1] != decoder_pass.past_length + decoder_pass.length:
            raise IncompatibleError(
                f"the model's mask has {given.shape[-1]} columns for a conversation of "
                f"{decoder_pass.past_length + decoder_pass.length} tokens",
                hint="pass the images of the new turn with the default dynamic cache and no mask of your own",
            )
        device = layer_input.hidden.device
        key = (id(columns), (id(given) if cuttable else reach, device))
        if key not in decoder_pass.masks:
            mask: Any
            if cuttable:
                mask = shorten_mask(config, given, layer_input.rows.slots, columns, dtype)
            else:
                mask = build_mask(config, columns, width, dtype, reach)
            if mask is not None and columns.valid.device != device:
                mask = mask.to(device)
            decoder_pass.masks[key] = (given, columns, mask)  # holds the objects, so that no new one gets their ids
        return decoder_pass.masks[key][2]
