"""What a model answers with: tokens, whole answers, scores and the counts and times beside them.
Plain values, no behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["text", "reasoning", "tool_call"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class ToolCall:
    """One call the model asks for: the tool's name, its arguments by the tool's schema, and an id
    to answer under.
    """

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Token:
    """One decoded token of a stream.

    `text` holds whole characters only: a token that ends inside a character has the text that was
    complete, and the character comes with a later token. The token that ended the answer has the
    text "". `logprob` and `top_logprobs` (pairs of id and log-probability, best first) are there
    when `logprobs=` was asked for.
    """

    id: int
    text: str
    kind: Kind
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] = field(default_factory=list)
    from_draft: bool = False


@dataclass(frozen=True)
class Usage:
    """Token counts of one request. `cached_tokens` of the prompt were taken over from an earlier
    request.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds spent. `prefill_s` covers the prompt tokens that were not cached, `ttft_s` runs to
    the first token.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens a second; 0.0 where nothing was prefilled."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Decoded tokens a second; 0.0 where nothing was decoded."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Generation:
    """A finished answer, or what there was of it when it was cancelled. `str()` of it is its
    text.
    """

    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    stop_reason: str | int | None = None  # the stop string or stop token that ended it
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    tokens: list[Token] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from .notebook import generation_html

        return generation_html(self)


@dataclass(frozen=True)
class Score:
    """How likely a continuation is: the sum of `logprobs` (natural logarithms, one a token), and
    whether greedy decoding would have said it.
    """

    logprob: float
    logprobs: list[float]
    is_greedy: bool
