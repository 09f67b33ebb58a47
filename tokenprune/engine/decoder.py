"""Hooks on the decoder: cut rows entering a layer, and give every layer the mask and positions of its own length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenprune.engine.caches import CacheState, Columns, check_growing
from tokenprune.engine.chunk import Chunk
from tokenprune.engine.cut import DecoderInput, decide, entered, record, take
from tokenprune.engine.masks import causal_mask
from tokenprune.engine.rows import Rows, spread_rows
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import PruneRecord, Stop

if TYPE_CHECKING:
    from tokenprune.engine.session import Session

#: Needs for which the inputs of the layers before a cut are kept until the last cut.
_LAYER_NEEDS = frozenset({"hidden", "qkv", "attention", "final_norm"})


@dataclass
class _Pass:
    """One forward pass of the text model."""

    mask: Tensor | None
    position_ids: Tensor
    length: int
    cache: Any = None
    past: CacheState | None = None
    seen: int = 0
    """Tokens that the cache held before this pass, had it never been pruned."""
    current: DecoderInput | None = None
    pad_left: bool = True
    cut: bool = False
    """Rows were taken out in this pass."""
    unpruned: Columns | None = None
    columns: list[Columns] = field(default_factory=list)
    extended: dict[tuple[int, int], tuple[Columns, Rows, Columns]] = field(default_factory=dict)
    masks: dict[int, Tensor | None] = field(default_factory=dict)


class DecoderHooks:
    """The decoder side of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parts = session.parts
        self._pass: _Pass | None = None

    def install(self) -> list[RemovableHandle]:
        """Register the hooks."""
        text = self._parts.text
        handles = [
            text.register_forward_pre_hook(self._before_text, with_kwargs=True),
            text.register_forward_hook(self._after_text),
        ]
        for index, layer in enumerate(self._parts.layers):
            handles.append(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
        return handles

    # --- the text model -----------------------------------------------------------------------------------------

    def _before_text(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del module
        embeddings = kwargs.get("inputs_embeds")
        chunk = self._session.chunk
        if embeddings is None:
            if chunk is not None:
                raise IncompatibleError(
                    "the model passes its text model no `inputs_embeds`", hint="describe the family in a plugin"
                )
            return None
        cache = kwargs.get("past_key_values")
        past = self._session.caches.find(cache, len(self._parts.layers))
        length = embeddings.shape[1]
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(seen, seen + length, device=embeddings.device)[None]
        mask = kwargs.get("attention_mask")
        self._pass = _Pass(mask, position_ids, length, cache, past)
        if chunk is not None:
            chunk.embeddings = embeddings
        if past is None:
            return None
        # the layers get masks of their own; a four-dimensional mask makes the text model build none
        placeholder = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=embeddings.device)
        return args, {**kwargs, "attention_mask": placeholder, "position_ids": position_ids}

    def _after_text(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module, args
        running, self._pass = self._pass, None
        chunk = self._session.chunk
        if running is None:
            return None
        if chunk is not None and len(chunk.done) == len(chunk.plan):
            self._session.records.append(self._finish(chunk))
        if running.cache is not None and (running.cut or running.past is not None):
            state = CacheState(running.columns, running.seen + running.length)
            self._session.caches.remember(running.cache, state)
        if running.current is None or not running.cut:
            return None
        rows = running.current.rows
        return _replace_hidden(output, lambda hidden: spread_rows(hidden, rows))

    # --- the layers ---------------------------------------------------------------------------------------------

    def _before_layer(self, layer: int) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            del module
            running = self._pass
            if running is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            chunk = self._session.chunk
            if layer == 0:
                self._begin(running, kwargs)
            if chunk is None and running.past is None:
                return None
            present = self._present(running, hidden, kwargs)
            if chunk is not None:
                present = self._stops(running, chunk, layer, present)
            past = self._past_columns(running, layer, present)
            columns = self._columns(running, past, present)
            running.columns.append(columns)
            if running.past is None and not running.cut:
                return None  # nothing was taken out so far: leave every tensor as it came
            return self._rewritten(running, present, past, columns, args, kwargs)

        return hook

    def _begin(self, running: _Pass, kwargs: dict[str, Any]) -> None:
        """Layer 0: now the cache is known, also where the text model has made it itself."""
        running.cache = kwargs.get("past_key_values")
        if running.past is not None:
            running.seen = running.past.logical_length
        elif running.cache is not None:
            running.seen = int(running.cache.get_seq_length())
        chunk = self._session.chunk
        if chunk is not None and chunk.plan:
            check_growing(running.cache)

    def _present(self, running: _Pass, hidden: Tensor, kwargs: dict[str, Any]) -> DecoderInput:
        """What enters this layer, with the bookkeeping of its rows."""
        if running.current is not None:
            return DecoderInput(
                hidden,
                running.current.position_ids,
                running.current.position_embeddings,
                running.current.rows,
                running.current.log_weights,
            )
        batch = hidden.shape[0]
        chunk = self._session.chunk
        if chunk is not None:
            valid = chunk.valid
        elif running.mask is not None and running.mask.ndim == 2:
            valid = running.mask[:, -running.length :].bool()
        else:
            valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        running.pad_left = bool(valid[:, -1].all())
        cos, sin = kwargs["position_embeddings"]
        running.current = DecoderInput(
            hidden,
            running.position_ids.expand(batch, -1).to(hidden.device),
            (cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)),
            Rows.identity(valid.to(hidden.device)),
            None,
        )
        if chunk is not None:
            self._mark(chunk, 0, running.current.rows)
        return running.current

    def _stops(self, running: _Pass, chunk: Chunk, layer: int, present: DecoderInput) -> DecoderInput:
        """Run every stop that enters this layer."""
        started = time.perf_counter()
        if layer == 0 and chunk.vision.done:
            present = self._embedded(running, chunk, present)
        if _LAYER_NEEDS & set(self._session.pruner.needs):
            deepest = max((stop.site.decoder_layer for stop in chunk.plan), default=-1)
            if layer <= deepest:
                chunk.layers[layer] = entered(chunk, present)
        while len(chunk.done) < len(chunk.plan) and _enters(chunk.plan[len(chunk.done)], layer):
            stop = chunk.plan[len(chunk.done)]
            position = len(chunk.done)
            asked = [chunk.stop_for(unit, position).keep(unit.original) for unit in chunk.units]
            selections, _ = decide(self._session.pruner, chunk, position, self._session.joint)
            chunk.records += record(stop, selections, asked)
            present = self._cut(running, chunk, present, selections, merge=True)
            self._mark(chunk, layer, present.rows)
            chunk.done.append(stop)
            if layer in chunk.layers:
                chunk.layers[layer] = entered(chunk, present)
        if len(chunk.done) == len(chunk.plan):
            chunk.layers.clear()
        if present.hidden.is_cuda:
            torch.cuda.synchronize(present.hidden.device)
        chunk.seconds += time.perf_counter() - started
        return present

    def _embedded(self, running: _Pass, chunk: Chunk, present: DecoderInput) -> DecoderInput:
        """Take out what was decided before the decoder; the emitted rows already stand in place."""
        selections = [(unit, chunk.vision.kept[unit.span.index]) for unit in chunk.units]
        for position, stop in enumerate(chunk.vision.done):
            asked = [chunk.stop_for(unit, position).keep(unit.original) for unit in chunk.units]
            chunk.records += record(stop, selections, asked)
        chunk.done = [*chunk.vision.done]
        chunk.seconds += chunk.vision.seconds
        present = self._cut(running, chunk, present, selections, merge=False)
        self._mark(chunk, 0, present.rows)
        return present

    def _cut(
        self, running: _Pass, chunk: Chunk, present: DecoderInput, selections: Any, *, merge: bool
    ) -> DecoderInput:
        shorter = take(chunk, present, selections, merge=merge, pad_left=running.pad_left)
        if shorter is present:
            return present
        if self._session.positions == "compact":
            if running.position_ids.ndim != 2:
                raise IncompatibleError(
                    "compact positions are not defined for several position axes", hint="use `positions='keep'`"
                )
            shorter = self._compacted(running, shorter)
        running.cut = True
        running.current = shorter
        return shorter

    def _compacted(self, running: _Pass, shorter: DecoderInput) -> DecoderInput:
        """Renumber the rows of every sample without gaps, from the first row's own position on."""
        valid = shorter.rows.valid
        rank = valid.long().cumsum(dim=1) - 1
        first = shorter.position_ids.masked_fill(~valid, torch.iinfo(torch.long).max).amin(dim=1, keepdim=True)
        position_ids = torch.where(valid, first + rank, shorter.position_ids)
        return DecoderInput(
            shorter.hidden, position_ids, shorter.position_embeddings, shorter.rows, shorter.log_weights
        )

    def _past_columns(self, running: _Pass, layer: int, present: DecoderInput) -> Columns:
        """Key columns that a layer's cache held before this pass."""
        if running.past is not None:
            return running.past.columns[layer]
        if running.unpruned is None:
            batch, device = present.hidden.shape[0], present.hidden.device
            empty = Columns.empty(batch, device)
            if running.mask is not None and running.mask.ndim == 2:
                valid = running.mask[:, : running.seen].bool().to(device)
            else:
                valid = torch.ones((batch, running.seen), dtype=torch.bool, device=device)
            running.unpruned = Columns(valid, None, empty.shift)
        return running.unpruned

    def _columns(self, running: _Pass, past: Columns, present: DecoderInput) -> Columns:
        """Key columns of a layer after this pass; layers of equal past and rows share them."""
        key = (id(past), id(present.rows))
        if key not in running.extended:
            shift = past.shift
            if running.cut and self._session.positions == "compact":
                shift = shift + self._removed(running, present)
            columns = past.extend(present.rows.valid, present.log_weights, shift)
            running.extended[key] = (past, present.rows, columns)  # kept alive, so that ids stay theirs
        return running.extended[key][2]

    def _removed(self, running: _Pass, present: DecoderInput) -> Tensor:
        """How many positions the last token of every sample has moved down in this pass, (B,)."""
        valid = present.rows.valid
        new = present.position_ids.masked_fill(~valid, torch.iinfo(torch.long).min).amax(dim=1)
        original = running.position_ids.expand(valid.shape[0], -1).to(new.device)
        last = present.rows.slots.amax(dim=1, keepdim=True)
        return original.gather(1, last)[:, 0] - new

    def _rewritten(
        self,
        running: _Pass,
        present: DecoderInput,
        past: Columns,
        columns: Columns,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the layer with hidden states, mask and positions of its own length."""
        key = id(columns)
        if key not in running.masks:
            running.masks[key] = causal_mask(
                self._parts.text.config,
                columns.valid,
                present.rows.slots.shape[1],
                present.hidden.dtype,
                columns.log_weights,
            )
        embeddings = present.position_embeddings
        if self._session.positions == "compact":
            positions = (present.position_ids - past.shift[:, None]).clamp(min=0)
            embeddings = self._parts.rotary(present.hidden, position_ids=positions)
        changed = {
            **kwargs,
            "attention_mask": running.masks[key],
            "position_embeddings": embeddings,
            "position_ids": None,  # kernels must not read gaps as packed sequences
        }
        if args:
            return (present.hidden, *args[1:]), changed
        return args, {**changed, "hidden_states": present.hidden}

    # --- what was done ------------------------------------------------------------------------------------------

    def _mark(self, chunk: Chunk, layer: int, rows: Rows) -> None:
        """Note how many tokens every sample runs with from a layer on."""
        visual = torch.zeros(rows.slots.shape[0], dtype=torch.long, device=rows.slots.device)
        for unit in chunk.units:
            visual[unit.span.sample] += unit.tokens
        if chunk.timeline and chunk.timeline[-1][0] == layer:
            chunk.timeline.pop()
        chunk.timeline.append((layer, visual, rows.valid.sum(dim=1)))

    def _finish(self, chunk: Chunk) -> PruneRecord:
        num_layers = self._parts.facts.num_layers
        starts = [layer for layer, _, _ in chunk.timeline]
        spans = [end - start for start, end in zip(starts, [*starts[1:], num_layers], strict=True)]
        visual = torch.stack([visual for _, visual, _ in chunk.timeline], dim=1).tolist()
        everything = torch.stack([total for _, _, total in chunk.timeline], dim=1).tolist()
        original = [0] * len(visual)
        for unit in chunk.units:
            original[unit.span.sample] += unit.original

        def per_layer(counts: list[int]) -> tuple[int, ...]:
            return tuple(count for count, times in zip(counts, spans, strict=True) for _ in range(times))

        return PruneRecord(
            pruner=self._session.pruner.spec.name,
            units=tuple(chunk.records),
            visual_tokens=tuple(per_layer(counts) for counts in visual),
            sequence_lengths=tuple(per_layer(counts) for counts in everything),
            original_visual_tokens=tuple(original),
            decide_ms=1000.0 * chunk.seconds,
        )


def _enters(stop: Stop, layer: int) -> bool:
    return stop.site.kind in ("input", "layer") and stop.site.decoder_layer == layer


def _replace_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The text model's output with its last hidden states changed."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.last_hidden_state = change(output.last_hidden_state)
    return output
