"""Conversations to prompts, by the checkpoint's own chat template.

messages, tools -> checked plain values -> marked -> rendered by the template -> split at the
control tokens the template wrote -> ids. A control token that is spelled inside a message is plain
text for the model: before rendering, a character that occurs nowhere else is put behind every first
character of such a token, so that what the template writes is still whole and what a message says
is not; afterwards it is taken out again.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import TemplateError
from .messages import MediaPart, Plain, check_messages
from .tools import tool_schemas

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "chat_template",
        "conversation",
    }
)
# What an assistant says itself; in its own messages these keep their meaning.
_ASSISTANT_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_PRIVATE_USE = ((0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))


class ChatTemplate:
    """A compiled chat template. Immutable; shared by threads.

    Rendering is bounded (2 s, 8 MiB of output; template_sandbox.py says how) and cannot leave the
    sandbox. Raises TemplateError with the line for a template that does not compile, fails, or runs
    over its limits.
    """

    def __init__(self, source: str | None, *, where: str):
        if not source:
            raise TemplateError(
                f"{where}: no chat template; put chat_template.jinja beside the weights, or use "
                "generate() with a prompt that is written out"
            )
        self._where = where
        self.source = source
        self._template = _compile(source, where)

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation. Images and videos are the placeholders the template writes
        for them.

        enable_thinking=None leaves the choice to the template; kwargs are variables of its own.
        Raises ValueError for messages, tools or kwargs that are not as they should be, before the
        template runs.
        """
        checked, _ = check_messages(messages)
        variables = _variables(checked, tools, enable_thinking, kwargs)
        return self._render(checked, variables, add_generation_prompt=add_generation_prompt)

    def _render(
        self, messages: Any, variables: Mapping[str, Any], *, add_generation_prompt: bool = True
    ) -> str:
        from .template_sandbox import render

        try:
            return render(
                self._template,
                {
                    "messages": messages,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **variables,
                },
            )
        except MemoryError:
            raise
        except Exception as error:
            raise _template_error(error, self._where) from error

    def __repr__(self) -> str:
        return f"ChatTemplate(where={self._where!r}, {len(self.source)} characters)"


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Any,
    *,
    tools: Any = None,
    enable_thinking: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
    media: Callable[[Sequence[MediaPart]], object] | None = None,
) -> tuple[str, list[int]]:
    """Text and ids of a conversation, up to where the assistant's answer begins.

    Control tokens are those the template writes. What messages, tools and kwargs say is plain text,
    except <think> and <tool_call> marks in messages of the assistant. `media` is given the images
    and videos of all messages, for each of which the template writes one placeholder.
    """
    checked, parts = check_messages(messages)
    if media is not None:
        media(parts)
    variables = _variables(checked, tools, enable_thinking, kwargs)
    marker = _Marker(tokenizer.added_tokens, _free_character([checked, variables, template.source]))
    text = template._render(marker.messages(checked), marker.values(variables))
    return marker.removed(text), list(marker.encode(tokenizer, text))


def _variables(
    messages: list[dict[str, Any]],
    tools: Any,
    enable_thinking: bool | None,
    kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the template sees beside the messages, checked."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"chat_template_kwargs: expected a mapping, got {type(kwargs).__name__}")
    given = dict(kwargs or {})
    for name in given:
        if name in _RESERVED:
            raise ValueError(f"chat_template_kwargs: {name!r} is reserved, it has its own argument")
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"chat_template_kwargs: {name!r:.80} is not a variable name")
    if enable_thinking is not None:
        if not isinstance(enable_thinking, bool):
            raise ValueError(
                f"enable_thinking={enable_thinking!r:.80}: expected True, False or None"
            )
        if given.setdefault("enable_thinking", enable_thinking) is not enable_thinking:
            raise ValueError(
                "enable_thinking is given twice, and not the same in chat_template_kwargs"
            )
    if given.get("enable_thinking") is True and messages[-1]["role"] == "assistant":
        raise ValueError(
            f"messages[{len(messages) - 1}]: an answer begun already cannot be thought about; "
            "drop this last assistant message or enable_thinking=True"
        )
    plain = Plain()
    schemas = tool_schemas(tools)
    return {
        **{name: plain(value, f"chat_template_kwargs.{name}") for name, value in given.items()},
        "tools": None if schemas is None else plain(schemas, "tools"),
    }


# Compiling and errors


@functools.cache
def _environment() -> Any:
    from .template_sandbox import ChatEnvironment

    return ChatEnvironment()


def _compile(source: str, where: str) -> Any:
    from .template_sandbox import MAX_SOURCE_CHARS

    if not isinstance(source, str):
        raise TemplateError(f"{where}: chat template must be text, found {type(source).__name__}")
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateError(
            f"{where}: chat template of {len(source)} characters, over {MAX_SOURCE_CHARS}"
        )
    try:
        return _environment().from_string(source)
    except Exception as error:
        raise _template_error(error, where) from error


def _template_error(error: Exception, where: str) -> TemplateError:
    """What went wrong, with the line of the template it went wrong in."""
    import jinja2

    line = getattr(error, "lineno", None) if isinstance(error, jinja2.TemplateSyntaxError) else None
    trace = error.__traceback__
    while trace is not None and not isinstance(error, jinja2.TemplateSyntaxError):
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f"chat template line {line}" if line else "chat template"
    if isinstance(error, RecursionError):
        problem = "nested or recursive beyond Python's limit"
    elif isinstance(error, jinja2.TemplateError):
        problem = error.message or type(error).__name__
    else:
        problem = (
            f"{type(error).__name__}: {error}"
            if type(error).__module__ == "builtins"
            else str(error)
        )
    return TemplateError(f"{where}: {place}: {problem[:1000]}")


# Keeping what messages say apart from what the template writes


class _Marker:
    """Breaks and recognizes spellings of control tokens by means of one character that is free for
    it."""

    def __init__(self, added_tokens: Mapping[str, int], character: str):
        self._ids = added_tokens
        self._character = character
        tokens = sorted(added_tokens, key=len, reverse=True)
        self._ends = tuple({token[i:] for token in tokens for i in range(1, len(token))})
        self._inside = "\0".join(token[1:] for token in tokens)
        starts = "".join(sorted({token[0] for token in tokens}))
        self._start = re.compile(f"[{re.escape(starts)}]" if starts else "(?!)")
        marks = "|".join(map(re.escape, _ASSISTANT_MARKS))
        self._assistant_start = re.compile(f"(?!{marks}){self._start.pattern}")
        # A token of one character cannot be broken; it is one that the marker does not follow.
        spelled = [re.escape(t) + f"(?!{character})" * (len(t) == 1) for t in tokens]
        self._token = re.compile("|".join(spelled) or "(?!)")

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages whose texts spell no control token, nor the end of one that the template could
        begin."""
        return [
            {
                key: value if key == "role" else self._content(message, key, value)
                for key, value in message.items()
            }
            for message in messages
        ]

    def _content(self, message: Mapping[str, Any], key: str, value: Any) -> Any:
        start = self._start
        if key == "content" and message["role"] == "assistant":
            start = self._assistant_start
        if key == "content" and isinstance(value, list):
            return [
                {**part, "text": self._broken(part["text"], start)} if "text" in part else part
                for part in value
            ]
        return self._broken(value, start) if isinstance(value, str) else self.values(value)

    def values(self, value: Any) -> Any:
        """The same for any values; words in them are left as they are, templates compare those."""
        if isinstance(value, str):
            return self._start.sub(self._marked, value)
        if isinstance(value, list):
            return [self.values(item) for item in value]
        if isinstance(value, Mapping):
            return {self.values(key): self.values(item) for key, item in value.items()}
        return value

    def _broken(self, text: str, start: re.Pattern[str]) -> str:
        text = start.sub(self._marked, text)
        said = text.lstrip()
        # A template may write the beginning of a token, or another part of the message may.
        if said.startswith(self._ends) or (said and said.rstrip() in self._inside):
            text = text[: len(text) - len(said)] + self._character + said
        return text

    def _marked(self, match: re.Match[str]) -> str:
        return match[0] + self._character

    def removed(self, text: str) -> str:
        """Rendered text as it was meant."""
        return text.replace(self._character, "").replace(_escaped(self._character), "")

    def encode(self, tokenizer: Tokenizer, text: str) -> Iterator[int]:
        """Ids of rendered text: whole spellings are the tokens, all else is plain text."""
        place = 0
        for match in self._token.finditer(text):
            yield from tokenizer.encode(self.removed(text[place : match.start()]))
            yield self._ids[match[0]]
            place = match.end()
        yield from tokenizer.encode(self.removed(text[place:]))


def _free_character(values: Any) -> str:
    """A private-use character that occurs neither in the values nor, escaped, in what JSON makes of
    them."""
    used = json.dumps(values, ensure_ascii=False)
    for first, last in _PRIVATE_USE:
        for code in range(first, last + 1):
            if chr(code) not in used and _escaped(chr(code)) not in used:
                return chr(code)
    raise ValueError(
        "messages: they use all private-use characters of Unicode; at least one must be free"
    )


def _escaped(character: str) -> str:
    r"""As JSON in ASCII writes it, \ue000 for instance; a template may ask for that."""
    return json.dumps(character)[1:-1]
