"""The state of a `with pruned(...)` block: the pruner's plan, the running forward pass, and the records."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.checkpoints.joint import JointSpace
from tokenprune.engine.cache.pruned_cache import PruningSettings, SessionHandle, give_back_offsets, is_pruned
from tokenprune.engine.generate_call import GenerateCall, UseCacheOverride
from tokenprune.engine.observe.encoder_observer import observes_encoder
from tokenprune.engine.state.encoder_run import EncoderObservation, EncoderRun
from tokenprune.engine.state.image_spans import ImageSpan
from tokenprune.engine.state.prefill import Prefill, Unit, VisionState, is_per_token, open_prefill
from tokenprune.engine.state.prefill_memo import PrefillMemo
from tokenprune.engine.state.stopwatch import Stopwatch
from tokenprune.errors import IncompatibleError, NothingPrunedError
from tokenprune.families.family import Parts
from tokenprune.families.supported import cache_in
from tokenprune.pruner import PositionPolicy, Pruner, PruneRecord, Stop
from tokenprune.record import StepRecord


class Session:
    """A pruned model inside the `with` block, and what was pruned so far.

    Several threads may use it. One forward pass runs at a time, and `records` holds the passes of all threads.

    Attributes:
        records: One `PruneRecord` per forward pass with images, in the order in which the passes ended.
        steps: One `StepRecord` per decoding step, for pruners with a stop at every step.
        stopwatch: When the views and decisions of prefills began and ended.
    """

    def __init__(
        self,
        parts: Parts,
        pruner: Pruner,
        budget: Budget,
        *,
        positions: PositionPolicy | None = None,
        joint: JointSpace | None = None,
        frames: bool = False,
        memo: PrefillMemo | None = None,
    ) -> None:
        self.parts = parts
        self.pruner = pruner
        self.budget = budget
        self.positions: PositionPolicy = positions or pruner.positions
        self.joint = joint
        self.frames = frames
        self.memo = memo
        self.stopwatch = Stopwatch()
        self.steps: list[StepRecord] = []
        self.records: list[PruneRecord] = []
        self.handle = SessionHandle(parts.model, PruningSettings.of(parts, pruner, self.positions))
        """The session as its caches refer to it."""
        self.lock = threading.RLock()
        """Held by the thread that runs the model; only this thread uses the attributes below."""
        self.prefill: Prefill | None = None
        self._encoded_ahead: Prefill | None = None
        self._use_cache = UseCacheOverride()
        self._exclusive: contextlib.ExitStack | None = None
        """Releases the lock that `generate` holds until the end of its prefill."""
        self._plans: dict[tuple[int, Budget], tuple[Stop, ...]] = {}

    @property
    def last(self) -> PruneRecord:
        """The newest record of any thread.

        Raises:
            NothingPrunedError: No forward pass had images yet.
        """
        if not self.records:
            raise NothingPrunedError(
                "no image has passed through the model in this session", hint="run the model inside the `with` block"
            )
        return self.records[-1]

    def plan(self, tokens: int, budget: Budget | None = None) -> tuple[Stop, ...]:
        """The pruner's stops for images with `tokens` visual tokens, checked and in running order.

        Raises:
            BudgetError: The budget cannot be met.
            IncompatibleError: A site does not exist, or the stops are not in running order.
        """
        key = (tokens, budget or self.budget)
        if key not in self._plans:
            stops = tuple(self.pruner.plan(self.parts.facts, key[1], tokens))
            order = [stop.site.order for stop in stops]
            if order != sorted(set(order)):
                raise IncompatibleError(
                    f"`{self.pruner.spec.name}` plans its stops out of order: {[str(s.site) for s in stops]}"
                )
            self._check_sites(stops)
            self._plans[key] = stops
        return self._plans[key]

    def _video_stops(self, units: Sequence[Unit]) -> dict[int, tuple[Stop, ...]]:
        """Stops by number of tokens: for single frames, with their share of the budget, and for whole videos.

        Raises:
            IncompatibleError: The budget is in tokens and the videos differ in length.
        """
        counts = Counter(unit.span.sample for unit in units)
        if self.budget.tokens is not None and len(set(counts.values())) > 1:
            raise IncompatibleError(
                f"videos of {sorted(set(counts.values()))} frames in one batch, with a budget in tokens",
                hint="give the budget as a ratio, or batch videos of one length",
            )
        stops = {}
        for unit in units:
            frames = counts[unit.span.sample]
            whole = unit.original * frames
            share = Budget(ratio=self.budget.count(whole) / whole, account=self.budget.account)
            stops[unit.original] = _of_prefill(self.plan(unit.original, share if frames > 1 else None))
            stops[whole] = self.prefill_stops(whole)
        return stops

    def _check_sites(self, stops: Sequence[Stop]) -> None:
        facts, name = self.parts.facts, self.pruner.spec.name
        for site in (stop.site for stop in stops):
            if site.kind not in self.pruner.spec.sites:
                raise IncompatibleError(
                    f"`{name}` plans a cut at `{site}`, but its spec declares the sites {list(self.pruner.spec.sites)}",
                    hint=f"add {site.kind!r} to `sites` in its `@pruner(...)`",
                )
            reason = self.parts.refusal(self.parts.family.made_at(site).kind)
            if reason is not None:
                raise IncompatibleError(
                    f"`{name}` cuts at `{site}`: {reason}",
                    hint="choose a pruner that cuts at `input` or at a decoder layer",
                )
            if site.decoder_layer >= facts.num_layers:
                raise IncompatibleError(
                    f"`{name}` cuts at decoder layer {site.layer}, but the model has {facts.num_layers} layers",
                    hint=f"cut at a layer up to {facts.num_layers - 1}",
                )
            if site.kind == "tower" and site.layer > facts.encoder_read_layer:
                raise IncompatibleError(
                    f"`{name}` cuts at encoder layer {site.layer}, but the projector reads layer "
                    f"{facts.encoder_read_layer}",
                    hint=f"cut at an encoder layer up to {facts.encoder_read_layer}",
                )
            if site.kind == "decode" and site.layer >= 1 and self.parts.layer_types[site.layer - 1] != "full_attention":
                raise IncompatibleError(
                    f"`{name}` chooses its views at decoding steps by layer {site.layer - 1}, whose cache holds the "
                    f"last tokens only ({self.parts.layer_types[site.layer - 1]})",
                    hint="choose a layer after one with full attention, or another pruner",
                )
            if site.kind == "decode" and site.layer < 1:
                raise IncompatibleError(
                    f"`{name}` plans a stop at decoding steps from layer {site.layer}",
                    hint="the attention of the layer before is needed, so use layer 1 or a later one",
                )

    def prefill_stops(self, tokens: int) -> tuple[Stop, ...]:
        """The stops of a prefill, for images with `tokens` visual tokens."""
        return _of_prefill(self.plan(tokens))

    def decode_stops(self, prefill: Prefill) -> tuple[Stop, ...]:
        """The stops of every decoding step after a prefill."""
        return tuple(stop for stop in self.plan(prefill.units[0].original) if stop.site.kind == "decode")

    # --- calls of the multimodal model --------------------------------------------------------------------------

    @contextlib.contextmanager
    def forward_pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """One forward pass with these arguments, in the thread that holds the lock.

        Raises:
            NothingPrunedError: The pass ended without reaching a planned cut.
        """
        inputs = dict(kwargs)
        if args:  # models are called with keyword arguments; `model(input_ids)` is the one exception
            inputs.setdefault("input_ids", args[0])
        outer = self.prefill if self._encoded_ahead is None else None  # a pruner may call the model inside a pass
        give_back_offsets(self.parts.base, cache_in(inputs))
        try:
            self.prefill = self._prefill_of(inputs)
            yield
            self._check_all_cut(self.prefill)
        finally:
            if self._exclusive is not None and self._encoded_ahead is None:
                self._exclusive.close()
            self.prefill = outer

    def _open_prefill(
        self, inputs: Mapping[str, Any], known_spans: Callable[[Tensor], tuple[ImageSpan, ...]] | None = None
    ) -> Prefill | None:
        """The planned prefill of a call with images; `None` for a call without images."""
        found = open_prefill(self.parts, inputs, known_spans)
        if found is None:
            return None
        input_ids, valid, spans = found
        units = [Unit.whole(span) for span in spans]
        stops = {unit.original: self.prefill_stops(unit.original) for unit in units}
        if self.frames:
            stops |= self._video_stops(units)
        return Prefill(
            parts=self.parts,
            input_ids=input_ids,
            valid=valid,
            vision=VisionState(
                pixels={name: inputs[name] for name in self.parts.family.pixels if inputs.get(name) is not None},
                units={unit.span.index: unit for unit in units},
                observed=self._observation(inputs) if known_spans is None else EncoderObservation(),
            ),
            units=units,
            stops=stops,
            frames=self.frames,
            memo=self.memo,
            stopwatch=self.stopwatch,
        )

    def _observation(self, inputs: Mapping[str, Any]) -> EncoderObservation:
        """An empty observation of an encoder that cannot be cut, with its row layout if the pruner needs it."""
        if self.parts.observed_encoder is None or not observes_encoder(self.pruner):
            return EncoderObservation()
        if all(inputs.get(name) is None for name in self.parts.family.pixels):
            return EncoderObservation()
        return EncoderObservation(
            self.parts.observed_encoder.about.rows(self.parts.model.config, inputs, self.parts.visuals(inputs))
        )

    def encoder_runs(self) -> list[EncoderRun] | None:
        """The encoder runs observed in this pass; `None` if the pruner needs nothing of the encoder."""
        return self.prefill.vision.observed.runs if self.prefill is not None and observes_encoder(self.pruner) else None

    def _prefill_of(self, inputs: Mapping[str, Any]) -> Prefill | None:
        """The prefill of a call; if `generate` has encoded the images before, their state is taken over.

        `generate` may repeat each prompt, for beams or several answers.
        """
        ahead, self._encoded_ahead = self._encoded_ahead, None
        if ahead is None:
            return self._open_prefill(inputs)

        def known_spans(input_ids: Tensor) -> tuple[ImageSpan, ...]:
            copies, rest = divmod(len(input_ids), len(ahead.input_ids))
            if rest or input_ids.shape[1] != ahead.input_ids.shape[1]:
                raise IncompatibleError(
                    f"{len(ahead.input_ids)} prompts were encoded, but {len(input_ids)} other ones reach the decoder",
                    hint="pass the images of the new turn only",
                )
            spans = [
                replace(span, sample=span.sample * copies + copy, slots=span.slots.to(input_ids.device))
                for span in (unit.span for unit in ahead.units)
                for copy in range(copies)
            ]
            return tuple(sorted(spans, key=lambda span: (span.sample, span.image)))

        mask, input_ids = inputs.get("attention_mask"), inputs.get("input_ids")
        if mask is not None and input_ids is not None and not is_per_token(mask):  # `generate` has built full masks
            inputs = {**inputs, "attention_mask": ahead.valid.repeat_interleave(len(input_ids) // len(ahead.valid), 0)}
        prefill = self._open_prefill(inputs, known_spans)
        if prefill is not None:
            prefill.vision = ahead.vision  # includes the pruner's state from its stops there
        return prefill

    def wrap_generate(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `generate`: it encodes images before it calls the model, and a cut there must know the prompt."""

        @functools.wraps(generate)
        def run(*args: Any, **kwargs: Any) -> Any:
            call = GenerateCall.of(self.parts.model, generate, args, kwargs)
            inputs = dict(call.arguments)
            input_ids = inputs.get("input_ids", inputs.get("inputs"))
            cache = cache_in(inputs)
            mask = inputs.get("attention_mask")
            if input_ids is not None and cache is not None and (mask is None or mask.shape[1] == input_ids.shape[1]):
                input_ids = input_ids[
                    :, int(cache.get_seq_length()) :
                ]  # the whole conversation was passed, not only its new turn
            inputs["input_ids"] = input_ids
            has_pixels = any(inputs.get(name) is not None for name in self.parts.family.pixels)
            kwargs |= call.without_compilation()
            if has_pixels or cache is not None:
                kwargs |= self._use_cache.overrides(call)
            with contextlib.ExitStack() as exclusive:
                exclusive.enter_context(self.lock)
                exclusive.callback(self._end_generate)
                self._exclusive = exclusive
                if is_pruned(cache):
                    call.check_turn()
                    give_back_offsets(self.parts.base, cache)
                if input_ids is not None and has_pixels:
                    call.check(input_ids.shape[1])
                    self._encoded_ahead = self.prefill = self._open_prefill(inputs)
                    if self.prefill is not None and self.prefill.plan:
                        call.check_cache()
                    if self.prefill is not None and self.decode_stops(self.prefill):
                        call.check_views()
                return generate(*args, **kwargs)

        return run

    def _end_generate(self) -> None:
        """Forget the prompt of a `generate` call, after its prefill or after a failure."""
        self._exclusive = self._encoded_ahead = self.prefill = None

    def _check_all_cut(self, prefill: Prefill | None) -> None:
        """Refuse a pass that ended without reaching every planned cut."""
        if prefill is not None and len(prefill.done) != len(prefill.plan):
            missed = [str(stop.site) for stop in prefill.plan[len(prefill.done) :]]
            raise NothingPrunedError(
                f"`{self.pruner.spec.name}` should have cut at {missed}, but the model did not run there",
                hint="please report this with the model's class and the transformers version",
            )


def _of_prefill(stops: Sequence[Stop]) -> tuple[Stop, ...]:
    return tuple(stop for stop in stops if stop.site.kind != "decode")
