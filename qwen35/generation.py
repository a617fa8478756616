"""A running answer: native tokens in, Tokens with text and kind out. One stream holds one session
until it ends.

first next(): a session from the pool -> back to the longest usable prefix -> the rest of the prompt
-> tokens. Whatever ends it (stop, length, cancel, interrupt, close), the session goes back and what
was said is kept.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import BusyError, ClosedError, ForkError
from .lifecycle import POLL_S, Call
from .progress import prefill_progress
from .record import Record
from .request import Request
from .results import FinishReason, Generation, Timings, Token, ToolCall, Usage
from .session import Session, shifted

if TYPE_CHECKING:
    from typing import Self

    from . import _core
    from .model import Model

__all__ = ["Generation", "Timings", "Token", "TokenStream", "ToolCall", "Usage"]


class TokenStream:
    """An answer as it is decoded: an iterator of Token. `result()` takes what is left and returns
    the whole.

    Nothing runs before the first token is asked for. Leaving a `with` block cancels what is still
    running.
    """

    def __init__(self, model: Model, request: Request) -> None:
        self._model = model
        self._request = request
        self._record = Record(request)
        self._lock, self._ending = threading.Lock(), threading.RLock()
        self._reader = Call()  # the last one to be inside _advance()
        self._reader.over = True
        self._cancelled = False
        self._session: Session | None = None
        self._native: _core.NativeStream | None = None
        self._error: BaseException | None = None
        self._pid = os.getpid()

    # Reading it

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if not self._record.ready and self._record.reason is None:
            self._advance()
        if self._record.ready:
            return self._record.ready.popleft()
        raise StopIteration

    def result(self) -> Generation:
        """The whole answer, after taking what is left of it; what there was when it was cancelled
        or interrupted.
        """
        while self._record.reason is None:
            self._record.ready.clear()
            self._advance()
        self._record.ready.clear()
        if self._error is not None:
            raise self._error
        return self._record.generation()

    def cancel(self) -> None:
        """End the answer from any thread, at once even inside a long prompt; `finish_reason`
        becomes "cancelled".
        """
        self._cancelled = True
        native = self._native
        if native is not None and os.getpid() == self._pid:
            native.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shut()

    # Asynchronously: each step runs in a thread, cancelling the task cancels the answer

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        import asyncio  # a fifth of the import time of this package

        step = asyncio.get_running_loop().run_in_executor(None, next, self, None)
        try:
            token = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.cancel()
            step.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        import asyncio

        self.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._shut)

    # What it looks like

    def __repr__(self) -> str:
        state = self._record.reason or ("running" if self._session is not None else "not started")
        said = (
            f"{len(self._record.answer.tokens)} tokens: {self._record.answer.text('text')!r:.200}"
        )
        return f"<qwen35.TokenStream {state}, {said}>"

    def _repr_html_(self) -> str:
        from .notebook import stream_html

        return stream_html(self, self._record.generation())

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TokenStream cannot be pickled or copied; take its result()")

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None and os.getpid() == self._pid:
            self._shut()

    # How it runs

    def _advance(self) -> None:
        """Decode until a token can be shown or the answer is over."""
        call = Call()
        try:
            self._model._gate.enter(call)
            self._claim(call)
            while not self._record.ready and self._record.reason is None:
                self._step()
        except _Cancelled:
            self._finish("cancelled")
        except ClosedError:
            if not self._cancelled:  # else close() ended this answer while it ran
                raise
            self._finish("cancelled")
        except (BusyError, ForkError):
            raise
        except (KeyboardInterrupt, SystemExit):
            self._finish("cancelled")
            raise
        except BaseException as error:
            if self._session is not None:  # its timeline may be half written: do not use it again
                self._session.close()
            self._error = error
            self._finish("cancelled")
            raise
        finally:
            call.over = True
        if self._record.reason == "length":
            self._warn_if_empty()

    def _claim(self, call: Call) -> None:
        """One thread at a time."""
        with self._lock:
            if self._reader.is_elsewhere():
                raise BusyError(
                    "another thread is reading this stream; read it from one thread, cancel() it "
                    "from any"
                )
            self._reader = call

    def _step(self) -> None:
        """One native token, the first one after the prompt."""
        if self._cancelled:
            raise _Cancelled
        first = self._native is None
        native = self._start() if self._native is None else self._native
        try:
            said = next(native)
        except StopIteration:
            self._finish("cancelled" if native.finish_reason == "cancelled" else "length")
            return
        if first and self._session is not None:
            self._session._mark()
        reason = self._record.take(said, native)
        if reason is not None:
            self._finish(reason)

    def _start(self) -> _core.NativeStream:
        """Take a session, bring it to the last split of the prompt, and open the native stream for
        the rest.
        """
        self._record.clock.start()
        request, prompt = self._request, self._request.prompt
        session, branch = self._model._pool.take(prompt.keys, self._model)
        self._session = session
        self._record.cached = session._rewind(prompt)
        core = session._open()
        progress, self._record.clock.bar_close = prefill_progress(self._model._progress)
        for end in session._splits(prompt, start=self._record.cached, branch=branch):
            self._prefill(core, end, progress)
            session._mark()
        native = request.open(core, **self._piece(core.position, len(prompt), progress))
        self._watch(native)
        self._record.force_thinking_end(native)
        return native

    def _piece(self, start: int, stop: int, progress: Any) -> dict[str, Any]:
        """What the core is given with tokens start .. stop of the prompt. Images among them are
        read here, which cancel() ends and `progress` is told of.
        """
        prompt = self._request.prompt

        def poll() -> None:
            if self._cancelled:
                raise _Cancelled
            if progress is not None:
                progress(start, len(prompt))

        shown = self._model._shown(prompt, start, stop, poll=poll)
        return {**shown, "progress": shifted(progress, start, len(prompt))}

    def _prefill(self, core: _core.Session, stop: int, progress: Any) -> None:
        """Append the prompt up to `stop` through a stream, which unlike a plain prefill can be
        cancelled inside a layer.
        """
        start = core.position
        piece = self._piece(start, stop, progress)
        native = core.generate(self._request.prompt.ids[start:stop], max_tokens=0, **piece)
        self._watch(native)
        for _ in native:
            pass
        self._record.clock.add(native.timings, decode=False)
        self._native = None
        if native.finish_reason == "cancelled":
            raise _Cancelled

    def _watch(self, native: _core.NativeStream) -> None:
        """Make `native` the one that cancel() reaches; it may have been called a moment ago."""
        self._native = native
        if self._cancelled:
            native.cancel()

    # How it ends

    def _finish(self, reason: FinishReason) -> None:
        """Give the session back and settle the result. The first call decides."""
        with self._ending:
            if self._record.reason is not None:
                return
            native, self._native = self._native, None
            if native is not None:
                native.cancel()
            self._record.end(reason, native)
            session, self._session = self._session, None
            if session is not None and session._core is not None:
                self._model._pool.give_back(session)
            if self._record.clock.started:
                self._model._finished(self._record.generation())

    def _warn_if_empty(self) -> None:
        """Say why there is no answer when all of max_tokens was thought away."""
        result = self._record.generation()
        if self._record.is_all_reasoning:
            warnings.warn(
                f"the answer is empty: all {result.usage.completion_tokens} tokens went to "
                "reasoning; raise max_tokens, "
                "set thinking_budget, or pass enable_thinking=False",
                RuntimeWarning,
                stacklevel=4,
            )

    def _shut(self) -> None:
        """Cancel and wait until no other thread is inside."""
        self.cancel()
        if not self._reader.over and not self._reader.is_elsewhere():
            return  # called from within, by a callback: it ends at the next poll
        while self._reader.is_elsewhere():
            time.sleep(POLL_S)
        self._finish("cancelled")


class _Cancelled(Exception):
    """cancel() was called before or within the prompt."""
