"""Oracles: literals in Qwen's format; what a chat template writes for a call must parse to it."""

import json
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_templates import QWEN_STYLE
from checkpoints import TOKEN_IDS, write_tokenizer
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qwen35.chat import ChatTemplate
from qwen35.reasoning_tools import AnswerParser
from qwen35.tokenizer import Tokenizer


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("weather", city={"type": "string"}, days={"type": "integer"}),
    tool("note", text={"type": "string"}),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_file(folder / "tokenizer.json")


class Result:
    """Text of each kind, the calls, and every piece."""

    def __init__(self, pieces: list[tuple[str, str]], parser: AnswerParser):
        self.pieces = pieces
        self.reasoning, self.text, self.raw_calls = (
            "".join(text for text, kind in pieces if kind == wanted)
            for wanted in ("reasoning", "text", "tool_call")
        )
        self.calls = [(call.name, call.arguments) for call in parser.tool_calls]
        self.ids = [call.id for call in parser.tool_calls]


def parse(
    tokenizer: Tokenizer,
    answer: str,
    *,
    in_reasoning: bool = False,
    tools: Any = TOOLS,
    cuts: list[int] | None = None,
    special: bool = True,
) -> Result:
    """Parse an answer: its tokens one by one, or its text in pieces."""
    parser = AnswerParser(tokenizer, in_reasoning=in_reasoning, tools=tools)
    pieces: list[tuple[str, str]] = []
    if cuts is None:
        for id in tokenizer.encode(answer, special=special):
            pieces += parser.push(id)
    else:
        places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
        for a, b in pairwise(places):
            pieces += parser.push_text(answer[a:b])
    return Result(pieces + parser.flush(), parser)


CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
ANSWER = f"Think.\n</think>\n\nI will look.\n\n{CALL}"


@pytest.mark.parametrize("special", [True, False], ids=["as tokens", "spelled out"])
def test_reasoning_text_and_a_call(tokenizer: Tokenizer, special: bool) -> None:
    result = parse(tokenizer, ANSWER + "<|im_end|>" * special, in_reasoning=True, special=special)
    assert (result.reasoning, result.text) == ("Think.", "I will look.")
    assert result.calls == [("weather", {"city": "Oslo", "days": 3})]
    assert result.raw_calls == CALL


def test_call_alone(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, CALL)
    assert (result.text, len(result.calls)) == ("", 1)


def test_several_calls_have_ids_of_their_own(tokenizer: Tokenizer) -> None:
    other = (
        "<tool_call>\n<function=note>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>"
    )
    result = parse(tokenizer, f"{CALL}\n{other}\n{CALL}\n")
    assert [name for name, _ in result.calls] == ["weather", "note", "weather"]
    assert len(set(result.ids)) == 3
    assert result.text == ""
    assert result.raw_calls == CALL + other + CALL


def test_parameters_in_any_order_and_without_line_breaks(tokenizer: Tokenizer) -> None:
    answer = (
        "<tool_call><function=weather><parameter=days>3</parameter>"
        "<parameter=city>Oslo</parameter></function></tool_call>"
    )
    assert parse(tokenizer, answer).calls == [("weather", {"days": 3, "city": "Oslo"})]


def test_call_without_parameters(tokenizer: Tokenizer) -> None:
    answer = "<tool_call>\n<function=weather>\n</function>\n</tool_call>"
    assert parse(tokenizer, answer).calls == [("weather", {})]


def test_text_after_a_call_is_kept(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, f"a\n{CALL}\nb\n\nc")
    assert (result.text, len(result.calls)) == ("ab\n\nc", 1)


def test_line_breaks_of_a_value_but_for_the_outer_ones(tokenizer: Tokenizer) -> None:
    value = "\n  def f():\n\n    return 1\n"
    answer = f"<tool_call>\n<function=note>\n<parameter=text>\n{value}\n</parameter>\n</function>\n"
    assert parse(tokenizer, answer + "</tool_call>").calls == [("note", {"text": value})]


@pytest.mark.parametrize(
    "value",
    [
        "</parameter>",
        "a</parameter>b",
        "</parameter>\n</parameter>",
        "<parameter=x>",
        "</function>",
        "</tool_call>",
        "</function>\n</tool_call>",
        "</function>\n</tool_call> and more",
        "<tool_call>",
        "<think>hm</think>",
        "<function=note>",
        "",
        " ",
    ],
)
def test_value_that_looks_like_markup(tokenizer: Tokenizer, value: str) -> None:
    answer = f"<tool_call>\n<function=note>\n<parameter=text>\n{value}\n</parameter>\n</function>\n"
    result = parse(tokenizer, answer + "</tool_call>\nok")
    assert result.calls == [("note", {"text": value})]
    assert result.text == "ok"


def test_unknown_tool_and_unknown_parameter_stay_text(tokenizer: Tokenizer) -> None:
    answer = CALL.replace("weather", "other").replace("days", "nights")
    assert parse(tokenizer, answer).calls == [("other", {"city": "Oslo", "nights": "3"})]
    answer = CALL.replace("days", "nights")
    assert parse(tokenizer, answer).calls == [("weather", {"city": "Oslo", "nights": "3"})]


def test_value_that_does_not_fit_its_type_stays_text(tokenizer: Tokenizer) -> None:
    answer = CALL.replace("\n3\n", "\nthree\n")
    assert parse(tokenizer, answer).calls == [("weather", {"city": "Oslo", "days": "three"})]


def test_without_tools_calls_are_text(tokenizer: Tokenizer) -> None:
    for tools in (None, []):
        result = parse(tokenizer, f"a\n\n{CALL}", tools=tools)
        assert (result.text, result.calls) == (f"a\n\n{CALL}", [])


MALFORMED = [
    "<tool_call>",
    "<tool_call>\n",
    "<tool_call> is the mark of a call",
    '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>',
    "<tool_call>\n</tool_call>",
    "<tool_call>\n<function=weather>",
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo",
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</function>\n</tool_call>",
    "<tool_call>\n<function=weather>\nOslo\n</function>\n</tool_call>",
    "<tool_call>\n<function=weather\n</function>\n</tool_call>",
    "<tool_call>\n<function=>\n</function>\n</tool_call>",
    "</tool_call>",
    "<function=weather>\n</function>",
    "<tool_cal",
    "<tool_call>\n<func",
    "<tool_call>\n\n\n",
]


@pytest.mark.parametrize("answer", MALFORMED)
def test_malformed_call_is_text(tokenizer: Tokenizer, answer: str) -> None:
    result = parse(tokenizer, f"before\n\n{answer}")
    assert (result.text, result.calls, result.raw_calls) == (f"before\n\n{answer}", [], "")


@pytest.mark.parametrize("answer", [m for m in MALFORMED if m.endswith("</tool_call>")])
def test_malformed_call_does_not_take_the_next_with_it(tokenizer: Tokenizer, answer: str) -> None:
    result = parse(tokenizer, f"{answer}\n{CALL}")
    assert result.calls == [("weather", {"city": "Oslo", "days": 3})]
    assert result.text == answer


def test_a_quoted_mark_does_not_hold_up_the_stream(tokenizer: Tokenizer) -> None:
    parser = AnswerParser(tokenizer, in_reasoning=False, tools=TOOLS)
    assert parser.push_text("<tool_call> i") == [("<tool_call> i", "text")]
    assert parser.push_text("s it") == [("s it", "text")]


def test_call_cut_off_after_its_function(tokenizer: Tokenizer) -> None:
    answer = CALL.removesuffix("\n</tool_call>")
    assert parse(tokenizer, answer).calls == [("weather", {"city": "Oslo", "days": 3})]


# Reasoning


def test_second_think_reasons_again(tokenizer: Tokenizer) -> None:
    answer = "one\n</think>\n\ntwo\n<think>\nthree\n</think>\n\nfour"
    result = parse(tokenizer, answer, in_reasoning=True)
    assert (result.reasoning, result.text) == ("onethree", "twofour")
    kinds = [kind for kind, _ in groupby(kind for _, kind in result.pieces)]
    assert kinds == ["reasoning", "text", "reasoning", "text"]


def test_opening_think_is_passed_where_the_prompt_opened_it(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, "\n<think>\nwhy\n</think>\n\nok", in_reasoning=True)
    assert (result.reasoning, result.text) == ("why", "ok")
    result = parse(tokenizer, "<think>\nwhy\n</think>\n\nok", in_reasoning=False)
    assert (result.reasoning, result.text) == ("why", "ok")


def test_think_in_the_middle_of_reasoning_is_said(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, "The <think> mark.\n</think>\n\nok", in_reasoning=True)
    assert (result.reasoning, result.text) == ("The <think> mark.", "ok")


def test_empty_reasoning(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, "\n\n</think>\n\nok", in_reasoning=True)
    assert (result.reasoning, result.text) == ("", "ok")


def test_reasoning_that_never_ends(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, "and so on\n</thin", in_reasoning=True)
    assert (result.reasoning, result.text) == ("and so on\n</thin", "")


def test_calls_in_reasoning_are_thoughts(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, f"{CALL}\n</think>\n\nok", in_reasoning=True)
    assert (result.reasoning, result.text, result.calls) == (CALL, "ok", [])


def test_end_of_reasoning_without_reasoning_is_text(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, "a</think>b").text == "a</think>b"


def test_plain_answer_is_left_as_it_is(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, "\n a \n\n b \n").text == "\n a \n\n b \n"


def test_control_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, "a<|im_end|>b<|box_start|>").text == "ab"


def test_characters_are_never_split(tokenizer: Tokenizer) -> None:
    result = parse(tokenizer, "🙂 世界</think>🙂", in_reasoning=True)
    assert (result.reasoning, result.text) == ("🙂 世界", "🙂")
    assert not any("\ufffd" in text for text, _ in result.pieces)


def test_text_streams_as_it_comes(tokenizer: Tokenizer) -> None:
    parser = AnswerParser(tokenizer, in_reasoning=False, tools=TOOLS)
    assert parser.push_text("Hello") == [("Hello", "text")]
    assert not parser.holding
    assert parser.push_text("\n") == [] and parser.holding
    assert parser.push_text("<tool") == []
    assert parser.push_text("s>") == [("\n<tools>", "text")]
    assert parser.kind == "text"
    assert parser.push_text("<tool_call>") == []
    assert (parser.kind, parser.holding) == ("tool_call", True)


# Properties

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "</function>"]
MARKS += ["<parameter=p>", "</parameter>", "\n", "\n\n", " ", "a", "<", "🙂", CALL, "<|im_end|>"]
STREAM = st.lists(st.sampled_from(MARKS), max_size=12).map("".join)


@given(answer=STREAM, in_reasoning=st.booleans(), cuts=st.lists(st.integers(0, 200), max_size=40))
@example(answer=f"\n\n<think>a</think>\n{CALL}", in_reasoning=True, cuts=list(range(99)))
def test_pieces_do_not_matter(
    tokenizer: Tokenizer, answer: str, in_reasoning: bool, cuts: list[int]
) -> None:
    whole = parse(tokenizer, answer, in_reasoning=in_reasoning, cuts=[])
    pieces = parse(tokenizer, answer, in_reasoning=in_reasoning, cuts=cuts)
    for result in (whole, pieces):
        result.kinds = (result.reasoning, result.text, result.raw_calls, result.calls)
    assert pieces.kinds == whole.kinds


def rest(text: str) -> str:
    """Text without what separates its parts."""
    for mark in ("<think>", "</think>", "\n"):
        text = text.replace(mark, "")
    return text


@given(answer=STREAM, in_reasoning=st.booleans())
def test_nothing_but_marks_and_line_breaks_is_left_out(
    tokenizer: Tokenizer, answer: str, in_reasoning: bool
) -> None:
    result = parse(tokenizer, answer, in_reasoning=in_reasoning, cuts=[])
    assert rest("".join(text for text, _ in result.pieces)) == rest(answer)


@given(answer=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_answers_without_marks_are_text(tokenizer: Tokenizer, answer: str) -> None:
    assume(not any(mark in answer for mark in MARKS[:4]))
    assert parse(tokenizer, answer, cuts=[]).text == answer


ids = st.lists(st.integers(0, max(TOKEN_IDS.values())), max_size=40)


@given(ids=ids, in_reasoning=st.booleans())
def test_any_ids(tokenizer: Tokenizer, ids: list[int], in_reasoning: bool) -> None:
    parser = AnswerParser(tokenizer, in_reasoning=in_reasoning, tools=TOOLS)
    text = "".join(t for id in ids for t, _ in parser.push(id))
    text += "".join(t for t, _ in parser.flush())
    assert rest(text) == rest(tokenizer.decode(ids, skip_special=True))
    assert parser.flush() == []


SCHEMA = tool(
    "f",
    s={"type": "string"},
    i={"type": "integer"},
    n={"type": "number"},
    b={"type": "boolean"},
    z={"type": "null"},
    a={"type": "array"},
    o={"type": "object"},
    u={"anyOf": [{"type": "integer"}, {"type": "null"}]},
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab<>/=\n ü", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "s": st.text("ab <>/\n'\"{}[]ü🙂", max_size=20),
        "i": st.integers(),
        "n": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "b": st.booleans(),
        "z": st.none(),
        "a": st.lists(JSON, max_size=3),
        "o": st.dictionaries(st.text("ab"), JSON, max_size=3),
        "u": st.none() | st.integers(),
        "ü": st.text("ab", max_size=3),
    },
)


@given(calls=st.lists(ARGUMENTS, min_size=1, max_size=3), as_json=st.booleans())
def test_what_the_template_writes_parses_back(
    tokenizer: Tokenizer, calls: list[dict[str, Any]], as_json: bool
) -> None:
    messages = [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "Well.",
            "tool_calls": [
                {"name": "f", "arguments": json.dumps(c) if as_json else c} for c in calls
            ],
        },
    ]
    text = ChatTemplate(QWEN_STYLE, where="test").render(messages, add_generation_prompt=False)
    answer = text.split("<|im_start|>assistant\n<think>\n")[1].removesuffix("<|im_end|>\n")
    result = parse(tokenizer, answer, in_reasoning=True, tools=[SCHEMA], cuts=[])
    assert result.text == "Well."
    assert result.calls == [("f", call) for call in calls]
    for _, arguments in result.calls:
        for name, value in arguments.items():
            kinds = {"i": int, "b": bool, "a": list, "o": dict, "s": str}
            assert type(value) is kinds.get(name, type(value))
