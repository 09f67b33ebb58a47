"""`with pruned(model, pruner, budget) as session:` - the life of a pruned stock model."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn

from tokenprune.budget import Budget, BudgetLike
from tokenprune.engine.chunk import Chunk, Unit, Vision, is_per_token, open_chunk
from tokenprune.engine.compiled import Uncompiled
from tokenprune.engine.decoder import DecoderHooks
from tokenprune.engine.entrance import Entrance
from tokenprune.engine.internals import check_internals
from tokenprune.engine.layout import ImageSpan
from tokenprune.engine.look import Look, LookHooks, Run, looks
from tokenprune.engine.memo import MemoMethods, PrefillMemo
from tokenprune.engine.modes import Batching, CacheKeeper, Call
from tokenprune.engine.pruned_cache import Maker, Owner, give_back_offsets, is_pruned
from tokenprune.engine.stopwatch import Stopwatch
from tokenprune.engine.tower import TowerHooks
from tokenprune.errors import BudgetError, IncompatibleError, NothingPrunedError
from tokenprune.models.family import Parts
from tokenprune.models.joint import JointSpace
from tokenprune.models.loading import parts_of
from tokenprune.models.supported import cache_in
from tokenprune.plugins import Host, default_host
from tokenprune.pruner import PositionPolicy, Pruner, PruneRecord, Stop
from tokenprune.record import StepRecord

_MARK = "_tokenprune_session"


class Side(Protocol):
    """A part of the engine that puts something into a model."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Put it there; each step leaves with the stack what undoes it, before the next one may fail."""


class Session:
    """A model inside `pruned`: what was pruned so far.

    Several threads may use it: one forward pass runs at a time, and `records` has those of all threads.

    Attributes:
        records: One `PruneRecord` per forward pass that brought images, in the order in which they ended.
        steps: One `StepRecord` per decoding step, for pruners that choose a view of the cache at each.
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
        self.owner = Owner(parts.model, Maker.of(parts, pruner, self.positions))
        """The session, as its caches know it."""
        self.lock = threading.RLock()
        """Held by the thread that is inside the model; what follows is of that thread alone."""
        self.chunk: Chunk | None = None
        self._ahead: Chunk | None = None
        self._keeper = CacheKeeper()
        self._prefill: contextlib.ExitStack | None = None
        """Ends the part of the running `generate` in which no other thread may enter."""
        self._plans: dict[tuple[int, Budget], tuple[Stop, ...]] = {}

    @property
    def last(self) -> PruneRecord:
        """The newest record, of whatever thread.

        Raises:
            NothingPrunedError: No forward pass has brought an image yet.
        """
        if not self.records:
            raise NothingPrunedError(
                "no image has passed through the model in this session", hint="run the model inside the `with` block"
            )
        return self.records[-1]

    def plan(self, tokens: int, budget: Budget | None = None) -> tuple[Stop, ...]:
        """The pruner's stops for images of a number of visual tokens, checked and in running order.

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
        """Stops for single frames, with their share of the budget, and for the videos that they make.

        Raises:
            IncompatibleError: A budget in tokens for videos of several lengths.
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
                    f"`{name}` plans a view at decoding steps from layer {site.layer}",
                    hint="such a view is chosen by the layer before, so it begins at layer 1 or later",
                )

    def prefill_stops(self, tokens: int) -> tuple[Stop, ...]:
        """The stops of a prefill, for images of a number of visual tokens."""
        return _of_prefill(self.plan(tokens))

    def decode_stops(self, chunk: Chunk) -> tuple[Stop, ...]:
        """The stops of every decoding step after the prefill of a chunk."""
        return tuple(stop for stop in self.plan(chunk.units[0].original) if stop.site.kind == "decode")

    # --- calls of the multimodal model --------------------------------------------------------------------------

    @contextlib.contextmanager
    def passing(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """One forward pass with these arguments, in the thread that holds the lock.

        Raises:
            NothingPrunedError: The pass did not come by a place where it should have cut.
        """
        inputs = dict(kwargs)
        if args:  # stock models call their parts by keyword; `model(input_ids)` is the one exception
            inputs.setdefault("input_ids", args[0])
        around = self.chunk if self._ahead is None else None  # a pruner may run the model inside a pass
        give_back_offsets(self.parts.base, cache_in(inputs))
        try:
            self.chunk = self._adopt(inputs)
            yield
            self._check_done(self.chunk)
        finally:
            if self._prefill is not None and self._ahead is None:
                self._prefill.close()
            self.chunk = around

    def _open(
        self, inputs: Mapping[str, Any], known: Callable[[Tensor], tuple[ImageSpan, ...]] | None = None
    ) -> Chunk | None:
        """A chunk for the images of a call, planned; `None` where it brings none."""
        found = open_chunk(self.parts, inputs, known)
        if found is None:
            return None
        input_ids, valid, spans = found
        units = [Unit.whole(span) for span in spans]
        stops = {unit.original: self.prefill_stops(unit.original) for unit in units}
        if self.frames:
            stops |= self._video_stops(units)
        return Chunk(
            parts=self.parts,
            input_ids=input_ids,
            valid=valid,
            vision=Vision(
                pixels={name: inputs[name] for name in self.parts.family.pixels if inputs.get(name) is not None},
                units={unit.span.index: unit for unit in units},
                look=self._look(inputs) if known is None else Look(),
            ),
            units=units,
            stops=stops,
            frames=self.frames,
            memo=self.memo,
            stopwatch=self.stopwatch,
        )

    def _look(self, inputs: Mapping[str, Any]) -> Look:
        """The rows of an encoder that is only looked into, where the pruner looks."""
        if self.parts.look is None or not looks(self.pruner):
            return Look()
        if all(inputs.get(name) is None for name in self.parts.family.pixels):
            return Look()
        return Look(self.parts.look.about.rows(self.parts.model.config, inputs, self.parts.visuals(inputs)))

    def seen_runs(self) -> list[Run] | None:
        """What was seen of the encoder in this pass; `None` where the pruner does not look."""
        return self.chunk.vision.look.runs if self.chunk is not None and looks(self.pruner) else None

    def _adopt(self, inputs: Mapping[str, Any]) -> Chunk | None:
        """The chunk of a call; what `generate` ran ahead is taken over, for the prompt or for several copies of it."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._open(inputs)

        def known(input_ids: Tensor) -> tuple[ImageSpan, ...]:
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
        if mask is not None and input_ids is not None and not is_per_token(mask):  # `generate` has built masks already
            inputs = {**inputs, "attention_mask": ahead.valid.repeat_interleave(len(input_ids) // len(ahead.valid), 0)}
        chunk = self._open(inputs, known)
        if chunk is not None:
            chunk.vision = ahead.vision  # with what the pruner remembers of its stops there
        return chunk

    def generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """`generate` encodes the images before it calls the model: note its prompt, so that the tower can be cut."""

        @functools.wraps(generate)
        def run(*args: Any, **kwargs: Any) -> Any:
            call = Call.of(self.parts.model, generate, args, kwargs)
            inputs = dict(call.arguments)
            input_ids = inputs.get("input_ids", inputs.get("inputs"))
            cache = cache_in(inputs)
            mask = inputs.get("attention_mask")
            if input_ids is not None and cache is not None and (mask is None or mask.shape[1] == input_ids.shape[1]):
                input_ids = input_ids[:, int(cache.get_seq_length()) :]  # the whole conversation came, not its new turn
            inputs["input_ids"] = input_ids
            brings = any(inputs.get(name) is not None for name in self.parts.family.pixels)
            kwargs |= call.uncompiled()
            if brings or cache is not None:
                kwargs |= self._keeper.kept(call)
            with contextlib.ExitStack() as prefill:
                prefill.enter_context(self.lock)
                prefill.callback(self._forget)
                self._prefill = prefill
                if is_pruned(cache):
                    call.check_turn()
                    give_back_offsets(self.parts.base, cache)
                if input_ids is not None and brings:
                    call.check(input_ids.shape[1])
                    self._ahead = self.chunk = self._open(inputs)
                    if self.chunk is not None and self.chunk.plan:
                        call.check_cache()
                    if self.chunk is not None and self.decode_stops(self.chunk):
                        call.check_views()
                return generate(*args, **kwargs)

        return run

    def _forget(self) -> None:
        """The prompt of a `generate` has passed, or will not."""
        self._prefill = self._ahead = self.chunk = None

    def _check_done(self, chunk: Chunk | None) -> None:
        """Refuse a pass that has not come by every place where it should have cut."""
        if chunk is not None and len(chunk.done) != len(chunk.plan):
            missed = [str(stop.site) for stop in chunk.plan[len(chunk.done) :]]
            raise NothingPrunedError(
                f"`{self.pruner.spec.name}` should have cut at {missed}, but the model did not pass there",
                hint="please report this with the model's class and the transformers version",
            )


def _of_prefill(stops: Sequence[Stop]) -> tuple[Stop, ...]:
    return tuple(stop for stop in stops if stop.site.kind != "decode")


def resolve_pruner(pruner: str | Pruner | None, host: Host) -> Pruner:
    """A pruner by name (with its defaults), as it is, or `none`.

    Raises:
        UnknownNameError: No pruner of that name is installed.
    """
    if isinstance(pruner, Pruner):
        return pruner
    built: Pruner = host.pruners.get(pruner or "none").build()
    return built


def resolve_budget(
    pruner: Pruner, budget: Budget | BudgetLike | None, ratio: float | None, tokens: int | None
) -> Budget:
    """One budget out of the ways to say it.

    Raises:
        BudgetError: Said twice, out of range, or not said to a pruner that goes by it.
    """
    given = [value for value in (budget, ratio, tokens) if value is not None]
    if len(given) > 1:
        raise BudgetError("give one of `budget`, `ratio` and `tokens`", hint="for example `tokens=64`")
    if budget is not None:
        return Budget.parse(budget)
    if given:
        return Budget(ratio=ratio, tokens=tokens)
    if pruner.reads_budget:
        raise BudgetError(
            f"`{pruner.spec.name}` needs a budget: how many visual tokens stay of each image",
            hint="give it after the pruner: `64` tokens, a ratio like `0.25`, or `100%` to keep all",
        )
    return Budget(ratio=1.0)


@contextlib.contextmanager
def pruned(
    model: nn.Module,
    pruner: str | Pruner | None,
    budget: Budget | BudgetLike | None = None,
    *,
    ratio: float | None = None,
    tokens: int | None = None,
    positions: PositionPolicy | None = None,
    joint: JointSpace | None = None,
    frames: bool = False,
    memo: PrefillMemo | None = None,
    host: Host | None = None,
) -> Iterator[Session]:
    """Prune the visual tokens of a stock model inside the block; the model is restored bit for bit afterwards.

    Args:
        model: A stock transformers vision-language model, also wrapped: with an adapter of PEFT, compiled, or for
            data parallelism on one device. Inside the block the wrapper's own call and `generate` are pruned.
        pruner: Name of an installed pruner, a pruner object, or `None` for no pruning.
        budget: Visual tokens to keep per image: a whole number is tokens (`64`), a fraction or a percentage is a ratio
            (`0.25`, `"25%"`), as everywhere (`Budget.parse`). Only `None`, `none` and pruners that read no budget under
            their options do without.
        ratio: Keep ratio, in place of `budget`; 1 keeps all.
        tokens: Number of tokens, in place of `budget`.
        positions: `keep` or `compact` position ids; the pruner's own choice where it is not given.
        joint: Joint image-text space, for pruners that need one.
        frames: The images of each sample are the frames of one video: from the LLM input on, pruners see them as one
            unit. A budget in tokens counts the whole video; before the decoder each frame gets its share.
        memo: Shares the encoder and the layers before the first cut with other sessions on the same inputs.
        host: Plugins; the installed ones are loaded where it is not given.

    Raises:
        IncompatibleError: The model is not described, already pruned, or lacks what the pruner needs.
        BudgetError: The budget is missing, out of range or cannot be met.

    A KV cache that was pruned inside the block, and every copy of it, is used inside: of this block, or of another one
    with the same model, pruner and positions. Elsewhere it raises `IncompatibleError`.

    Several threads may use the model inside the block. Enter and leave it while no other thread runs the model.
    """
    host = host or default_host()
    chosen = resolve_pruner(pruner, host)
    wanted = resolve_budget(chosen, budget, ratio, tokens)
    parts = parts_of(model, host)
    given, model = model, parts.model  # inside its wrappers
    check_internals(parts)
    if "joint" in chosen.needs and joint is None:
        raise IncompatibleError(
            f"`{chosen.spec.name}` needs a joint image-text space (a CLIP text tower)",
            hint="pass `joint=` (see `tokenprune.models.JointSpace`), or choose a pruner without the need `joint`",
        )
    session = Session(parts, chosen, wanted, positions=positions, joint=joint, frames=frames, memo=memo)
    decoder = DecoderHooks(session)
    sides: list[Side] = [Uncompiled(given), Batching(model), Entrance(session, decoder), decoder]
    if parts.vision is not None:
        sides.append(TowerHooks(parts, parts.vision, chosen, joint, lambda: session.chunk, memo))
    elif memo is not None:
        sides.append(MemoMethods(parts.base, memo, session.seen_runs))
    if parts.look is not None and looks(chosen):
        sides.append(LookHooks(parts.look, lambda: session.chunk))
    with contextlib.ExitStack() as undo:
        _mark(model, session, undo)
        for side in sides:
            side.install(undo)
        try:
            yield session
        finally:
            with session.lock:  # a pass of another thread ends first
                session.owner.close()
                undo.close()


def _mark(model: nn.Module, session: Session, undo: contextlib.ExitStack) -> None:
    """Let one session at a time have a model, also where two threads ask at once.

    Raises:
        IncompatibleError: Another one has it.
    """
    if vars(model).setdefault(_MARK, session) is not session:
        raise IncompatibleError("this model is already being pruned", hint="leave the other `with pruned(...)` first")
    undo.callback(object.__delattr__, model, _MARK)
