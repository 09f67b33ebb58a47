"""Arguments of the decoder layers' calls: each layer gets the mask and the positions of its own length."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from tokenprune.engine.cache.caches import Columns
from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.decoder.decode_step import visible_columns
from tokenprune.engine.decoder.decoder_pass import DecoderPass
from tokenprune.engine.decoder.layer_arguments import RotaryCalls, shortened
from tokenprune.engine.decoder.masks import build_mask, is_whole, shorten_mask, window_of
from tokenprune.errors import IncompatibleError

if TYPE_CHECKING:
    from tokenprune.engine.session import Session


class LayerCalls:
    """Rewrites the calls of the decoder layers of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parts = session.parts
        self._rotary = RotaryCalls(session.parts.rotary)
        self._windows = tuple(window_of(session.parts.text.config, kind) for kind in session.parts.layer_types)

    def install(self, undo: contextlib.ExitStack) -> None:
        """Note what the rotary embedding is called with; the stack takes what undoes it."""
        self._rotary.install(undo)

    def forget(self) -> None:
        """Begin a new pass."""
        self._rotary.forget()

    def rewritten(
        self,
        running: DecoderPass,
        layer: int,
        present: DecoderInput,
        past: Columns,
        columns: Columns,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the layer with hidden states, mask and positions of its own length."""
        given = kwargs.get("position_embeddings")
        if running.compact and given is not None:
            among = running.counted[self._parts.kv_sources[layer]]
            positions = (running.compact_positions(present, among) - past.shift[:, None]).clamp(min=0)
            make = functools.partial(self._rotary.at, given, present.hidden, positions)
            embeddings = running.remade(present, (given, past, among), make)
        else:
            embeddings = running.embeddings(present, given)
        state = running.past
        if state is not None and state.decode and running.length == 1:
            columns = visible_columns(self._session, running, state, layer, present, columns, embeddings)
        changed = {
            **kwargs,
            "attention_mask": self._mask(running, layer, present, columns, kwargs.get("attention_mask")),
            "position_ids": None,  # kernels must not read gaps as packed sequences
        }
        if given is not None:
            changed["position_embeddings"] = embeddings
        rest = list(args[1:])
        if running.cut:
            index = present.positions()
            changed = shortened(changed, running.length, index)
            rest = [*shortened({str(place): each for place, each in enumerate(rest)}, running.length, index).values()]
        if args:
            return (present.hidden, *rest), changed
        return args, {**changed, "hidden_states": present.hidden}

    def _mask(self, running: DecoderPass, layer: int, present: DecoderInput, columns: Columns, given: Any) -> Any:
        """The layer's attention mask: cut out of the one that the model made, or built where it made none."""
        reach, config = self._windows[layer], self._parts.text.config
        width, dtype = present.rows.slots.shape[1], present.hidden.dtype
        cuttable = is_whole(given) and (running.past is None or running.whole)
        if running.whole and cuttable and given.shape[-1] != running.seen + running.length:
            raise IncompatibleError(
                f"the model masks {given.shape[-1]} places of a conversation of {running.seen + running.length} tokens",
                hint="pass the images of the new turn with the default dynamic cache and no mask of your own",
            )
        device = present.hidden.device
        key = (id(columns), (id(given) if cuttable else reach, device))
        if key not in running.masks:
            mask: Any
            if cuttable:
                mask = shorten_mask(config, given, present.rows.slots, columns, dtype)
            else:
                mask = build_mask(config, columns, width, dtype, reach)
            if mask is not None and columns.valid.device != device:
                mask = mask.to(device)
            running.masks[key] = (given, columns, mask)  # kept alive, so that ids stay theirs
        return running.masks[key][2]
