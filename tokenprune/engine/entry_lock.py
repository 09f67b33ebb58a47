"""A lock on the calls of a model during a session: one thread at a time runs the model.

The session holds the state of the running forward pass, and the hooks are on the model itself, so two passes cannot
run at once. A thread holds the lock for one forward pass: several threads decode their answers side by side, token by
token. A `generate` with images holds it from its start to the end of its prefill, because it encodes the images before
it calls the model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenprune.engine.patch.methods import ENCODING, method_changed

if TYPE_CHECKING:
    from tokenprune.engine.decoder.hooks import DecoderHooks
    from tokenprune.engine.session import Session


class EntryLock:
    """Locks the methods of the model in one session."""

    def __init__(self, session: Session, decoder: DecoderHooks) -> None:
        self._session = session
        self._decoder = decoder

    def install(self, stack: contextlib.ExitStack) -> None:
        """Replace the methods; the stack restores them."""
        base = self._session.parts.base
        stack.enter_context(method_changed(base, "forward", self._locked_forward))
        for name in ENCODING:
            if callable(getattr(base, name, None)):
                stack.enter_context(method_changed(base, name, self._locked))
        stack.enter_context(method_changed(self._session.parts.model, "generate", self._session.wrap_generate))

    def _locked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method that runs under the lock."""

        @functools.wraps(method)  # `generate` reads the signature
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._session.lock:
                return method(*args, **kwargs)

        return run

    def _locked_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward pass under the lock; its state is created before it and removed after it, even if it fails."""

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._session.lock, self._decoder.forward_pass(), self._session.forward_pass(args, kwargs):
                return forward(*args, **kwargs)

        return run
