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
        if self._waiting and len({kind for _, kind in pieces}) > 1:
            self._put(*pieces.pop(0))  # what an earlier token held back when the kind changed
        self._waiting.append(replace(token, kind=self._parser.kind))
        for piece in pieces:
            self._put(*piece)
        undecided = self._parser.holding or self._held_chars or not self._waiting[-1].text
        return [] if last or undecided else self._show()

    def end(self, stop_token: Token | None = None) -> list[Token]:
        """The answer is over: show what was held back, then the stop token. Later calls show
        nothing more.
        """
        if self._ended:
            return []
        self._ended = True
        pieces: list[tuple[str, Kind]] = []
        if self.stop_string is None:
            pieces = self._through_stops(self._parser.flush(), active=True)
            if self._stops and self.stop_string is None:
                pieces.append((self._stops.flush(), "text"))
        ending = [] if stop_token is None else [replace(stop_token, kind=self._parser.kind)]
        if not self._waiting:
            self._waiting, ending = ending, []
        # Half a character of an answer that was cut off has no token to carry it, and is dropped.
        for piece in pieces if self._waiting else []:
            self._put(*piece)
        self._waiting += ending
        return self._show()

    def _through_stops(
        self, pieces: list[tuple[str, Kind]], *, active: bool
    ) -> list[tuple[str, Kind]]:
        """`pieces` as far as stop strings let them through. A change of kind ends a possible
        match.
        """
        if self._stops is None:
            return [piece for piece in pieces if piece[0]]
        passed: list[tuple[str, Kind]] = []
        for text, kind in pieces:
            if self.stop_string is not None:
                break
            if kind == "text" and active:
                out = self._stops.push(text)
                self._held_chars += len(text) - len(out)
                passed.append((out, kind))
            else:
                passed += [(self._stops.flush(), "text"), (text, kind)]
                self._held_chars = 0
        return [piece for piece in passed if piece[0]]

    def _put(self, text: str, kind: Kind) -> None:
        """Give text to the newest waiting token."""
        last = self._waiting[-1]
        self._waiting[-1] = replace(last, text=last.text + text, kind=kind)
        self._texts[kind].append(text)

    def _show(self) -> list[Token]:
        shown, self._waiting = self._waiting, []
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
