"""From decoded ids to the pieces of an answer: id -> text and kind -> stop strings -> Token. No
model, no threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from .reasoning_tools import AnswerParser
from .results import Kind, Token, ToolCall
from .stop import StopStrings

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Parser(Protocol):
    """Splits an answer into kinds. `ChatText` does it for chat, `PlainText` for completions."""

    @property
    def tool_calls(self) -> list[ToolCall]: ...
    @property
    def kind(self) -> Kind:
        """The kind of what is being said now."""

    @property
    def holding(self) -> bool:
        """Whether text is held back that was not decided on."""

    def push(self, token_id: int) -> list[tuple[str, Kind]]: ...
    def flush(self) -> list[tuple[str, Kind]]: ...


class ChatText(AnswerParser):
    """Reasoning, text and tool calls."""

    @property
    def holding(self) -> bool:
        """Whether line breaks, half a mark or an unfinished call are held back."""
        return bool(self._held)


class PlainText:
    """Everything is text; without a tokenizer there is none."""

    kind: Kind = "text"
    holding = False

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        from .tokenizer import TextDecoder

        self._decoder = None if tokenizer is None else TextDecoder(tokenizer)
        self.tool_calls: list[ToolCall] = []

    def push(self, token_id: int) -> list[tuple[str, Kind]]:
        """The text that is whole after this token."""
        return [] if self._decoder is None else [(self._decoder.push(token_id), "text")]

    def flush(self) -> list[tuple[str, Kind]]:
        """What is left of a character."""
        return [] if self._decoder is None else [(self._decoder.flush(), "text")]


class Answer:
    """What was said so far, and which Tokens may be shown.

    A Token waits while its text may still change: while it ends inside a character, or with what
    could be the start of a stop string. So the texts of the Tokens shown join to the text of the
    answer. Stop strings are looked for in the text, not in reasoning or tool calls, and not within
    the first `min_tokens` tokens.
    """

    def __init__(self, parser: Parser, stops: Sequence[str], *, min_tokens: int = 0) -> None:
        self._parser = parser
        self._stops = StopStrings(stops) if stops else None
        self._min_tokens = min_tokens
        self._waiting: list[Token] = []
        self._ended = False
        self._held_chars = 0  # given to StopStrings and not yet back
        self._texts: dict[Kind, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
        self.tokens: list[Token] = []  # shown

    @property
    def tool_calls(self) -> list[ToolCall]:
        return list(self._parser.tool_calls)

    @property
    def stop_string(self) -> str | None:
        """The stop string that was met; then the answer is over."""
        return self._stops.matched if self._stops else None

    def text(self, kind: Kind) -> str:
        """All text of one kind."""
        return "".join(self._texts[kind])

    def push(self, token: Token, *, last: bool = False) -> list[Token]:
        """Take a token (id and log-probabilities are set) and return those to show now; the last
        one waits for end().
        """
        number = len(self.tokens) + len(self._waiting) + 1
        pieces = self._through_stops(self._parser.push(token.id), active=number > self._min_tokens)
        self._waiting.append(replace(token, kind=self._parser.kind))
        self._place(pieces)
        settled = max((i + 1 for i, t in enumerate(self._waiting) if t.text), default=0)
        if settled == len(self._waiting) and (last or self._parser.holding or self._held_chars):
            settled -= 1  # more text may come to the newest one
        return self._show(settled)

    def end(self, stop_token: Token | None = None) -> list[Token]:
        """The answer is over: show what was held back, then the stop token. Later calls show
        nothing more.
        """
        if self._ended:
            return []
        self._ended = True
        pieces: list[tuple[str, Kind]] = []
        if self.stop_string is None:
            pieces = self._through_stops(self._parser.flush(), active=True, more=False)
        ending = [] if stop_token is None else [replace(stop_token, kind=self._parser.kind)]
        if not self._waiting:
            self._waiting, ending = ending, []
        # Half a character of an answer that was cut off has no token to carry it, and is dropped.
        if self._waiting:
            self._place(pieces)
        self._waiting += ending
        return self._show()

    def _through_stops(
        self, pieces: list[tuple[str, Kind]], *, active: bool, more: bool = True
    ) -> list[tuple[str, Kind]]:
        """`pieces` as far as stop strings let them through. A change of kind ends a possible
        match, and so does the end of the answer (`more` is False).
        """
        if self._stops is None:
            return pieces
        passed: list[tuple[str, Kind]] = []
        for text, kind in pieces:
            if kind == "text" and active:
                passed.append((self._stops.push(text), kind))
                self._held_chars += len(text) - len(passed[-1][0])
            else:
                passed += [self._release(), (text, kind)]
            if self.stop_string is not None:
                return passed
        if not more or self._parser.kind != "text":
            passed.append(self._release())
        return passed

    def _release(self) -> tuple[str, Kind]:
        """What stop strings hold back; nothing that follows can complete a match."""
        self._held_chars = 0
        return (self._stops.flush() if self._stops else "", "text")

    def _place(self, pieces: list[tuple[str, Kind]]) -> None:
        """Give text to the waiting tokens, the last piece to the newest of its kind, those before
        it to tokens before that one.
        """
        runs: list[tuple[str, Kind]] = []
        for text, kind in pieces:
            if runs and text and runs[-1][1] == kind:
                runs[-1] = (runs[-1][0] + text, kind)
            elif text:
                runs.append((text, kind))
        places, end = [], len(self._waiting)
        for before in range(len(runs) - 1, -1, -1):
            places.append(self._place_of(runs[before][1], min(before, end - 1), end))
            end = max(places[-1], 1)
        for (text, kind), place in zip(runs, reversed(places), strict=True):
            token = self._waiting[place]
            self._waiting[place] = replace(token, text=token.text + text, kind=kind)
            self._texts[kind].append(text)

    def _place_of(self, kind: Kind, start: int, end: int) -> int:
        """Among the waiting tokens from `start` to `end` the last one of this kind, or without
        text.
        """
        places = range(end - 1, start - 1, -1)
        same = [i for i in places if self._waiting[i].kind == kind]
        empty = [i for i in places if not self._waiting[i].text]
        return next(iter([*same, *empty, end - 1]))

    def _show(self, count: int | None = None) -> list[Token]:
        """Let go of the first `count` waiting tokens, or of all."""
        shown = self._waiting[:count]
        del self._waiting[: len(shown)]
        self.tokens += shown
        return shown


class ThinkingBudget:
    """Counts the tokens of a <think> part and tells when they are used up; armed again by every
    <think>.
    """

    def __init__(self, limit: int, *, opening: int, closing: int, thinking: bool) -> None:
        self._limit, self._opening, self._closing = limit, opening, closing
        self._thinking = thinking
        self._spent = 0

    @property
    def used_up(self) -> bool:
        return self._thinking and self._spent >= self._limit

    def push(self, token_id: int) -> None:
        """Count a token."""
        if token_id == self._opening:
            self._thinking, self._spent = True, 0
        elif token_id == self._closing:
            self._thinking = False
        else:
            self._spent += self._thinking

    def closed(self) -> None:
        """The end of the part was forced; the tokens that spell it are on their way."""
        self._thinking = False
