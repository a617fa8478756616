"""Oracle: literals. Every error names the place in the messages, before any template runs."""

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from qwen35.messages import check_messages
from qwen35.results import ToolCall

USER = {"role": "user", "content": "Hi"}


def assistant(**fields: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", **fields}]


def call(**function: Any) -> list[dict[str, Any]]:
    return assistant(content=None, tool_calls=[{"function": function}])


BAD: dict[str, tuple[Any, str]] = {
    "none": (None, "messages: expected a list of messages, got NoneType"),
    "text": ("Hi", "messages: expected a list"),
    "dict": (USER, "messages: expected a list of messages, got dict"),
    "generator": ((m for m in [USER]), "messages: expected a list"),
    "empty": ([], "messages: the list is empty"),
    "no user": ([{"role": "system", "content": "x"}], "messages: none has the role 'user'"),
    "no dict": ([USER, "Hi"], r"messages\[1\]: expected a dict, got str"),
    "no role": ([{"content": "x"}], r"messages\[0\]\.role: missing"),
    "developer": (
        [USER, {"role": "developer", "content": "x"}],
        r"messages\[1\]\.role: 'developer' is not known to these models, use 'system'",
    ),
    "other role": ([{"role": "usr", "content": "x"}], r"messages\[0\]\.role: 'usr', .*'user'"),
    "role of a type": ([{"role": 1, "content": "x"}], r"messages\[0\]\.role: 1, expected one of"),
    "late system": (
        [USER, {"role": "system", "content": "x"}],
        r"messages\[1\]\.role: a system message must be the first",
    ),
    "no content": ([{"role": "user"}], r"messages\[0\]\.content: missing"),
    "null content": ([USER, {"role": "tool", "content": None}], r"messages\[1\]\.content: missing"),
    "null answer": (assistant(content=None), r"messages\[1\]\.content: missing in an assistant"),
    "number": (
        [{"role": "user", "content": 5}],
        r"messages\[0\]\.content: expected a str or a list",
    ),
    "bytes": ([{"role": "user", "content": b"x"}], r"messages\[0\]\.content: .* got bytes"),
    "dict content": (
        [USER, {"role": "tool", "content": {"t": 1}}],
        r"messages\[1\]\.content: .* got dict; write it out with json.dumps",
    ),
    "part of no type": (
        [USER, {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}],
        r"messages\[1\]\.content\[1\]\.type: None, expected 'text', 'image' or 'video'",
    ),
    "part of other type": (
        [{"role": "user", "content": [{"type": "audio"}]}],
        r"messages\[0\]\.content\[0\]\.type: 'audio'",
    ),
    "url": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        r"messages\[0\]\.content\[0\]\.image_url: 'x'.*URLs are not fetched",
    ),
    "str part": (
        [{"role": "user", "content": ["a"]}],
        r"messages\[0\]\.content\[0\]: expected a dict",
    ),
    "part without text": (
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        r"messages\[0\]\.content\[0\]\.text: expected a str, got None",
    ),
    "part without image": (
        [{"role": "user", "content": [{"type": "image"}]}],
        r"messages\[0\]\.content\[0\]\.image: missing",
    ),
    "image for the system": (
        [{"role": "system", "content": [{"type": "image", "image": "x"}]}, USER],
        r"messages\[0\]\.content\[0\]\.type: a system message holds text only",
    ),
    "calls of a user": (
        [{**USER, "tool_calls": []}],
        r"messages\[0\]\.tool_calls: only an assistant message",
    ),
    "calls dict": (
        assistant(content="", tool_calls={}),
        r"messages\[1\]\.tool_calls: expected a list",
    ),
    "call text": (
        assistant(content="", tool_calls=["f"]),
        r"messages\[1\]\.tool_calls\[0\]: expected a",
    ),
    "call without name": (call(arguments={}), r"messages\[1\]\.tool_calls\[0\]\.function\.name"),
    "arguments no JSON": (
        call(name="f", arguments="{x}"),
        r"messages\[1\]\.tool_calls\[0\]\.function\.arguments: not valid JSON",
    ),
    "arguments JSON list": (
        call(name="f", arguments="[1]"),
        r"arguments: expected a mapping, .* list",
    ),
    "arguments list": (call(name="f", arguments=[1]), r"arguments: expected a mapping, .* list"),
    "arguments null": (
        call(name="f", arguments=None),
        r"arguments: expected a mapping, .* NoneType",
    ),
    "arguments deep": (call(name="f", arguments="[" * 99999), r"arguments: not valid JSON"),
    "arguments object": (
        call(name="f", arguments={"a": [object()]}),
        r"messages\[1\]\.tool_calls\[0\]\.function\.arguments\.'a'\[0\]: object has no JSON form",
    ),
    "arguments key": (call(name="f", arguments={1: 2}), r"function\.arguments: key 1 is no str"),
    "surrogate": (
        [{"role": "user", "content": [{"type": "text", "text": "ab\ud800"}]}],
        r"messages\[0\]\.content\[0\]\.text: lone surrogate '\\ud800' at position 2",
    ),
    "reasoning": (assistant(content="", reasoning_content=5), r"messages\[1\]\.reasoning_content"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_their_place(name: str) -> None:
    messages, message = BAD[name]
    with pytest.raises(ValueError, match=f"^{message}" if message[0] == "m" else message):
        check_messages(messages)


def test_a_cycle_is_an_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        check_messages(call(name="f", arguments={"a": loop}))


def test_hostile_names_are_escaped_in_messages() -> None:
    with pytest.raises(ValueError) as caught:
        check_messages([{"role": "\x1b[2J" * 1000, "content": "x"}])
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000


def test_calls_come_out_in_one_form() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"name": "f", "arguments": {"x": 1}},
        ToolCall("f", {"x": 1}, "c"),
        {"function": {"name": "f"}},
        {"function": {"name": "f", "arguments": ""}},
    ]
    checked, _ = check_messages(assistant(content=None, tool_calls=calls))
    functions = [c["function"] for c in checked[1]["tool_calls"]]
    assert functions[:3] == [{"name": "f", "arguments": {"x": 1}}] * 3
    assert functions[3:] == [{"name": "f", "arguments": {}}] * 2
    assert [c.get("id") for c in checked[1]["tool_calls"]] == ["a", None, "c", None, None]


def test_null_fields_of_other_clients() -> None:
    checked, _ = check_messages(assistant(content="x", tool_calls=None, refusal=None))
    assert checked[1]["content"] == "x" and "tool_calls" not in checked[1]


def test_objects_that_say_what_they_hold() -> None:
    @dataclass
    class Message:
        role: str
        content: str

    class Dumped:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "assistant", "content": "b", "tool_calls": None}

    checked, _ = check_messages([Message("user", "a"), Dumped()])
    assert [m["content"] for m in checked] == ["a", "b"]


def test_templates_see_exact_json_types_only() -> None:
    class Text(str):
        def secret(self) -> str:
            return "s"

    class Kind(str, enum.Enum):
        A = "a"

    arguments = {"t": Text("x"), "n": np.float32(0.5), "i": np.int64(3), "k": Kind.A, "u": (1, 2)}
    checked, _ = check_messages(call(name="f", arguments=arguments))
    got = checked[1]["tool_calls"][0]["function"]["arguments"]
    assert got == {"t": "x", "n": 0.5, "i": 3, "k": "a", "u": [1, 2]}
    assert [type(v) for v in got.values()] == [str, float, int, str, list]


def test_the_callers_messages_are_left_alone() -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": b"pixels"}]}]
    checked, media = check_messages(messages)
    assert checked[0]["content"] == [{"type": "image", "image": "<image>"}]
    assert media[0].part is messages[0]["content"][0]
    assert messages[0]["content"][0]["image"] == b"pixels"


@pytest.mark.parametrize("kind", ["image", "video"])
def test_data_uris_in_openai_parts(kind: str) -> None:
    """{"image_url": {"url": "data:..."}} is the image itself."""
    uri = "data:image/png;base64,AAAA"
    for value in (uri, {"url": uri, "detail": "low"}):
        part = {"type": f"{kind}_url", f"{kind}_url": value}
        plain, media = check_messages([{"role": "user", "content": [part]}])
        assert plain[0]["content"] == [{"type": kind, kind: f"<{kind}>"}]
        assert [(m.kind, m.part[kind]) for m in media] == [(kind, uri)]
