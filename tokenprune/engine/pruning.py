"""`with pruned(model, pruner, budget) as session:` installs the engine on a stock model and removes it again."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

from torch import nn

from tokenprune.budget import Budget, BudgetLike
from tokenprune.checkpoints.joint import JointSpace
from tokenprune.checkpoints.loaded_model import LoadedModel
from tokenprune.engine.decoder.hooks import DecoderHooks
from tokenprune.engine.entry_lock import EntryLock
from tokenprune.engine.generate_call import ContinuousBatchingGuard
from tokenprune.engine.observe.encoder_observer import EncoderObserver, observes_encoder
from tokenprune.engine.patch.compiled import Uncompiled
from tokenprune.engine.patch.internals import check_internals
from tokenprune.engine.session import Session
from tokenprune.engine.state.prefill_memo import MemoMethods, PrefillMemo
from tokenprune.engine.vision.hooks import VisionHooks
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError, UnknownNameError
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import Host, default_host
from tokenprune.pruner import PositionPolicy, Pruner

_MARK = "_tokenprune_session"


class ModelPatch(Protocol):
    """A part of the engine that changes a model."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Change the model; each step registers its reversal on the stack before the next step may fail."""


def resolve_pruner(
    pruner: str | Pruner | None, options: Mapping[str, Any], host: Host, call: Callable[..., Any]
) -> Pruner:
    """The pruner of a name and options; a pruner object is returned as it is, and `None` means `none`.

    Args:
        pruner: Name of a pruner, a pruner object, or `None`.
        options: Options of a pruner that is given by name.
        host: Plugins.
        call: The function that the user called; hints compare unknown options with its arguments.

    Raises:
        UnknownNameError: No pruner of that name is installed.
        ConfigError: An option is unknown, of the wrong kind or out of range, or comes with a pruner object.
    """
    if isinstance(pruner, Pruner):
        for name in options:
            unknown = UnknownNameError(f"argument of `{call.__name__}`", name, _arguments(call))
            already_built = (
                f"`{pruner.spec.name}` is built already: pass its options to `get_pruner`, or pass its name here"
            )
            raise ConfigError(unknown.message, hint=unknown.hint if unknown.close_matches else already_built)
        return pruner
    spec = host.pruners.get(pruner or "none")
    return cast(Pruner, spec.build(spec.validate(options, beside=_arguments(call))))


@functools.cache
def _arguments(call: Callable[..., Any]) -> tuple[str, ...]:
    """The optional arguments of a function, as candidates for a misspelt option."""
    return tuple(name for name, what in inspect.signature(call).parameters.items() if what.default is not what.empty)


def resolve_budget(
    pruner: Pruner, budget: Budget | BudgetLike | None, ratio: float | None = None, tokens: int | None = None
) -> Budget:
    """The budget, from whichever argument gives it.

    Raises:
        BudgetError: It is given twice, out of range, or missing although the pruner reads it.
    """
    values = [value for value in (budget, ratio, tokens) if value is not None]
    if len(values) > 1:
        raise BudgetError("give one of `budget`, `ratio` and `tokens`", hint="for example `tokens=64`")
    if budget is not None:
        return Budget.parse(budget)
    if values:
        return Budget(ratio=ratio, tokens=tokens)
    if pruner.reads_budget:
        raise BudgetError(
            f"`{pruner.spec.name}` needs a budget: how many visual tokens stay of each image",
            hint="pass it after the pruner: `64` tokens, a ratio like `0.25`, or `100%` to keep all",
        )
    return Budget(ratio=1.0)


@contextlib.contextmanager
def pruned(
    model: nn.Module | LoadedModel,
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
    **options: Any,
) -> Iterator[Session]:
    """Prune the visual tokens of a stock model inside the block; the model is restored bit for bit afterwards.

    Args:
        model: A stock transformers vision-language model. It may be wrapped: with a PEFT adapter, compiled, or for
            data parallelism on one device; then the wrapper's own call and `generate` are pruned too.
            A `LoadedModel` of `load_model` works as well, and brings its joint image-text space.
        pruner: Name of an installed pruner, a pruner object, or `None` for no pruning.
        budget: Visual tokens to keep per image: a whole number is tokens (`64`), a fraction or a percentage is a ratio
            (`0.25`, `"25%"`), as everywhere (`Budget.parse`). Required, unless the pruner is `None`, `none`, or reads
            no budget with these options.
        ratio: Keep ratio, instead of `budget`; 1 keeps all.
        tokens: Number of tokens, instead of `budget`.
        positions: `keep` or `compact` position ids; by default the pruner's own choice.
        joint: Joint image-text space, for pruners that need one; by default that of the `LoadedModel`.
        frames: The images of each sample are the frames of one video: from the LLM input on, pruners see them as one
            unit. A budget in tokens counts for the whole video; before the decoder each frame gets its share.
        memo: Shares the encoder and the layers before the first cut with other sessions on the same inputs.
        host: Plugins; by default the installed ones.
        options: Options of a pruner that is given by name (`layer=0`).

    Raises:
        ConfigError: An option is unknown, of the wrong kind or out of range.
        IncompatibleError: The model has no known family, is being pruned already, or lacks what the pruner needs.
        BudgetError: The budget is missing, out of range or cannot be met.

    A KV cache that was pruned inside the block, and every copy of it, works only inside this block, or inside another
    one with the same model, pruner and positions. Everywhere else it raises `IncompatibleError`.

    Several threads may use the model inside the block. Enter and leave the block while no other thread runs the model.

    Example:
        >>> from tokenprune import load_model, pruned
        >>> loaded = load_model("scenes")
        >>> inputs = loaded.prepare("docs/examples/circle.png", "what color is the circle ?")
        >>> with pruned(loaded.model, "iwp", ratio=0.25, layer=0) as session:
        ...     output = loaded.model.generate(**inputs, max_new_tokens=4)
        >>> session.last.original_visual_tokens, session.last.final()
        ((256,), (64,))
    """
    host = host or default_host()
    chosen = resolve_pruner(pruner, options, host, pruned)
    wanted = resolve_budget(chosen, budget, ratio, tokens)
    wrapped, own_joint = (model, None) if isinstance(model, nn.Module) else (model.model, model.joint)
    joint = joint or own_joint
    parts = parts_of(wrapped, host)
    model = parts.model  # the stock model inside the wrappers
    check_internals(parts)
    if "joint" in chosen.needs and joint is None:
        raise IncompatibleError(
            f"`{chosen.spec.name}` needs a joint image-text space (a CLIP text tower)",
            hint="pass the result of `load_model` instead of its `.model`, or `joint=` (`tokenprune.checkpoints."
            "JointSpace`), or choose a pruner without the need `joint`",
        )
    session = Session(parts, chosen, wanted, positions=positions, joint=joint, frames=frames, memo=memo)
    decoder = DecoderHooks(session)
    patches: list[ModelPatch] = [
        Uncompiled(wrapped),
        ContinuousBatchingGuard(model),
        EntryLock(session, decoder),
        decoder,
    ]
    if parts.vision is not None:
        patches.append(VisionHooks(parts, parts.vision, chosen, joint, lambda: session.prefill, memo))
    elif memo is not None:
        patches.append(MemoMethods(parts.base, memo, session.encoder_runs))
    if parts.observed_encoder is not None and observes_encoder(chosen):
        patches.append(EncoderObserver(parts.observed_encoder, lambda: session.prefill))
    with contextlib.ExitStack() as undo:
        _mark(model, session, undo)
        for patch in patches:
            patch.install(undo)
        try:
            yield session
        finally:
            with session.lock:  # waits for the pass of another thread
                session.handle.close()
                undo.close()


def _mark(model: nn.Module, session: Session, undo: contextlib.ExitStack) -> None:
    """Reserve a model for one session; safe if two threads try at the same time.

    Raises:
        IncompatibleError: Another session has the model.
    """
    if vars(model).setdefault(_MARK, session) is not session:
        raise IncompatibleError("this model is already being pruned", hint="leave the other `with pruned(...)` first")
    undo.callback(object.__delattr__, model, _MARK)
