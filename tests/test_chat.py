"""Oracles: literals, and transformers' apply_chat_template where it is installed.

The templates are one written for these tests in Qwen's format and the one of the embedded model.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import JINJA, QWEN_STYLE
from checkpoints import SPECIALS, TOKEN_IDS, write_tokenizer
from hypothesis import assume, example, given
from hypothesis import strategies as st

import qwen35
from qwen35.chat import ChatTemplate, encode_chat
from qwen35.errors import TemplateError
from qwen35.prompt import ends_thinking
from qwen35.tokenizer import Tokenizer

TINY = Path(qwen35.__file__).with_name("tiny") / "chat_template.jinja"
HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in <b>a city</b> & 'region', 世界",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {}}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_file(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(QWEN_STYLE, where="test")


@cache
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, where="test")


def control_ids(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The control tokens among ids, spelled out."""
    return [tokenizer.decode([id]) for id in ids if id in tokenizer.added_ids]


# What is rendered


def test_a_whole_conversation(template: ChatTemplate) -> None:
    calls = [
        {"function": {"name": "weather", "arguments": '{"city": "Oslo", "days": [1, 2]}'}},
        {"name": "weather", "arguments": {"city": "Rome", "now": True}},
    ]
    messages = [
        {"role": "system", "content": " Be short. "},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Oslo"}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "<think>\nLook.\n</think>\n\nOne.", "tool_calls": calls},
        {"role": "tool", "content": "3 C"},
        {"role": "tool", "content": "9 C"},
    ]
    assert template.render(messages) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nOslo?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nLook.\n</think>\n\nOne.\n\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
        "<parameter=now>\nTrue\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3 C\n</tool_response>\n"
        "<tool_response>\n9 C\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_tools_are_json_as_it_is(template: ChatTemplate) -> None:
    text = template.render(HI, tools=[WEATHER])
    assert '"description": "Weather in <b>a city</b> & \'region\', 世界"' in text


@pytest.mark.parametrize(
    ("thinking", "end"), [(None, "<think>\n"), (True, "<think>\n"), (False, "</think>\n\n")]
)
def test_enable_thinking(
    tokenizer: Tokenizer, template: ChatTemplate, thinking: bool | None, end: str
) -> None:
    text, ids = encode_chat(tokenizer, template, HI, enable_thinking=thinking)
    assert text.endswith(end)
    assert ends_thinking(tokenizer, np.array(ids)) is (thinking is not False)


def test_enable_thinking_is_undefined_unless_given() -> None:
    """A template may have a default of its own, which False or None would override."""
    source = "{{ 'unset' if enable_thinking is undefined else enable_thinking }}"
    template = ChatTemplate(source, where="test")
    assert template.render(HI) == "unset"
    assert template.render(HI, enable_thinking=False) == "False"
    assert template.render(HI, kwargs={"enable_thinking": True}) == "True"


def test_old_reasoning_does_not_open_a_new_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>a<|im_end|>\n<|im_start|>assistant\n", special=True)
    assert not ends_thinking(tokenizer, np.array(ids))
    assert ends_thinking(tokenizer, np.array([*ids, TOKEN_IDS["<think>"]]))


def test_reasoning_under_its_other_names(template: ChatTemplate) -> None:
    """Replies of other servers call it `reasoning` or `thinking`."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        messages = [*HI, {"role": "assistant", "content": "ok", name: "why"}]
        assert "<think>\nwhy\n</think>\n\nok" in template.render(messages)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "<b>&'\"</b>",
        " \n padded \n",
        "<think>\nhm\n</think>\n\nso",
        "{{ x }}",
        "<|im_end|>",
        "\ue000",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.builds(
        lambda arguments: {"type": "function", "function": {"name": "w", "arguments": arguments}},
        st.dictionaries(st.sampled_from(["city", "n", "ü"]), VALUES, max_size=2),
    ),
    min_size=1,
    max_size=2,
)
CONTENT = TEXT | st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXT), max_size=3)
MESSAGE = st.one_of(
    st.builds(lambda c: {"role": "user", "content": c}, CONTENT),
    st.builds(lambda c: {"role": "assistant", "content": c}, CONTENT),
    st.builds(lambda c, r: {"role": "assistant", "content": c, "reasoning": r}, CONTENT, TEXT),
    st.builds(lambda c, t: {"role": "assistant", "content": c, "tool_calls": t}, CONTENT, CALLS),
    st.builds(lambda c: {"role": "tool", "content": c}, CONTENT),
)
CHAT = st.builds(
    lambda system, question, rest: [*system, {"role": "user", "content": question}, *rest],
    st.lists(st.builds(lambda c: {"role": "system", "content": c}, CONTENT), max_size=1),
    CONTENT,
    st.lists(MESSAGE, max_size=5),
)


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


@pytest.mark.parametrize("source", ["test", "tiny"])
@given(
    chat=CHAT,
    tools=st.sampled_from(
        [None, [WEATHER], [WEATHER, {"type": "function", "function": {"name": "f"}}]]
    ),
    thinking=st.sampled_from([None, True, False]),
    prompt=st.booleans(),
)
def test_render_is_transformers(
    reference: Any, source: str, chat: Any, tools: Any, thinking: bool | None, prompt: bool
) -> None:
    assume(not (thinking and chat[-1]["role"] == "assistant"))
    text = QWEN_STYLE if source == "test" else TINY.read_text(encoding="utf-8")
    given_thinking = {} if thinking is None else {"enable_thinking": thinking}
    (expected,), _ = reference(
        [chat], tools=tools, chat_template=text, add_generation_prompt=prompt, **given_thinking
    )
    ours = compiled(text).render(
        chat, tools=tools, enable_thinking=thinking, add_generation_prompt=prompt
    )
    assert ours == expected


@pytest.mark.parametrize("name", JINJA)
def test_jinja_is_transformers(reference: Any, name: str) -> None:
    """The bounds around every construct change nothing of what it means."""
    (expected,), _ = reference([HI], chat_template=JINJA[name])
    assert ChatTemplate(JINJA[name], where="test").render(HI) == expected


# Control tokens


@given(chat=CHAT, tools=st.sampled_from([None, [WEATHER]]))
def test_ids_are_those_of_the_text_where_nothing_is_spelled(
    tokenizer: Tokenizer, template: ChatTemplate, chat: Any, tools: Any
) -> None:
    said = repr(chat)
    assume(not any(spelling in said for spelling in SPECIALS))
    text, ids = encode_chat(tokenizer, template, chat, tools=tools)
    assert text == template.render(chat, tools=tools)
    assert ids == tokenizer.encode(text, special=True)


PIECES = [
    *SPECIALS,
    "<",
    "<|",
    "<|im_",
    "end|>",
    "im_end|>",
    "|>",
    ">",
    "think>",
    "</",
    " ",
    "\n",
    "a",
]
SPELLED = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@given(first=SPELLED, second=SPELLED, third=SPELLED, tool=SPELLED)
@example(first="<|im_", second="end|>", third="", tool="")
@example(first="<|im_ ", second=" end|>", third="", tool="")
@example(first="<", second="think", third=">", tool="<|im_end|>")
def test_messages_cannot_write_control_tokens(
    tokenizer: Tokenizer, template: ChatTemplate, first: str, second: str, third: str, tool: str
) -> None:
    parts = [{"type": "text", "text": text} for text in (first, second, third)]
    messages = [
        {"role": "system", "content": parts},
        {"role": "user", "content": parts},
        {
            "role": "assistant",
            "content": "ok",
            "reasoning_content": first,
            "tool_calls": [{"name": "w", "arguments": {second: tool, "b": [third, {tool: 1}]}}],
        },
        {"role": "tool", "content": tool},
    ]
    spec = {"type": "function", "function": {"name": "w", "description": tool}}
    text, ids = encode_chat(tokenizer, template, messages, tools=[spec])
    assert control_ids(tokenizer, ids) == [
        *("<|im_start|>", "<tool_call>", "</tool_call>", "<|im_end|>"),
        *("<|im_start|>", "<|im_end|>"),
        *("<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"),
        *("<|im_start|>", "<tool_response>", "</tool_response>", "<|im_end|>"),
        *("<|im_start|>", "<think>"),
    ]
    assert tokenizer.decode(ids) == text


@given(first=SPELLED, second=SPELLED)
def test_nothing_is_lost_or_added(tokenizer: Tokenizer, first: str, second: str) -> None:
    template = ChatTemplate("[{{ messages[0].content }}|{{ messages[1].content }}]", where="test")
    messages = [{"role": "user", "content": first}, {"role": "user", "content": second}]
    text, ids = encode_chat(tokenizer, template, messages)
    assert text == f"[{first}|{second}]" == tokenizer.decode(ids)
    assert control_ids(tokenizer, ids) == []


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("<{{ messages[0].content }}>", "think"),
        ("<|im_{{ messages[0].content }}", "end|>"),
        ("{{ messages[0].content }}|im_end|>", "<"),
        ("{{ messages[0].content|replace('X', '') }}", "<|im_Xend|>"),
        ("{{ messages[0].content.split('X')|join }}", "<thXink>"),
        ("{{ messages[0].content|trim }}think>", "  < "),
        ("{{ messages[0].content|tojson(ensure_ascii=true) }}", "<think>"),
        ("{{ messages[0].content[1:] }}", "a<think>"),
    ],
)
def test_templates_that_join_and_cut(tokenizer: Tokenizer, source: str, content: str) -> None:
    """A part of a control token from a message stays plain whatever the template does with it."""
    messages = [{"role": "user", "content": content}]
    template = ChatTemplate(source, where="test")
    text, ids = encode_chat(tokenizer, template, messages)
    assert text == template.render(messages)
    assert control_ids(tokenizer, ids) == []


def test_marks_in_messages_of_the_assistant_keep_their_meaning(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    said = "<think>\nx\n</think>\n\ny <tool_call> <|im_end|>"
    text, ids = encode_chat(tokenizer, template, [*HI, {"role": "assistant", "content": said}])
    assert "<think>\nx\n</think>\n\ny <tool_call> <|im_end|><|im_end|>" in text
    assert control_ids(tokenizer, ids) == [
        *("<|im_start|>", "<|im_end|>"),
        *("<|im_start|>", "<think>", "</think>", "<tool_call>", "<|im_end|>"),
        *("<|im_start|>", "<think>"),
    ]


def test_private_use_characters_in_messages_survive(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    said = "".join(map(chr, range(0xE000, 0xE100))) + "<think>"
    text, ids = encode_chat(tokenizer, template, [{"role": "user", "content": said}])
    assert said in text and said in tokenizer.decode(ids)


# What is refused


def test_the_media_hook_gets_all_media_in_order(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    image, other = {"type": "image", "image": "a.png"}, {"type": "image", "image": object()}
    messages = [
        {"role": "user", "content": [image]},
        {"role": "user", "content": [{"type": "text", "text": "b"}, other]},
    ]
    seen: list[Any] = []
    text, ids = encode_chat(tokenizer, template, messages, media=seen.extend)
    assert [(part.path, part.kind) for part in seen] == [
        ("messages[0].content[0]", "image"),
        ("messages[1].content[1]", "image"),
    ]
    assert seen[1].part["image"] is other["image"]
    assert ids.count(TOKEN_IDS["<|image_pad|>"]) == 2


@pytest.mark.parametrize(
    "name", ["messages", "tools", "tokenize", "chat_template", "add_generation_prompt"]
)
def test_reserved_template_variables(template: ChatTemplate, name: str) -> None:
    with pytest.raises(ValueError, match=f"chat_template_kwargs: '{name}' is reserved"):
        template.render(HI, kwargs={name: 1})


@pytest.mark.parametrize("kwargs", [{"a b": 1}, {1: 2}, ["a"], {"x": object()}])
def test_bad_template_variables(template: ChatTemplate, kwargs: Any) -> None:
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        template.render(HI, kwargs=kwargs)


@pytest.mark.parametrize("name", ["template", "self", "environment", "variables"])
def test_template_variables_of_any_name(name: str) -> None:
    """They are not arguments of ours, so none of our own names gets in the way."""
    template = ChatTemplate("{{ x }}{{ " + name + " is defined }}", where="test")
    assert template.render(HI, kwargs={name: 1, "x": "a"}) == "aTrue"


def test_template_variables_reach_the_template(template: ChatTemplate) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": "x"}]}]
    assert "Picture 1: <|vision_start|>" in template.render(
        messages, kwargs={"add_vision_id": True}
    )


@pytest.mark.parametrize("value", [1, "yes", 0])
def test_enable_thinking_is_a_bool(template: ChatTemplate, value: Any) -> None:
    with pytest.raises(ValueError, match="enable_thinking=.*True, False or None"):
        template.render(HI, enable_thinking=value)


def test_enable_thinking_given_twice(template: ChatTemplate) -> None:
    same = template.render(HI, enable_thinking=False, kwargs={"enable_thinking": False})
    assert same == template.render(HI, enable_thinking=False)
    with pytest.raises(ValueError, match="given twice"):
        template.render(HI, enable_thinking=True, kwargs={"enable_thinking": False})


def test_begun_answer_and_thinking(template: ChatTemplate) -> None:
    messages = [*HI, {"role": "assistant", "content": "The answer is"}]
    with pytest.raises(ValueError, match=r"messages\[1\].* drop this .* or enable_thinking=True"):
        template.render(messages, enable_thinking=True)
    assert template.render(messages, enable_thinking=False)


def test_no_template() -> None:
    with pytest.raises(TemplateError, match="model: no chat template; put chat_template.jinja"):
        ChatTemplate(None, where="model")


def test_error_of_the_template_has_its_line() -> None:
    source = "line 1\n{% if true %}\n{{ raise_exception('No such luck') }}\n{% endif %}"
    with pytest.raises(TemplateError, match="^model: chat template line 3: No such luck$"):
        ChatTemplate(source, where="model").render(HI)
