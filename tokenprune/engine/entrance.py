"""Where calls enter a model during a session: one thread at a time is inside.

What a pass knows lies on the session, and cuts stand in the model's own methods. So a thread waits until the one inside
has left. It leaves after each forward pass: answers of several threads are decoded side by side, token by token. From
the start of a `generate` that brings images to the end of its prefill the thread stays inside, because it encodes
the images before it calls the model.
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


class Entrance:
    """The entrance of one session."""

    def __init__(self, session: Session, decoder: DecoderHooks) -> None:
        self._session = session
        self._decoder = decoder

    def install(self, stack: contextlib.ExitStack) -> None:
        """Stand before the methods; the stack takes what undoes it."""
        base = self._session.parts.base
        stack.enter_context(method_changed(base, "forward", self._forward))
        for name in ENCODING:
            if callable(getattr(base, name, None)):
                stack.enter_context(method_changed(base, name, self._alone))
        stack.enter_context(method_changed(self._session.parts.model, "generate", self._session.generating))

    def _alone(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method that one thread at a time runs."""

        @functools.wraps(method)  # `generate` looks at the signature
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._session.lock:
                return method(*args, **kwargs)

        return run

    def _forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward pass: what the session knows of it is there before, and gone afterwards, also where it fails."""

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._session.lock, self._decoder.passing(), self._session.passing(args, kwargs):
                return forward(*args, **kwargs)

        return run
