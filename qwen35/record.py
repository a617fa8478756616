"""One answer as it comes in: native tokens -> Tokens to show -> how it ended -> Generation. What
runs it, alone (generation.py) or with others (batch.py), is not its business.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .answer import Answer, ThinkingBudget
from .clock import Clock
from .request import Request
from .results import FinishReason, Generation, Token, Usage

if TYPE_CHECKING:
    from . import _core

NativeToken = tuple[int, float | None, list[tuple[int, float]]]


class Record:
    """What is known of an answer. `ready`: Tokens that may be shown and were not taken yet."""

    def __init__(self, request: Request) -> None:
        sampling = request.sampling
        self._request = request
        self._budget = _budget(request)
        self._stop_reason: str | int | None = None
        self._decoded = 0
        self._result: Generation | None = None
        self.answer = Answer(request.make_parser(), sampling.stop, min_tokens=sampling.min_tokens)
        self.ready: deque[Token] = deque()
        self.clock = Clock()
        self.cached = 0  # tokens of the prompt that were taken over
        self.reason: FinishReason | None = None  # None while it runs

    def take(self, said: NativeToken, native: _core.NativeStream) -> FinishReason | None:
        """Record one token of `native`; the reason where it or what it completes is the end."""
        token_id, logprob, top = said
        token = Token(token_id, "", "text", logprob, [] if top is None else list(top))
        if self._decoded == 0:
            self.clock.first_token()
        self._decoded += 1
        if token.id in self._request.stop_token_ids:
            self._stop_reason = token.id
            self.ready.extend(self.answer.end(token))
            return "stop"
        last = self._decoded >= self._request.max_tokens
        self.ready.extend(self.answer.push(token, last=last))
        if self.answer.stop_string is not None:
            return "stop"
        if last:
            return "length"
        if self._budget is not None:
            self._budget.push(token.id)
            self.force_thinking_end(native)
        return None

    def force_thinking_end(self, native: _core.NativeStream) -> None:
        """Close a <think> part that has used up its budget."""
        if self._budget is not None and self._budget.used_up:
            native.force(self._request.thinking_end)
            self._budget.closed()

    def end(self, reason: FinishReason, native: _core.NativeStream | None) -> None:
        """Settle the result; `native` is the stream it came from, if there was one."""
        if native is not None:
            self.clock.add(native.timings, decode=True)
        self.clock.bar_close()
        self.ready.extend(self.answer.end())
        if self.answer.stop_string is not None and reason != "cancelled":
            reason, self._stop_reason = "stop", self.answer.stop_string
        self.reason = "tool_calls" if reason == "stop" and self.answer.tool_calls else reason
        self._result = self.generation()

    @property
    def is_all_reasoning(self) -> bool:
        """Whether max_tokens were thought away, and nothing is said."""
        result = self.generation()
        said = result.text or result.tool_calls
        return self.reason == "length" and result.usage.reasoning_tokens > 0 and not said

    def generation(self) -> Generation:
        """The answer as far as it is known."""
        if self._result is not None:
            return self._result
        answer = self.answer
        tokens = list(answer.tokens)
        return Generation(
            text=answer.text("text"),
            reasoning=answer.text("reasoning"),
            tool_calls=answer.tool_calls,
            token_ids=[token.id for token in tokens],
            finish_reason=self.reason or "cancelled",
            stop_reason=self._stop_reason,
            usage=Usage(
                prompt_tokens=len(self._request.prompt.ids),
                cached_tokens=self.cached,
                completion_tokens=len(tokens),
                reasoning_tokens=sum(token.kind == "reasoning" for token in tokens),
            ),
            timings=self.clock.timings(),
            tokens=tokens,
        )


def _budget(request: Request) -> ThinkingBudget | None:
    if request.thinking_budget is None:
        return None
    opening, closing = request.thinking_ids
    thinking = request.prompt.thinking
    return ThinkingBudget(
        request.thinking_budget, opening=opening, closing=closing, thinking=thinking
    )
