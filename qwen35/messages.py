"""Chat messages: OpenAI's shapes checked and brought to the plain values a chat template may see.

messages -> dicts of str, numbers, lists and dicts only, tool-call arguments as mappings; images and
videos are replaced by placeholders and collected. Every error names the place, as in
`messages[3].content[1].type`. Renders nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .fields import nearest
from .json_file import shown

MAX_MESSAGES = 100_000
_MAX_NODES = 1_000_000  # values in all messages, or in tools
_MAX_DEPTH = 64
ROLES = ("system", "user", "assistant", "tool")
_REASONING = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # names in use for the same; the first is the template's


@dataclass(frozen=True)
class MediaPart:
    """An image or a video of a message, in the order in which the template writes their
    placeholders."""

    path: str  # messages[0].content[1]
    kind: Literal["image", "video"]
    part: Mapping[str, Any]  # as it was given


def check_messages(messages: Any) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Plain copies of the messages, and the media they hold. Raises ValueError with the path of
    what is wrong."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError(
            "messages: the list is empty, expected at least one message of role 'user'"
        )
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"messages: {len(messages)} messages, expected at most {MAX_MESSAGES}")
    plain = Plain()
    media: list[MediaPart] = []
    result = [_message(m, index, plain, media) for index, m in enumerate(messages)]
    if not any(message["role"] == "user" for message in result):
        raise ValueError("messages: none has the role 'user', expected at least one")
    return result, media


def _message(message: Any, index: int, plain: Plain, media: list[MediaPart]) -> dict[str, Any]:
    path = f"messages[{index}]"
    message = _mapping(message, path)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{path}.role: {_role_problem(role)}")
    if role == "system" and index > 0:
        raise ValueError(f"{path}.role: a system message must be the first, put its text there")
    result: dict[str, Any] = {"role": str.__str__(role)}
    for key, value in message.items():
        if key not in ("role", "content", "tool_calls"):
            result[plain(key, f"{path} key")] = plain(value, f"{path}.{key}")
    reasoning = next((result[name] for name in _REASONING if result.get(name) is not None), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise ValueError(f"{path}.reasoning_content: expected a str, got {shown(reasoning)}")
        result["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls is not None:
        result["tool_calls"] = _tool_calls(calls, role, path, plain)
    content = message.get("content")
    if content is None and role != "assistant":
        raise ValueError(f"{path}.content: missing, expected a str or a list of parts")
    if content is None and reasoning is None and not calls:
        raise ValueError(f"{path}.content: missing in an assistant message without tool_calls")
    result["content"] = _content(content, role, f"{path}.content", plain, media)
    return result


def _role_problem(role: Any) -> str:
    expected = f"expected one of {', '.join(ROLES)}"
    if role is None:
        return f"missing, {expected}"
    if role == "developer":
        return f"'developer' is not known to these models, use 'system'; {expected}"
    hint = nearest(role, ROLES) if isinstance(role, str) else ""
    return f"{shown(role)}, {expected}{hint}"


def _content(content: Any, role: str, path: str, plain: Plain, media: list[MediaPart]) -> Any:
    if content is None or isinstance(content, str):
        return plain(content, path)
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        hint = "; write it out with json.dumps()" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"{path}: expected a str or a list of parts, got {type(content).__name__}{hint}"
        )
    return [_part(part, role, f"{path}[{i}]", plain, media) for i, part in enumerate(content)]


def _part(part: Any, role: str, path: str, plain: Plain, media: list[MediaPart]) -> dict[str, Any]:
    part = _mapping(part, path)
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{path}.text: expected a str, got {shown(part.get('text'))}")
        return {"type": "text", "text": plain(part["text"], f"{path}.text")}
    if kind in ("image_url", "video_url"):
        kind = kind.removesuffix("_url")
        part = {"type": kind, kind: _data_uri(part, kind, path)}
    if kind in ("image", "video"):
        if role == "system":
            raise ValueError(f"{path}.type: a system message holds text only, no {kind}")
        if kind not in part:
            raise ValueError(f"{path}.{kind}: missing, expected the {kind} itself under this name")
        media.append(MediaPart(path, kind, part))
        return {"type": kind, kind: f"<{kind}>"}
    hint = '; use "image" with an array, a path or bytes' if kind == "input_image" else ""
    raise ValueError(f"{path}.type: {shown(kind)}, expected 'text', 'image' or 'video'{hint}")


def _data_uri(part: Mapping[str, Any], kind: str, path: str) -> str:
    """The data URI of OpenAI's {"type": "image_url", "image_url": {"url": ...}}."""
    url = part.get(f"{kind}_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if isinstance(url, str) and url[:5].lower() == "data:":
        return url
    raise ValueError(
        f"{path}.{kind}_url: {shown(url)}, expected a data URI: URLs are not fetched; download it "
        f'and use {{"type": "{kind}", "{kind}": path or bytes}}'
    )


def _tool_calls(calls: Any, role: str, path: str, plain: Plain) -> list[dict[str, Any]]:
    path = f"{path}.tool_calls"
    if role != "assistant":
        raise ValueError(
            f"{path}: only an assistant message can call tools, this one is of {role!r}"
        )
    if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Sequence):
        raise ValueError(f"{path}: expected a list of calls, got {type(calls).__name__}")
    return [_tool_call(call, f"{path}[{index}]", plain) for index, call in enumerate(calls)]


def _tool_call(call: Any, path: str, plain: Plain) -> dict[str, Any]:
    """{"type", "id", "function": {"name", "arguments"}} or the inner dict alone -> the outer one,
    arguments a mapping."""
    call = _mapping(call, path)
    function, inner = call, path
    if "function" in call:
        inner = f"{path}.function"
        function = _mapping(call["function"], inner)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{inner}.name: expected the name of a tool, got {shown(name)}")
    arguments = _arguments(function.get("arguments", {}), f"{inner}.arguments")
    checked = {
        "name": plain(name, f"{inner}.name"),
        "arguments": plain(arguments, f"{inner}.arguments"),
    }
    rest = {key: plain(call[key], f"{path}.{key}") for key in ("id", "type") if key in call}
    return {**rest, "function": checked}


def _arguments(arguments: Any, path: str) -> Mapping[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(arguments, Mapping):
        kind = type(arguments).__name__
        raise ValueError(f"{path}: expected a mapping, or a str with a JSON object, got {kind}")
    return arguments


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    """A mapping, or what one can be made of without loss: a dataclass, or an object with pydantic's
    model_dump()."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _mapping(value.model_dump(), path)
    raise ValueError(f"{path}: expected a dict, got {type(value).__name__}")


class Plain:
    """Copies values into exact JSON types: a template shall see no object with methods of its
    own."""

    def __init__(self) -> None:
        self._nodes = 0

    def __call__(self, value: Any, path: str, depth: int = 0) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise ValueError(f"{path}: over {_MAX_NODES} values in all")
        if depth > _MAX_DEPTH:
            raise ValueError(f"{path}: nested deeper than {_MAX_DEPTH}")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _text(str.__str__(value), path)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, Mapping):
            return {
                self._key(key, path): self(item, f"{path}.{shown(key)}", depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        if dataclasses.is_dataclass(value) or callable(getattr(value, "model_dump", None)):
            return self(_mapping(value, path), path, depth)
        if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
            return self(value.item(), path, depth + 1)  # a NumPy number
        raise ValueError(f"{path}: {type(value).__name__} has no JSON form")

    def _key(self, key: Any, path: str) -> str:
        if not isinstance(key, str):
            raise ValueError(f"{path}: key {shown(key)} is no str")
        return _text(key, path)


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: lone surrogate {text[error.start]!r} at position {error.start} has no UTF-8"
        ) from None
    return text
