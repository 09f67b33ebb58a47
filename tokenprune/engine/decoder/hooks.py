"""Hooks on the decoder: remove rows at a layer, and give every layer the mask and positions of its own length."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokenprune.engine.cache.caches import (
    CachedUnit,
    CacheState,
    KeyColumns,
    check_growing,
    check_readable,
    count_columns,
)
from tokenprune.engine.cache.offsets import offsets_of
from tokenprune.engine.cache.pruned_cache import begin_pass, end_pass, note_pruned, pruned_state_of
from tokenprune.engine.decision import decide
from tokenprune.engine.decoder.cut import DecoderInput, record, take
from tokenprune.engine.decoder.decoder_pass import DecoderPass, snapshot
from tokenprune.engine.decoder.deepstack import add_deepstack
from tokenprune.engine.decoder.layer_arguments import (
    first_rows,
    first_sample,
    replace_hidden,
    shorten_arguments,
)
from tokenprune.engine.decoder.layer_calls import LayerCalls
from tokenprune.engine.decoder.masks import is_whole
from tokenprune.engine.decoder.records import record_of
from tokenprune.engine.decoder.retroactive_kv import prune_past_kv
from tokenprune.engine.patch.attention_probe import other_arguments
from tokenprune.engine.patch.split_layer import ForwardSwitch, SplitLayer
from tokenprune.engine.state.prefill import LayerSnapshot, Prefill, RowUpdate, rebase
from tokenprune.engine.state.rows import Rows, gather_embeddings, spread_rows
from tokenprune.errors import IncompatibleError
from tokenprune.families.supported import CACHE_NAMES, cache_in
from tokenprune.pruner import Kept, Stop

if TYPE_CHECKING:
    from tokenprune.engine.session import Session

#: Needs that require the inputs of all layers up to the last cut.
_LAYER_NEEDS = frozenset({"hidden", "qkv", "attention", "final_norm"})


class DecoderHooks:
    """The hooks of one session on the text model and its layers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parts = session.parts
        self._pass: DecoderPass | None = None
        self._switches: tuple[ForwardSwitch, ...] = ()
        self._layer_calls = LayerCalls(session)
        self._checked_layers: set[int] = set()
        """Layers for which `SplitLayer.check` has passed."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hooks."""
        text = self._parts.text
        if "layer" in self._session.pruner.spec.sites or self._session.memo is not None:
            self._switches = tuple(ForwardSwitch.before(layer, undo) for layer in self._parts.layers)
        add_deepstack(text, self._cut_rows, undo)
        self._layer_calls.install(undo)
        undo.callback(text.register_forward_pre_hook(self._before_text, with_kwargs=True).remove)
        undo.callback(text.register_forward_hook(self._after_text).remove)
        for index, layer in enumerate(self._parts.layers):
            undo.callback(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True).remove)

    @contextlib.contextmanager
    def forward_pass(self) -> Iterator[None]:
        """One forward pass. If it fails after a cut, its cache is marked as unusable."""
        outer, self._pass = self._pass, None
        try:
            yield
        finally:
            ended, self._pass = self._pass, outer
            if ended is not None:
                end_pass(ended.cache)
                if ended.cut and ended.past is None and ended.cache is not None:
                    note_pruned(ended.cache, None, self._session.handle)
            for switch in self._switches:
                switch.redirect(None)

    # --- the text model -----------------------------------------------------------------------------------------

    def _before_text(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del module
        embeddings = kwargs.get("inputs_embeds")
        prefill = self._session.prefill
        if embeddings is None:
            if prefill is not None:
                raise IncompatibleError(
                    "the model passes its text model no `inputs_embeds`", hint="describe the family in a plugin"
                )
            return None
        cache = cache_in(kwargs)
        past = pruned_state_of(cache, self._session.handle)
        self._layer_calls.clear()
        length = embeddings.shape[1]
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(seen, seen + length, device=embeddings.device)[None]
        mask = kwargs.get("attention_mask")
        compact = self._session.positions == "compact" and position_ids.ndim == 2
        self._pass = DecoderPass(mask, position_ids.to(embeddings.device), length, compact, cache, past)
        begin_pass(cache)
        if prefill is not None:
            prefill.embeddings = embeddings
        if prefill is None and past is None:
            return None
        if len(set(self._parts.kv_sources)) < len(self._parts.kv_sources):
            # otherwise the model runs layers that share a cache on the last row alone, and row indices would be wrong
            kwargs = {**kwargs, "logits_to_keep": None}
        if past is None:
            return args, kwargs
        given = mask.values() if isinstance(mask, dict) else (mask,)
        if prefill is not None and any(is_whole(each) for each in given):
            self._pass.full_masks = True  # only the model's own masks contain two-way attention inside images
            return args, {**kwargs, "position_ids": position_ids}
        # the engine builds a mask for each layer; given a four-dimensional mask, the text model builds none itself
        placeholder: Any = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=embeddings.device)
        if isinstance(mask, dict):
            placeholder = dict.fromkeys(mask, placeholder)
        return args, {**kwargs, "attention_mask": placeholder, "position_ids": position_ids}

    def _after_text(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module, args
        decoder_pass, self._pass = self._pass, None
        prefill = self._session.prefill
        if decoder_pass is None:
            return None
        end_pass(decoder_pass.cache)
        decode = decoder_pass.past.decode if decoder_pass.past is not None else ()
        if prefill is not None and len(prefill.done) == len(prefill.plan):
            self._session.records.append(record_of(prefill, self._session.pruner.spec.name))
            decode = decode or self._session.decode_stops(prefill)
        if decoder_pass.cache is not None and (decoder_pass.cut or decoder_pass.past is not None or decode):
            self._save_cache_state(decoder_pass, prefill, decode)
        if decoder_pass.current is None or not decoder_pass.cut:
            return None
        rows = decoder_pass.current.rows
        return replace_hidden(output, lambda hidden: spread_rows(hidden, rows))

    def _save_cache_state(self, decoder_pass: DecoderPass, prefill: Prefill | None, decode: tuple[Stop, ...]) -> None:
        """Store on the cache what it holds after this pass."""
        before = decoder_pass.past or CacheState([], 0, self._parts.kv_sources)
        layers = [decoder_pass.cache.layers[source] for source in self._parts.kv_sources]
        columns = [each.last(count_columns(layer)) for each, layer in zip(decoder_pass.columns, layers, strict=True)]
        units = [] if prefill is None else [unit.span for unit in prefill.units]
        new = tuple(CachedUnit(u.sample, u.image, len(u.slots), u.grid, u.frames) for u in units)
        if new:
            offsets = offsets_of(self._parts.base, columns[0].valid.shape[0])
            before = replace(before.with_present_samples(), offsets=offsets)
        state = replace(
            before,
            columns=columns,
            logical_length=decoder_pass.past_length + decoder_pass.length,
            units=(*before.units, *new),
            decode=decode,
        )
        note_pruned(decoder_pass.cache, state, self._session.handle)

    # --- the layers ---------------------------------------------------------------------------------------------

    def _before_layer(self, layer: int) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            decoder_pass = self._pass
            if decoder_pass is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            prefill = self._session.prefill
            if layer == 0:
                self._note_cache(decoder_pass, kwargs)
            if prefill is None and decoder_pass.past is None:
                return None
            layer_input = self._layer_input(decoder_pass, hidden)
            if prefill is not None:
                layer_input = self._cut_and_count(decoder_pass, prefill, layer, layer_input, kwargs)
            past = decoder_pass.past_columns(layer, layer_input.hidden.shape[0], layer_input.rows.slots.device)
            columns = self._key_columns(decoder_pass, prefill, layer, past, layer_input)
            decoder_pass.columns.append(columns)
            decoder_pass.layer_rows.append(layer_input.rows)
            decoder_pass.position_rows.append(layer_input.rows)
            if prefill is not None and prefill.next_decoder_stop(layer, "mid"):
                self._split_layer(decoder_pass, prefill, module, layer, layer_input, args[1:], kwargs)
            if decoder_pass.past is None and not decoder_pass.cut:
                if prefill is not None and decoder_pass.past_length == 0 and len(prefill.done) < len(prefill.plan):
                    self._answer_from_memo(layer)
                return None  # nothing was removed so far: leave every tensor as it is
            return self._layer_calls.arguments_of(decoder_pass, layer, layer_input, past, columns, args, kwargs)

        return hook

    def _answer_from_memo(self, layer: int) -> None:
        """Answer the next call of a layer before the first cut from the memo."""
        memo = self._session.memo
        shares_cache = self._parts.kv_sources.count(self._parts.kv_sources[layer]) > 1
        if memo is None or shares_cache or self._switches[layer].redirected:
            return
        self._switches[layer].redirect(functools.partial(memo.layer, layer, self._switches[layer].forward))

    def _note_cache(self, decoder_pass: DecoderPass, kwargs: dict[str, Any]) -> None:
        """Note the cache at layer 0: by then it exists, even if the text model has created it itself."""
        decoder_pass.cache = cache_in(kwargs)
        if decoder_pass.past is not None:
            decoder_pass.past_length = decoder_pass.past.logical_length
        elif decoder_pass.cache is not None:
            decoder_pass.past_length = int(decoder_pass.cache.get_seq_length())
        prefill = self._session.prefill
        if prefill is None:
            return
        if prefill.plan:
            check_growing(decoder_pass.cache)
        if self._session.decode_stops(prefill) or any(stop.kv_from is not None for stop in prefill.plan):
            check_readable(decoder_pass.cache, self._session.pruner.spec.name)

    def _layer_input(self, decoder_pass: DecoderPass, hidden: Tensor) -> DecoderInput:
        """What enters this layer, with the slot of each row."""
        if decoder_pass.current is not None:
            return replace(decoder_pass.current, hidden=hidden)
        prefill = self._session.prefill
        if prefill is not None:
            valid = prefill.valid
        elif isinstance(decoder_pass.mask, Tensor) and decoder_pass.mask.ndim == 2:
            valid = decoder_pass.mask[:, -decoder_pass.length :].bool()
        else:
            valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        decoder_pass.pad_left = bool(valid[:, -1].all())
        device = self._bookkeeping_device(decoder_pass, hidden)
        decoder_pass.first_slots = valid.long().argmax(dim=1).to(device)
        decoder_pass.current = DecoderInput(hidden, Rows.identity(valid.to(device)))
        return decoder_pass.current

    def _bookkeeping_device(self, decoder_pass: DecoderPass, hidden: Tensor) -> torch.device:
        """The device of all row and column indices; layers may be on other devices."""
        if self._session.prefill is not None:
            return self._session.prefill.input_ids.device
        return hidden.device if decoder_pass.past is None else decoder_pass.past.columns[0].valid.device

    def _key_columns(
        self,
        decoder_pass: DecoderPass,
        prefill: Prefill | None,
        layer: int,
        past: KeyColumns,
        layer_input: DecoderInput,
    ) -> KeyColumns:
        """Key columns of a layer after this pass; a layer that reads the keys of another one has its columns."""
        source = self._parts.kv_sources[layer]
        return (
            decoder_pass.extend(past, layer_input, prefill)
            if source == layer
            else decoder_pass.shared(past, layer_input, source)
        )

    def _cut_and_count(
        self, decoder_pass: DecoderPass, prefill: Prefill, layer: int, layer_input: DecoderInput, kwargs: dict[str, Any]
    ) -> DecoderInput:
        """Run every stop before this layer, and count the tokens that are left."""
        if layer == 0 or len(prefill.done) < len(prefill.plan):
            with prefill.stopwatch.running():
                layer_input = self._run_stops(decoder_pass, prefill, layer, layer_input, kwargs)
        counts = prefill.count(layer_input.rows)
        prefill.attended.append(counts)
        prefill.cached.append(counts)
        prefill.through_mlp.append(counts)
        return layer_input

    def _run_stops(
        self, decoder_pass: DecoderPass, prefill: Prefill, layer: int, layer_input: DecoderInput, kwargs: dict[str, Any]
    ) -> DecoderInput:
        """Store the layer's input for views, and run every stop before this layer."""
        if layer == 0:
            layer_input = self._apply_vision_cuts(decoder_pass, prefill, layer_input)
        if _LAYER_NEEDS & set(self._session.pruner.needs):
            deepest = max((stop.site.decoder_layer for stop in prefill.plan), default=-1)
            if layer <= deepest:
                prefill.layers[layer] = self._snapshot(decoder_pass, prefill, layer_input, kwargs)
        while (stop := prefill.next_decoder_stop(layer, "in")) is not None:
            layer_input = self._run_stop(decoder_pass, prefill, stop, layer, layer_input)
            if layer in prefill.layers:
                prefill.layers[layer] = self._snapshot(decoder_pass, prefill, layer_input, kwargs)
        return layer_input

    @staticmethod
    def _snapshot(
        decoder_pass: DecoderPass, prefill: Prefill, layer_input: DecoderInput, kwargs: dict[str, Any]
    ) -> LayerSnapshot:
        embeddings = decoder_pass.embeddings(layer_input, kwargs.get("position_embeddings"))
        call = (
            shorten_arguments(other_arguments(kwargs), decoder_pass.length, layer_input.positions())
            if decoder_pass.cut
            else other_arguments(kwargs)
        )
        return snapshot(prefill, layer_input, embeddings, call)

    def _run_stop(
        self, decoder_pass: DecoderPass, prefill: Prefill, stop: Stop, layer: int, layer_input: DecoderInput
    ) -> DecoderInput:
        """Run one stop: ask the pruner, remove rows, and prune the caches of earlier layers if the stop says so."""
        position = len(prefill.done)
        selections, _ = decide(self._session.pruner, prefill, position, prefill.units, self._session.joint)
        prefill.records += record(prefill, stop, position, selections)
        layer_input = self._take_rows(decoder_pass, prefill, layer_input, selections, merge=True)
        prefill.done.append(stop)
        last = layer if stop.site.point == "mid" else layer - 1
        if stop.kv_from is not None and decoder_pass.cut and stop.kv_from <= last:
            prune_past_kv(decoder_pass, stop.kv_from, last, layer_input)
            prefill.cached[stop.kv_from :] = [prefill.count(layer_input.rows)] * (len(prefill.cached) - stop.kv_from)
        if len(prefill.done) == len(prefill.plan):
            prefill.layers.clear()
        return layer_input

    def _split_layer(
        self,
        decoder_pass: DecoderPass,
        prefill: Prefill,
        module: nn.Module,
        layer: int,
        layer_input: DecoderInput,
        rest: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Cut the next call of a layer between its attention and its MLP."""
        split = SplitLayer(module, self._parts.family.attention, self._parts.family.mlp)
        if layer not in self._checked_layers:
            given = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, "hidden_states")}
            start = first_rows(given, decoder_pass.length, 2) | {"attention_mask": None, "position_ids": None}
            few = torch.arange(2, device=layer_input.hidden.device)[None]
            start["position_embeddings"] = gather_embeddings(first_sample(kwargs["position_embeddings"]), few)
            beside = first_rows({str(place): each for place, each in enumerate(rest)}, decoder_pass.length, 2)
            split.check(layer_input.hidden[:1, :2], *beside.values(), **start)
            self._checked_layers.add(layer)

        def run(hidden: Tensor, *args: Any, **named: Any) -> Any:
            prefill.middle = split.first(hidden, *args, **named)
            with prefill.stopwatch.running():
                after = replace(layer_input, hidden=prefill.middle.residual)
                while (stop := prefill.next_decoder_stop(layer, "mid")) is not None:
                    after = self._run_stop(decoder_pass, prefill, stop, layer, after)
                    prefill.middle = replace(prefill.middle, residual=after.hidden)
            prefill.middle = None
            prefill.through_mlp[layer] = prefill.count(after.rows)
            return split.second(after.hidden, *args, **named)

        self._switches[layer].redirect(run)

    def _apply_vision_cuts(
        self, decoder_pass: DecoderPass, prefill: Prefill, layer_input: DecoderInput
    ) -> DecoderInput:
        """Remove what was dropped before the decoder; merged rows are already in their slots."""
        vision = prefill.vision
        if vision.cuts:
            whole = list(prefill.units)
            for cut in vision.cuts:
                selections = [cut.units[unit.span.index] for unit in whole]
                placed = [(rebase(unit, goal.span), kept) for (unit, kept), goal in zip(selections, whole, strict=True)]
                prefill.records += record(prefill, cut.stop, cut.position, placed)
            final = [vision.units[unit.span.index] for unit in whole]
            kept = [Kept(unit.indices, log_weights=vision.log_weights.get(unit.span.index)) for unit in final]
            prefill.done = [cut.stop for cut in vision.cuts]
            layer_input = self._take_rows(
                decoder_pass, prefill, layer_input, list(zip(whole, kept, strict=True)), merge=False
            )
            for unit, final_unit in zip(prefill.units, final, strict=True):
                unit.sizes = final_unit.sizes
        if prefill.frames:
            prefill.join_frames()
        return layer_input

    def _take_rows(
        self, decoder_pass: DecoderPass, prefill: Prefill, layer_input: DecoderInput, selections: Any, *, merge: bool
    ) -> DecoderInput:
        shorter = take(prefill, layer_input, selections, merge=merge, pad_left=decoder_pass.pad_left)
        if shorter is layer_input:
            return layer_input
        decoder_pass.cut = True
        decoder_pass.current = shorter
        return shorter

    def _cut_rows(self) -> tuple[Rows, list[RowUpdate]] | None:
        """The rows of the present pass and the changes made to them; `None` if nothing was cut."""
        decoder_pass, prefill = self._pass, self._session.prefill
        if decoder_pass is None or prefill is None or not decoder_pass.cut or decoder_pass.current is None:
            return None
        return decoder_pass.current.rows, prefill.row_updates
