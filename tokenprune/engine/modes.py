"""Ways in which `generate` can run: which a prompt with pictures takes, and what is refused before its first token.

Tokens are chosen once, on the whole prompt, and the answer goes on from a cache of what stays. So a way that reads the
prompt in pieces, again at every step, or together with guesses of the answer would choose something else.
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

#: Modes of `generate` in which each step reads one token more than the step before.
MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
#: Kinds of caches that grow with their tokens.
GROWING = ("dynamic", "offloaded", "quantized")
#: Methods that serve many requests at once from one paged cache.
BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


@dataclass(frozen=True)
class Call:
    """One call of `generate`.

    Args:
        model: The model.
        arguments: Its arguments by name.
    """

    model: nn.Module
    arguments: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: nn.Module, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        """A call with its arguments by place and by name."""
        names = [name for name in inspect.signature(generate).parameters if name != "self"]
        return cls(model, {**dict(zip(names, args, strict=False)), **kwargs})

    def setting(self, name: str) -> Any:
        """A setting as `generate` reads it: from the call, its generation config, or the model's."""
        if name in self.arguments:
            return self.arguments[name]
        given = getattr(self.arguments.get("generation_config"), name, None)
        return given if given is not None else getattr(getattr(self.model, "generation_config", None), name, None)

    @property
    def mode(self) -> str:
        """The mode in which it decodes, by transformers' name."""
        config: Any = copy.copy(getattr(self.model, "generation_config", None))
        if config is None:
            return MODES[0]
        for name in vars(config):
            setattr(config, name, self.setting(name))
        return str(config.get_generation_mode(self.arguments.get("assistant_model")).value)

    def check(self, length: int) -> None:
        """Refuse what cannot work on a prompt with pictures.

        Args:
            length: Tokens of the prompt that are not in a cache.

        Raises:
            IncompatibleError: With the setting, and what to do.
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
        """Refuse what cannot work on a new turn after a pruned prompt.

        Raises:
            IncompatibleError: With the setting, and what to do.
        """
        self.check_mode()
        size = self.setting("prefill_chunk_size")
        if size is not None and older_than(PIECES_OF_A_TURN):
            raise _needs_release(f"`prefill_chunk_size={size}` reads a whole conversation again", PIECES_OF_A_TURN)

    def check_mode(self) -> None:
        """Refuse modes that read tokens more than once.

        Raises:
            IncompatibleError: With the mode, and what to do.
        """
        if self.mode not in MODES:
            raise IncompatibleError(
                f"`generate` runs in the mode `{self.mode}`, but visual tokens are chosen in {', '.join(MODES)} only",
                hint="leave out what asks for that mode, such as an assistant model or a lookup in the prompt",
            )

    def check_views(self) -> None:
        """Refuse what views at decoding steps do not follow.

        Raises:
            IncompatibleError: The call searches with beams.
        """
        if self.mode.startswith("beam"):
            raise IncompatibleError(
                "views of the cache at every decoding step do not follow beam search, which swaps samples between "
                "steps",
                hint="decode greedily or by sampling (`num_beams=1`), or choose another pruner",
            )

    @property
    def fixed(self) -> str | None:
        """The kind of its cache, if that has a fixed size."""
        kind = self.setting("cache_implementation")
        # `generate` takes "hybrid" for no wish
        return None if kind is None or kind in (*GROWING, "hybrid") else str(kind)

    def check_cache(self) -> None:
        """Refuse caches that layers of several lengths cannot share.

        Raises:
            IncompatibleError: The cache has a fixed size.
        """
        check_growing(cache_in(self.arguments))
        if self.fixed is not None:
            raise IncompatibleError(
                f'`cache_implementation="{self.fixed}"` has a fixed size, but pruned layers hold fewer tokens than '
                "others",
                hint='use `cache_implementation="dynamic"`, which is the default',
            )

    def uncompiled(self) -> dict[str, Any]:
        """Arguments that keep `generate` from compiling a session's hooks, as it does with a cache of fixed size."""
        fixed = self.fixed is not None or getattr(cache_in(self.arguments), "is_compileable", False)
        return {"disable_compile": True} if fixed else {}


class CacheKeeper:
    """Lets `generate` keep a cache where it was told not to, and says so once."""

    def __init__(self) -> None:
        self._told = False

    def kept(self, call: Call) -> dict[str, Any]:
        """Arguments that are changed: without a cache, every step would read the prompt and choose its tokens anew."""
        asked = call.setting("use_cache")
        if asked or (asked is None and "use_cache" not in call.arguments):
            return {}
        if not self._told:
            warnings.warn(
                f"`use_cache={asked}`: inside `pruned`, `generate` keeps a cache all the same, because the tokens of a "
                "picture are chosen once, at the prompt; the answer is that with a cache",
                stacklevel=3,
            )
            self._told = True
        return {"use_cache": True}


class Batching:
    """The methods that serve many requests at once, refused during one session.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def install(self, undo: contextlib.ExitStack) -> None:
        """Stand in place of the methods."""
        for name in BATCHING:
            if callable(getattr(self._model, name, None)):
                undo.enter_context(method_changed(self._model, name, functools.partial(_refusing, name)))


def _needs_release(fault: str, release: str) -> IncompatibleError:
    """What is said of a fault that a newer transformers does not have."""
    return IncompatibleError(
        f"{fault} in transformers {metadata.version('transformers')}",
        hint=f"leave `prefill_chunk_size` out, or install transformers {release} or newer",
    )


def _refusing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is refused."""

    @functools.wraps(method)
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise IncompatibleError(
            f"`{name}` packs token ids of many prompts without their pictures, so there is nothing to prune",
            hint="call `generate` with a batch of the processor, or leave the `with pruned(...)` block first",
        )

    return refuse
