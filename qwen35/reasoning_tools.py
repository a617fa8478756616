"""What a chat answer consists of: reasoning, text and tool calls, told apart while it streams.

ids -> text -> <think> ... </think>, text, <tool_call> <function=NAME> <parameter=P> value
</parameter> </function> </tool_call>. The marks count whether the model said them as one token or
spelled them out, and wherever token boundaries fall. Line breaks that only separate the parts are
left out; of everything else nothing is lost: what is not a well-formed call is delivered as text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .results import Kind, ToolCall
from .tools import parameter_value, tool_schemas

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_THINK, _END_THINK = "<think>", "</think>"
_CALL, _END_CALL, _HEAD = "<tool_call>", "</tool_call>", "<function="
_AFTER: dict[str, Kind] = {_THINK: "reasoning", _END_THINK: "text", _CALL: "tool_call"}

_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>(.*)</function>\s*", re.DOTALL)
# A value may hold text that looks like its end: it ends where another parameter or nothing follows.
_PARAMETER = re.compile(
    r"\s*<parameter=([^<>\n]+)>(.*?)</parameter>(?=\s*(?:<parameter=[^<>\n]+>|\Z))", re.DOTALL
)


class AnswerParser:
    """Splits one answer into pieces (text, kind) as its tokens come.

    in_reasoning: the prompt ended inside an open <think>. tools: the tools of the request; without
    any, <tool_call> is plain text. `tool_calls` grows as calls are completed; the text of a call is
    one piece of kind "tool_call".
    """

    def __init__(self, tokenizer: Tokenizer, *, in_reasoning: bool, tools: Any = None):
        from .tokenizer import TextDecoder

        self._decoder = TextDecoder(tokenizer)
        self._silent = tokenizer.special_ids
        self._schemas: dict[str, Mapping[str, Any]] = {
            schema["function"]["name"]: schema["function"].get("parameters") or {}
            for schema in tool_schemas(tools) or ()
        }
        self._state: Kind = "reasoning" if in_reasoning else "text"
        self._held = ""  # not decided on: half a mark, line breaks, or a call that is not complete
        self._gap = ""  # line breaks before the call that is held
        self._searched = 0  # how far into the held call its end was looked for
        self._fresh = in_reasoning  # a mark was last: line breaks only separate
        self.tool_calls: list[ToolCall] = []

    @property
    def kind(self) -> Kind:
        """The kind of what is being said now, shown or held back."""
        return self._state

    @property
    def holding(self) -> bool:
        """Whether text is held back: half a mark, line breaks, or a call that is not complete."""
        return bool(self._held)

    def push(self, token_id: int) -> list[tuple[str, Kind]]:
        """The pieces that are certain after this token; control tokens (<|im_end|>) have no
        text."""
        if token_id in self._silent:
            return []
        return self.push_text(self._decoder.push(token_id))

    def push_text(self, text: str) -> list[tuple[str, Kind]]:
        """The pieces that are certain after this text."""
        self._held += text
        return self._decide(more=True)

    def flush(self) -> list[tuple[str, Kind]]:
        """What was held back, at the end of the answer."""
        self._held += self._decoder.flush()
        return self._decide(more=False)

    def _decide(self, *, more: bool) -> list[tuple[str, Kind]]:
        """Deliver what no text that may follow (`more`) can change."""
        pieces: list[tuple[str, Kind]] = []
        moved = True
        while self._held and moved:
            in_call = self._state == "tool_call"
            moved = self._step_call(pieces, more) if in_call else self._step_prose(pieces, more)
        return [
            ("".join(text for text, _ in group), kind)
            for kind, group in groupby(pieces, key=itemgetter(1))
        ]

    def _step_prose(self, pieces: list[tuple[str, Kind]], more: bool) -> bool:
        """Deliver up to the next mark and pass it; False when there is none."""
        text = self._held
        marks = self._marks(text)
        at, mark = min(((i, m) for m in marks if (i := text.find(m)) >= 0), default=(-1, ""))
        if at >= 0:
            before = text[:at].rstrip("\n")
            self._deliver(before, pieces)
            self._gap = "" if self._fresh else text[len(before) : at]
            self._held = text[at:] if mark == _CALL else text[at + len(mark) :]
            self._state, self._searched, self._fresh = _AFTER[mark], 0, True
            return True
        end = len(text)
        if more:  # line breaks wait with half a mark: they go if it becomes a whole one
            end = len(text[: end - _unfinished(text, marks)].rstrip("\n"))
        self._deliver(text[:end], pieces)
        self._held = text[end:]
        return False

    def _marks(self, text: str) -> tuple[str, ...]:
        """The marks that mean something in the present state."""
        if self._state == "reasoning":
            # The prompt has opened it, and some models open it again.
            again = self._fresh and _THINK.startswith(text.lstrip("\n")[: len(_THINK)])
            return (_END_THINK, _THINK) if again else (_END_THINK,)
        return (_THINK, _CALL) if self._schemas else (_THINK,)

    def _step_call(self, pieces: list[tuple[str, Kind]], more: bool) -> bool:
        """Deliver the call at the start of the held text once it is whole, or as text if it is
        none.

        A value may hold "</tool_call>" itself. So an end that makes no call is passed over, unless
        another call follows it.
        """
        text = self._held
        if self._searched == 0:
            body = text[len(_CALL) :].lstrip()
            if not (body.startswith(_HEAD) or (more and _HEAD.startswith(body))):
                return self._no_call(len(_CALL), pieces)
        end = text.find(_END_CALL, max(len(_CALL), self._searched))
        while end >= 0:
            after = end + len(_END_CALL)
            if self._call(text[len(_CALL) : end]):
                return self._whole_call(after, pieces)
            following = text[after:].lstrip()
            if more and _CALL.startswith(following):
                self._searched = end
                return False
            if following.startswith(_CALL):
                return self._no_call(after, pieces)
            end = text.find(_END_CALL, after)
        self._searched = max(0, len(text) - len(_END_CALL))
        if more:
            return False
        if self._call(text[len(_CALL) :]):  # the answer ended before </tool_call>
            return self._whole_call(len(text), pieces)
        return self._no_call(len(_CALL), pieces)

    def _whole_call(self, end: int, pieces: list[tuple[str, Kind]]) -> bool:
        pieces.append((self._held[:end], "tool_call"))
        self._held = self._held[end:]
        self._state, self._fresh = "text", True
        return True

    def _no_call(self, end: int, pieces: list[tuple[str, Kind]]) -> bool:
        """The held text up to `end` is no call: it is text, with the line breaks before it."""
        pieces.append((self._gap + self._held[:end], "text"))
        self._held = self._held[end:]
        self._state, self._fresh = "text", False
        return True

    def _deliver(self, text: str, pieces: list[tuple[str, Kind]]) -> None:
        if self._fresh:
            text = text.lstrip("\n")
        if text:
            self._fresh = False
            pieces.append((text, self._state))

    def _call(self, body: str) -> bool:
        """Record the call that `body` spells; False if it spells none."""
        function = _FUNCTION.fullmatch(body)
        if function is None:
            return False
        name, rest = function[1].strip(), function[2]
        root = self._schemas.get(name, {})
        properties = root.get("properties")
        arguments: dict[str, Any] = {}
        place = 0
        while (parameter := _PARAMETER.match(rest, place)) is not None:
            key = parameter[1].strip()
            value = parameter[2].removeprefix("\n").removesuffix("\n")
            schema = properties.get(key) if isinstance(properties, Mapping) else None
            arguments[key] = parameter_value(value, schema, root)
            place = parameter.end()
        if rest[place:].strip():
            return False
        self.tool_calls.append(ToolCall(name, arguments, f"call_{secrets.token_hex(8)}"))
        return True


def _unfinished(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that may be the beginning of a mark."""
    longest = min(len(text), max(map(len, marks)) - 1)
    return next(
        (n for n in range(longest, 0, -1) if any(m.startswith(text[-n:]) for m in marks)), 0
    )
