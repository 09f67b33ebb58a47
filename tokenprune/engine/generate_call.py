"""Check the settings of a `generate` call, and refuse those that do not work on a pruned prompt.

Visual tokens are chosen once, on the whole prompt, and the answer continues from the cache of the tokens that stay. So
`generate` must not read the prompt in pieces, again at every step, or together with drafts of the answer: the pruner
would choose other tokens.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from torch import nn

from tokenprune.engine.cache.caches import check_growing
from tokenprune.engine.patch.methods import method_changed
from tokenprune.errors import IncompatibleError
from tokenprune.families.supported import PIECES_OF_A_TURN, PIECES_WITH_PICTURES, cache_in, older_than

#: Modes of `generate` in which each step reads exactly one new token.
MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
#: Cache implementations without a fixed size.
GROWING_CACHES = ("dynamic", "offloaded", "quantized")
#: Methods of continuous batching, which serve many requests from one paged cache.
CONTINUOUS_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


@dataclass(frozen=True)
class GenerateCall:
    """One call of `generate`.

    Args:
        model: The model.
        arguments: All arguments of the call, by name.
    """

    model: nn.Module
    arguments: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: nn.Module, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> GenerateCall:
        """A call with positional and keyword arguments."""
        names = [name for name in inspect.signature(generate).parameters if name != "self"]
        return cls(model, {**dict(zip(names, args, strict=False)), **kwargs})

    def setting(self, name: str) -> Any:
        """A setting, looked up as `generate` does: in the call, in its generation config, in the model's."""
        if name in self.arguments:
            return self.arguments[name]
        given = getattr(self.arguments.get("generation_config"), name, None)
        return given if given is not None else getattr(getattr(self.model, "generation_config", None), name, None)

    @property
    def mode(self) -> str:
        """The decoding mode, as transformers names it."""
        config: Any = copy.copy(getattr(self.model, "generation_config", None))
        if config is None:
            return MODES[0]
        for name in vars(config):
            setattr(config, name, self.setting(name))
        return str(config.get_generation_mode(self.arguments.get("assistant_model")).value)

    def check(self, length: int) -> None:
        """Refuse settings that cannot work on a prompt with images.

        Args:
            length: Tokens of the prompt that are not in a cache.

        Raises:
            IncompatibleError: A setting is refused.
        """
        self.check_mode()
        size = self.setting("prefill_chunk_size")
        if size is not None and size < length:
            raise IncompatibleError(
                f"`prefill_chunk_size={size}` splits a prompt of {length} tokens, but visual tokens are chosen on the "
                "whole prompt",
                hint="leave `prefill_chunk_size` out, or make it as large as the prompt",
            )
        if size is not None and older_than(PIECES_WITH_PICTURES):
            raise _needs_release(
                f"`prefill_chunk_size={size}` leaves the pictures of a prompt out", PIECES_WITH_PICTURES
            )

    def check_turn(self) -> None:
        """Refuse settings that cannot work on a new turn after a pruned prompt.

        Raises:
            IncompatibleError: A setting is refused.
        """
        self.check_mode()
        size = self.setting("prefill_chunk_size")
        if size is not None and older_than(PIECES_OF_A_TURN):
            raise _needs_release(f"`prefill_chunk_size={size}` reads a whole conversation again", PIECES_OF_A_TURN)

    def check_mode(self) -> None:
        """Refuse modes that read tokens more than once.

        Raises:
            IncompatibleError: The mode is refused.
        """
        if self.mode not in MODES:
            raise IncompatibleError(
                f"`generate` runs in the mode `{self.mode}`, but visual tokens are chosen in {', '.join(MODES)} only",
                hint="leave out what asks for that mode, such as an assistant model or a lookup in the prompt",
            )

    def check_views(self) -> None:
        """Refuse settings that do not work with stops at decoding steps.

        Raises:
            IncompatibleError: The call uses beam search.
        """
        if self.mode.startswith("beam"):
            raise IncompatibleError(
                "views of the cache at every decoding step do not follow beam search, which swaps samples between "
                "steps",
                hint="decode greedily or by sampling (`num_beams=1`), or choose another pruner",
            )

    @property
    def fixed_cache(self) -> str | None:
        """The cache implementation of the call, if it has a fixed size."""
        kind = self.setting("cache_implementation")
        # `generate` treats "hybrid" like no setting
        return None if kind is None or kind in (*GROWING_CACHES, "hybrid") else str(kind)

    def check_cache(self) -> None:
        """Refuse caches in which layers cannot differ in length.

        Raises:
            IncompatibleError: The cache has a fixed size.
        """
        check_growing(cache_in(self.arguments))
        if self.fixed_cache is not None:
            raise IncompatibleError(
                f'`cache_implementation="{self.fixed_cache}"` has a fixed size, but pruned layers hold fewer tokens '
                "than others",
                hint='use `cache_implementation="dynamic"`, which is the default',
            )

    def without_compilation(self) -> dict[str, Any]:
        """Arguments that switch compilation off: `generate` would compile the hooks if the cache has a fixed size."""
        fixed_cache = self.fixed_cache is not None or getattr(cache_in(self.arguments), "is_compileable", False)
        return {"disable_compile": True} if fixed_cache else {}


class UseCacheOverride:
    """Switches the KV cache on if a `generate` call switched it off, and warns once."""

    def __init__(self) -> None:
        self._warned = False

    def overrides(self, call: GenerateCall) -> dict[str, Any]:
        """Arguments to change: without a cache, each step would read the prompt again and choose other tokens."""
        asked = call.setting("use_cache")
        if asked or (asked is None and "use_cache" not in call.arguments):
            return {}
        if not self._warned:
            warnings.warn(
                f"`use_cache={asked}` is ignored inside `pruned`: `generate` keeps a cache, because visual tokens are "
                "chosen once, at the prompt",
                stacklevel=3,
            )
            self._warned = True
        return {"use_cache": True}


class ContinuousBatchingGuard:
    """Refuses the methods of continuous batching during one session.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def install(self, undo: contextlib.ExitStack) -> None:
        """Replace the methods."""
        for name in CONTINUOUS_BATCHING:
            if callable(getattr(self._model, name, None)):
                undo.enter_context(method_changed(self._model, name, functools.partial(_refusal_of, name)))


def _needs_release(fault: str, release: str) -> IncompatibleError:
    """The error for a fault of `generate` that a newer transformers does not have."""
    return IncompatibleError(
        f"{fault} in transformers {metadata.version('transformers')}",
        hint=f"leave `prefill_chunk_size` out, or install transformers {release} or newer",
    )


def _refusal_of(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that raises instead of running."""

    @functools.wraps(method)
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise IncompatibleError(
            f"`{name}` packs token ids of many prompts without their pictures, so there is nothing to prune",
            hint="call `generate` with a batch of the processor, or leave the `with pruned(...)` block first",
        )

    return refuse
