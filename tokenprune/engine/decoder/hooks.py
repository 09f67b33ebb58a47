"""Hooks on the decoder: cut rows at a layer, and give every layer the mask and positions of its own length."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokenprune.engine.cache.caches import CachedUnit, CacheState, Columns, check_growing, check_readable, held_columns
from tokenprune.engine.cache.offsets import offsets_of
from tokenprune.engine.cache.pruned_cache import begin_reading, end_reading, remember, state_of
from tokenprune.engine.decision import decide
from tokenprune.engine.decoder.cut import DecoderInput, record, take
from tokenprune.engine.decoder.decoder_pass import DecoderPass, snapshot
from tokenprune.engine.decoder.deepstack import add_deepstack
from tokenprune.engine.decoder.layer_arguments import first_rows, others, shortened
from tokenprune.engine.decoder.layer_calls import LayerCalls
from tokenprune.engine.decoder.masks import is_whole
from tokenprune.engine.decoder.records import record_of
from tokenprune.engine.decoder.retroactive_kv import prune_past_kv
from tokenprune.engine.patch.split_layer import ForwardSwitch, SplitLayer
from tokenprune.engine.state.prefill import LayerInput, Move, Prefill, rebase
from tokenprune.engine.state.rows import Rows, gather_embeddings, spread_rows
from tokenprune.errors import IncompatibleError
from tokenprune.families.supported import CACHE_NAMES, cache_in
from tokenprune.pruner import Kept, Stop

if TYPE_CHECKING:
    from tokenprune.engine.session import Session

#: Needs for which the inputs of the layers before a cut are kept until the last cut.
_LAYER_NEEDS = frozenset({"hidden", "qkv", "attention", "final_norm"})


class DecoderHooks:
    """The decoder side of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parts = session.parts
        self._pass: DecoderPass | None = None
        self._switches: tuple[ForwardSwitch, ...] = ()
        self._calls = LayerCalls(session)
        self._whole: set[int] = set()
        """Layers that were checked to be the sum of their halves."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hooks."""
        text = self._parts.text
        if "layer" in self._session.pruner.spec.sites or self._session.memo is not None:
            self._switches = tuple(ForwardSwitch.before(layer, undo) for layer in self._parts.layers)
        add_deepstack(text, self._shortened, undo)
        self._calls.install(undo)
        undo.callback(text.register_forward_pre_hook(self._before_text, with_kwargs=True).remove)
        undo.callback(text.register_forward_hook(self._after_text).remove)
        for index, layer in enumerate(self._parts.layers):
            undo.callback(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True).remove)

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """One forward pass; where it breaks off after it has cut, its cache is of no use any more."""
        around, self._pass = self._pass, None
        try:
            yield
        finally:
            broken, self._pass = self._pass, around
            if broken is not None:
                end_reading(broken.cache)
                if broken.cut and broken.past is None and broken.cache is not None:
                    remember(broken.cache, None, self._session.owner)
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
        past = state_of(cache, self._session.owner)
        self._calls.forget()
        length = embeddings.shape[1]
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(seen, seen + length, device=embeddings.device)[None]
        mask = kwargs.get("attention_mask")
        compact = self._session.positions == "compact" and position_ids.ndim == 2
        self._pass = DecoderPass(mask, position_ids.to(embeddings.device), length, compact, cache, past)
        begin_reading(cache)
        if prefill is not None:
            prefill.embeddings = embeddings
        if prefill is None and past is None:
            return None
        if len(set(self._parts.kv_sources)) < len(self._parts.kv_sources):
            # layers that share a cache would be given the last row alone, which the bookkeeping of rows does not know
            kwargs = {**kwargs, "logits_to_keep": None}
        if past is None:
            return args, kwargs
        given = mask.values() if isinstance(mask, dict) else (mask,)
        if prefill is not None and any(is_whole(each) for each in given):
            self._pass.whole = True  # images that are seen both ways: only the model's own masks say so
            return args, {**kwargs, "position_ids": position_ids}
        # the layers get masks of their own; a four-dimensional mask makes the text model build none
        placeholder: Any = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=embeddings.device)
        if isinstance(mask, dict):
            placeholder = dict.fromkeys(mask, placeholder)
        return args, {**kwargs, "attention_mask": placeholder, "position_ids": position_ids}

    def _after_text(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module, args
        running, self._pass = self._pass, None
        prefill = self._session.prefill
        if running is None:
            return None
        end_reading(running.cache)
        decode = running.past.decode if running.past is not None else ()
        if prefill is not None and len(prefill.done) == len(prefill.plan):
            self._session.records.append(record_of(prefill, self._session.pruner.spec.name))
            decode = decode or self._session.decode_stops(prefill)
        if running.cache is not None and (running.cut or running.past is not None or decode):
            self._remember(running, prefill, decode)
        if running.current is None or not running.cut:
            return None
        rows = running.current.rows
        return _replace_hidden(output, lambda hidden: spread_rows(hidden, rows))

    def _remember(self, running: DecoderPass, prefill: Prefill | None, decode: tuple[Stop, ...]) -> None:
        """Note what the cache holds now."""
        before = running.past or CacheState([], 0, self._parts.kv_sources)
        layers = [running.cache.layers[source] for source in self._parts.kv_sources]
        columns = [each.last(held_columns(layer)) for each, layer in zip(running.columns, layers, strict=True)]
        units = [] if prefill is None else [unit.span for unit in prefill.units]
        new = tuple(CachedUnit(u.sample, u.image, len(u.slots), u.grid, u.frames) for u in units)
        if new:
            offsets = offsets_of(self._parts.base, columns[0].valid.shape[0])
            before = replace(before.settled(), offsets=offsets)
        state = replace(
            before,
            columns=columns,
            logical_length=running.seen + running.length,
            units=(*before.units, *new),
            decode=decode,
        )
        remember(running.cache, state, self._session.owner)

    # --- the layers ---------------------------------------------------------------------------------------------

    def _before_layer(self, layer: int) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            running = self._pass
            if running is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            prefill = self._session.prefill
            if layer == 0:
                self._begin(running, kwargs)
            if prefill is None and running.past is None:
                return None
            present = self._present(running, hidden)
            if prefill is not None:
                present = self._chosen(running, prefill, layer, present, kwargs)
            past = running.past_columns(layer, present.hidden.shape[0], present.rows.slots.device)
            columns = self._columns(running, prefill, layer, past, present)
            running.columns.append(columns)
            running.entered.append(present.rows)
            running.counted.append(present.rows)
            if prefill is not None and _at(prefill, layer, "mid"):
                self._split(running, prefill, module, layer, present, args[1:], kwargs)
            if running.past is None and not running.cut:
                if prefill is not None and running.seen == 0 and len(prefill.done) < len(prefill.plan):
                    self._share(layer)
                return None  # nothing was taken out so far: leave every tensor as it came
            return self._calls.rewritten(running, layer, present, past, columns, args, kwargs)

        return hook

    def _share(self, layer: int) -> None:
        """Let the coming call of a layer that runs unpruned, with a cut after it, be answered from the memo."""
        memo = self._session.memo
        shares_cache = self._parts.kv_sources.count(self._parts.kv_sources[layer]) > 1
        if memo is None or shares_cache or self._switches[layer].redirected:
            return
        self._switches[layer].redirect(functools.partial(memo.layer, layer, self._switches[layer].forward))

    def _begin(self, running: DecoderPass, kwargs: dict[str, Any]) -> None:
        """Layer 0: now the cache is known, also where the text model has made it itself."""
        running.cache = cache_in(kwargs)
        if running.past is not None:
            running.seen = running.past.logical_length
        elif running.cache is not None:
            running.seen = int(running.cache.get_seq_length())
        prefill = self._session.prefill
        if prefill is None:
            return
        if prefill.plan:
            check_growing(running.cache)
        if self._session.decode_stops(prefill) or any(stop.kv_from is not None for stop in prefill.plan):
            check_readable(running.cache, self._session.pruner.spec.name)

    def _present(self, running: DecoderPass, hidden: Tensor) -> DecoderInput:
        """What enters this layer, with the bookkeeping of its rows."""
        if running.current is not None:
            return replace(running.current, hidden=hidden)
        prefill = self._session.prefill
        if prefill is not None:
            valid = prefill.valid
        elif isinstance(running.mask, Tensor) and running.mask.ndim == 2:
            valid = running.mask[:, -running.length :].bool()
        else:
            valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        running.pad_left = bool(valid[:, -1].all())
        home = self._home(running, hidden)
        running.start = valid.long().argmax(dim=1).to(home)
        running.current = DecoderInput(hidden, Rows.identity(valid.to(home)))
        return running.current

    def _home(self, running: DecoderPass, hidden: Tensor) -> torch.device:
        """Where the bookkeeping of rows and columns is, whatever devices the layers are on."""
        if self._session.prefill is not None:
            return self._session.prefill.input_ids.device
        return hidden.device if running.past is None else running.past.columns[0].valid.device

    def _columns(
        self, running: DecoderPass, prefill: Prefill | None, layer: int, past: Columns, present: DecoderInput
    ) -> Columns:
        """Key columns of a layer after this pass; a layer that reads another one's keys has that one's columns."""
        source = self._parts.kv_sources[layer]
        return running.extend(past, present, prefill) if source == layer else running.shared(past, present, source)

    def _chosen(
        self, running: DecoderPass, prefill: Prefill, layer: int, present: DecoderInput, kwargs: dict[str, Any]
    ) -> DecoderInput:
        """Run every stop that enters this layer, and count the tokens that are left."""
        if layer == 0 or len(prefill.done) < len(prefill.plan):
            with prefill.stopwatch.running():
                present = self._stops(running, prefill, layer, present, kwargs)
        counts = prefill.count(present.rows)
        prefill.attended.append(counts)
        prefill.cached.append(counts)
        prefill.through_mlp.append(counts)
        return present

    def _stops(
        self, running: DecoderPass, prefill: Prefill, layer: int, present: DecoderInput, kwargs: dict[str, Any]
    ) -> DecoderInput:
        """Keep what views may ask for, and run every stop that enters this layer."""
        if layer == 0:
            present = self._embedded(running, prefill, present)
        if _LAYER_NEEDS & set(self._session.pruner.needs):
            deepest = max((stop.site.decoder_layer for stop in prefill.plan), default=-1)
            if layer <= deepest:
                prefill.layers[layer] = self._snapshot(running, prefill, present, kwargs)
        while (stop := _at(prefill, layer, "in")) is not None:
            present = self._stop(running, prefill, stop, layer, present)
            if layer in prefill.layers:
                prefill.layers[layer] = self._snapshot(running, prefill, present, kwargs)
        return present

    @staticmethod
    def _snapshot(running: DecoderPass, prefill: Prefill, present: DecoderInput, kwargs: dict[str, Any]) -> LayerInput:
        embeddings = running.embeddings(present, kwargs.get("position_embeddings"))
        call = shortened(others(kwargs), running.length, present.positions()) if running.cut else others(kwargs)
        return snapshot(prefill, present, embeddings, call)

    def _stop(
        self, running: DecoderPass, prefill: Prefill, stop: Stop, layer: int, present: DecoderInput
    ) -> DecoderInput:
        """One stop: decide, take rows out, and reach back where it says so."""
        position = len(prefill.done)
        selections, _ = decide(self._session.pruner, prefill, position, prefill.units, self._session.joint)
        prefill.records += record(prefill, stop, position, selections)
        present = self._cut(running, prefill, present, selections, merge=True)
        prefill.done.append(stop)
        last = layer if stop.site.point == "mid" else layer - 1
        if stop.kv_from is not None and running.cut and stop.kv_from <= last:
            prune_past_kv(running, stop.kv_from, last, present)
            prefill.cached[stop.kv_from :] = [prefill.count(present.rows)] * (len(prefill.cached) - stop.kv_from)
        if len(prefill.done) == len(prefill.plan):
            prefill.layers.clear()
        return present

    def _split(
        self,
        running: DecoderPass,
        prefill: Prefill,
        module: nn.Module,
        layer: int,
        present: DecoderInput,
        rest: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Let the coming call of a layer be cut between attention and MLP."""
        split = SplitLayer(module, self._parts.family.attention, self._parts.family.mlp)
        if layer not in self._whole:
            given = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, "hidden_states")}
            start = first_rows(given, running.length, 2) | {"attention_mask": None, "position_ids": None}
            few = torch.arange(2, device=present.hidden.device)[None]
            start["position_embeddings"] = gather_embeddings(_first_sample(kwargs["position_embeddings"]), few)
            beside = first_rows({str(place): each for place, each in enumerate(rest)}, running.length, 2)
            split.check(present.hidden[:1, :2], *beside.values(), **start)
            self._whole.add(layer)

        def run(hidden: Tensor, *args: Any, **named: Any) -> Any:
            prefill.middle = split.first(hidden, *args, **named)
            with prefill.stopwatch.running():
                after = replace(present, hidden=prefill.middle.residual)
                while (stop := _at(prefill, layer, "mid")) is not None:
                    after = self._stop(running, prefill, stop, layer, after)
                    prefill.middle = replace(prefill.middle, residual=after.hidden)
            prefill.middle = None
            prefill.through_mlp[layer] = prefill.count(after.rows)
            return split.second(after.hidden, *args, **named)

        self._switches[layer].redirect(run)

    def _embedded(self, running: DecoderPass, prefill: Prefill, present: DecoderInput) -> DecoderInput:
        """Take out what was decided before the decoder; the emitted rows already stand in place."""
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
            present = self._cut(running, prefill, present, list(zip(whole, kept, strict=True)), merge=False)
            for unit, known in zip(prefill.units, final, strict=True):
                unit.sizes = known.sizes
        if prefill.frames:
            prefill.join_frames()
        return present

    def _cut(
        self, running: DecoderPass, prefill: Prefill, present: DecoderInput, selections: Any, *, merge: bool
    ) -> DecoderInput:
        shorter = take(prefill, present, selections, merge=merge, pad_left=running.pad_left)
        if shorter is present:
            return present
        running.cut = True
        running.current = shorter
        return shorter

    def _shortened(self) -> tuple[Rows, list[Move]] | None:
        """The rows of the running pass, where some were cut."""
        running, prefill = self._pass, self._session.prefill
        if running is None or prefill is None or not running.cut or running.current is None:
            return None
        return running.current.rows, prefill.moves


def _at(prefill: Prefill, layer: int, point: str) -> Stop | None:
    """The next stop, where it lies at this point of this layer."""
    if len(prefill.done) == len(prefill.plan):
        return None
    site = prefill.parts.family.made_at(prefill.plan[len(prefill.done)].site)
    if site.kind in ("input", "layer") and (site.decoder_layer, site.point) == (layer, point):
        return prefill.plan[len(prefill.done)]
    return None


def _first_sample(embeddings: Any) -> Any:
    return tuple(part[:1] for part in embeddings) if isinstance(embeddings, tuple) else embeddings[:1]


def _replace_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The text model's output with its last hidden states changed."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.last_hidden_state = change(output.last_hidden_state)
    return output
