"""Oracle: answers written down beforehand and played by a scripted core; literals for what must
come out of them.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from fake_core import after, fake_model
from hypothesis import given
from hypothesis import strategies as st

import qwen35

IDS = checkpoints.TOKEN_IDS
END, EOT = IDS["<|im_end|>"], IDS["<|endoftext|>"]


@pytest.fixture
def model(small: Path) -> Any:
    with fake_model(small, context=300) as model:
        yield model


def script(
    model: Any, prompt: Any, answer: str | list[int], then: int = END, **options: Any
) -> Any:
    """Make `model` answer `prompt` (text, or messages) with `answer`, then with the token `then`;
    returns the ids.
    """
    ids = model.tokenize(answer, special=True) if isinstance(answer, str) else answer
    model._core.script = after(model.prompt(prompt, **options).ids.tolist(), ids, then)
    return ids


HI = [{"role": "user", "content": "hi"}]
CALL = "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n</function>\n</tool_call>"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]


# ---- text and tokens -----------------------------------------------------------------------------


def test_tokens_join_to_the_text_and_end_with_the_stop_token(model: Any) -> None:
    ids = script(model, "ask", "héllo 世界 🙂")
    tokens = list(model.generate("ask"))
    assert [token.id for token in tokens] == [*ids, END]
    assert "".join(token.text for token in tokens) == "héllo 世界 🙂"
    assert tokens[-1].text == ""
    assert all("\ufffd" not in token.text for token in tokens)
    assert {token.kind for token in tokens} == {"text"}
    assert not any(token.from_draft for token in tokens)


def test_result_is_the_whole_whatever_was_read_before(model: Any) -> None:
    ids = script(model, "ask", "the answer")
    for taken in (0, 1, 3):
        stream = model.generate("ask")
        for _ in range(taken):
            next(stream)
        result = stream.result()
        assert (result.text, result.token_ids) == ("the answer", [*ids, END])
        assert result is stream.result() and str(result) == "the answer"
        assert list(stream) == []
    assert (result.finish_reason, result.stop_reason) == ("stop", END)
    assert model.last is result


@pytest.mark.parametrize("name", ["<|im_end|>", "<|endoftext|>"])
def test_both_end_tokens_stop(model: Any, name: str) -> None:
    script(model, "ask", "a", then=IDS[name])
    assert model.generate("ask").result().token_ids[-1] == IDS[name]


def test_ignore_eos_goes_on_and_own_stop_ids_still_stop(model: Any) -> None:
    ids = script(model, "ask", [5, END, 6, 7])
    result = model.generate("ask", ignore_eos=True, max_tokens=3).result()
    assert (result.token_ids, result.finish_reason) == (ids[:3], "length")
    result = model.generate("ask", ignore_eos=True, stop_token_ids=[7]).result()
    assert (result.token_ids, result.finish_reason, result.stop_reason) == (ids, "stop", 7)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_cut_off_by_max_tokens_is_replaced_once(model: Any, cut: int) -> None:
    ids = script(model, "ask", "🙂")
    assert len(ids) == 4
    tokens = list(model.generate("ask", max_tokens=cut))
    assert [token.id for token in tokens] == ids[:cut]
    assert "".join(token.text for token in tokens) == "\ufffd"


def test_a_character_cut_off_by_the_end_is_given_to_a_token_before_it(model: Any) -> None:
    half = [*model.tokenize("a"), *model.tokenize("🙂")[:2]]
    ids = script(model, "ask", half)
    tokens = list(model.generate("ask"))
    assert [token.id for token in tokens] == [*ids, END]
    assert [token.text for token in tokens] == ["a", "", "\ufffd", ""]


def test_max_tokens_zero_and_what_fits(model: Any) -> None:
    script(model, "ask", "a" * 400, then=5)
    empty = model.generate("ask", max_tokens=0).result()
    assert (empty.text, empty.token_ids, empty.finish_reason) == ("", [], "length")
    full = model.generate("ask").result()
    assert full.usage.completion_tokens == 300 - 3 and full.finish_reason == "length"


def test_logprobs_are_there_when_asked_for(model: Any) -> None:
    script(model, "ask", "the answer")
    for token in model.generate("ask"):
        assert token.logprob is None and token.top_logprobs == []
    for token in model.generate("ask", logprobs=3):
        assert token.top_logprobs[0] == (token.id, token.logprob)
        values = [value for _, value in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
    token = next(model.generate("ask", logprobs=-1))
    assert len(token.top_logprobs) == 307


def test_usage_and_timings_count_what_ran(model: Any) -> None:
    ids = script(model, HI, "why</think>\n\nso")
    result = model.chat(HI).result()
    prompt = len(model.prompt(HI))
    usage = result.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (prompt, 0)
    assert usage.completion_tokens == len(ids) + 1 == len(result.token_ids)
    assert usage.total_tokens == prompt + len(ids) + 1
    assert 0 < usage.reasoning_tokens < len(ids)
    timings = result.timings
    assert timings.prefill_tokens == prompt and timings.decode_tokens == len(ids) + 1
    assert timings.prefill_tps > 0 and timings.decode_tps > 0 and timings.ttft_s > 0


# ---- stop strings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "stop", "text", "matched"),
    [
        ("one two three", "two", "one ", "two"),
        ("one two three", ["three", "two"], "one ", "two"),
        ("one two three", "o t", "one tw", "o t"),
        ("one two three", "four", "one two three", None),
        ("xya", "abc", "xya", None),
        ("aaab", "aab", "a", "aab"),
        ("né世界🙂!", "世界", "né", "世界"),
        ("a🙂b", "🙂", "a", "🙂"),
        ("same", "same", "", "same"),
    ],
)
def test_stop_strings(model: Any, answer: str, stop: Any, text: str, matched: str | None) -> None:
    script(model, "ask", answer)
    tokens = list(stream := model.generate("ask", stop=stop))
    result = stream.result()
    assert "".join(token.text for token in tokens) == result.text == text
    assert [token.id for token in tokens] == result.token_ids
    assert result.finish_reason == "stop"
    assert result.stop_reason == (END if matched is None else matched)
    if matched is None:
        assert tokens[-1].id == END and tokens[-1].text == ""


def test_stop_strings_wait_for_min_tokens(model: Any) -> None:
    script(model, "ask", "a b a b")
    assert model.generate("ask", stop="b").result().text == "a "
    assert model.generate("ask", stop="b", min_tokens=4).result().text == "a b a "


def test_stop_strings_do_not_fire_in_reasoning(model: Any) -> None:
    script(model, HI, "stop here</think>\n\nand stop there")
    result = model.chat(HI, stop="stop").result()
    assert (result.reasoning.strip(), result.text) == ("stop here", "and ")


def test_a_started_stop_string_is_delivered_when_max_tokens_ends_the_answer(model: Any) -> None:
    script(model, "ask", "xya")
    tokens = list(model.generate("ask", stop="abc", max_tokens=3))
    assert "".join(token.text for token in tokens) == "xya"


@given(data=st.data())
def test_texts_join_to_the_decoded_answer(data: st.DataObject, small: Path) -> None:
    """Any ids, bytes of broken characters included: what is streamed is what decoding all gives."""
    added = st.sampled_from([IDS["<think>"], IDS["</think>"], IDS["<tool_call>"]])
    ids = data.draw(st.lists(st.one_of(st.integers(0, 255), added), max_size=30))
    cut = data.draw(st.integers(0, 40))
    model = _shared(small)
    script(model, "ask", ids)
    tokens = list(stream := model.generate("ask", max_tokens=cut))
    said = [*ids, END][:cut]
    assert [token.id for token in tokens] == said == stream.result().token_ids
    text = model.detokenize([token for token in said if token != END])
    assert "".join(token.text for token in tokens) == text == stream.result().text


@given(data=st.data())
def test_chat_loses_nothing_but_marks_and_line_breaks(data: st.DataObject, small: Path) -> None:
    words = [
        "a",
        "\n",
        "\n\n",
        "<",
        "</",
        "<think>",
        "</think>",
        "é",
        "🙂",
        " ",
        "<tool_call>",
        CALL,
    ]
    said = "".join(data.draw(st.lists(st.sampled_from(words), max_size=20)))
    stop = data.draw(st.sampled_from([None, "aa", "é🙂", "<a"]))
    tools = data.draw(st.sampled_from([None, TOOLS]))
    model = _shared(small)
    script(model, HI, said, tools=tools)
    tokens = list(stream := model.chat(HI, stop=stop, tools=tools))
    result = stream.result()
    assert [token.id for token in tokens] == result.token_ids
    for kind, text in (("reasoning", result.reasoning), ("text", result.text)):
        assert "".join(token.text for token in tokens if token.kind == kind) == text
    if stop is None:
        for mark in ("<think>", "</think>", "\n"):
            said = said.replace(mark, "")
        shown = "".join(token.text for token in tokens)
        rest = shown.replace("\n", "").replace("<think>", "")
        assert rest.replace("</think>", "") == said
    else:  # a change of kind ends a match
        parts = groupby(tokens, key=lambda token: token.kind)
        texts = ["".join(token.text for token in part) for kind, part in parts if kind == "text"]
        assert not any(stop in text for text in texts)


_models: dict[Path, Any] = {}


def _shared(folder: Path) -> Any:
    """One scripted model for all examples of a property."""
    if folder not in _models:
        _models[folder] = fake_model(folder, context=4000)
    return _models[folder]


# ---- chat ----------------------------------------------------------------------------------------


def test_chat_splits_reasoning_from_text(model: Any) -> None:
    script(model, HI, "let me see</think>\n\nfour")
    tokens = list(stream := model.chat("hi"))
    result = stream.result()
    assert (result.reasoning.strip(), result.text) == ("let me see", "four")
    for kind, text in (("reasoning", result.reasoning), ("text", result.text)):
        assert "".join(token.text for token in tokens if token.kind == kind) == text


def test_chat_without_thinking_is_text(model: Any) -> None:
    script(model, HI, "four", enable_thinking=False)
    result = model.chat("hi", enable_thinking=False).result()
    assert (result.reasoning, result.text, result.usage.reasoning_tokens) == ("", "four", 0)


def test_generate_takes_everything_as_text_but_a_prompt_of_messages_as_chat(model: Any) -> None:
    script(model, HI, "see</think>\n\nfour")
    prompt = model.prompt(HI)
    assert model.generate(prompt.ids).result().text == "see</think>\n\nfour"
    assert model.generate(prompt).result().text == "four"


def test_tool_calls_are_parsed_and_named_as_the_reason(model: Any) -> None:
    options = {"tools": TOOLS, "enable_thinking": False}
    script(model, HI, CALL, **options)
    result = model.chat(HI, **options).result()
    assert [(call.name, call.arguments) for call in result.tool_calls] == [("add", {"a": 2})]
    assert (result.finish_reason, result.text) == ("tool_calls", "")


def test_thinking_budget_closes_the_part_and_goes_on(model: Any) -> None:
    end = model.tokenize("\n</think>\n\n", special=True)
    thought = model.tokenize("abcdefgh")
    prompt = model.prompt(HI).ids.tolist()

    def answer(ids: list[int]) -> int:
        closed = IDS["</think>"] in ids[len(prompt) :]
        said = ids[len(prompt) :]
        if not closed:
            return thought[len(said) % len(thought)]
        return END if said[-1] == 5 else 5

    model._core.script = answer
    for budget in (0, 1, 4):
        result = model.chat(HI, thinking_budget=budget).result()
        assert result.token_ids == [*thought[:budget], *end, 5, END]
        assert result.reasoning.strip() == "abcdefgh"[:budget]
        assert result.text == model.detokenize([5])


def test_thinking_budget_is_armed_again_by_a_second_think(model: Any) -> None:
    opening, end = IDS["<think>"], model.tokenize("\n</think>\n\n", special=True)
    prompt = model.prompt(HI).ids.tolist()

    def answer(ids: list[int]) -> int:
        said = ids[len(prompt) :]
        if said.count(IDS["</think>"]) == 1 and opening not in said:
            return opening
        return END if said.count(IDS["</think>"]) == 2 else 66

    model._core.script = answer
    result = model.chat(HI, thinking_budget=2).result()
    assert result.token_ids == [66, 66, *end, opening, 66, 66, *end, END]


def test_an_answer_that_was_all_reasoning_warns(model: Any) -> None:
    script(model, HI, "hmm" * 20)
    with pytest.warns(RuntimeWarning, match="all 7 tokens went to reasoning"):
        model.chat(HI, max_tokens=7).result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.chat(HI, max_tokens=7, enable_thinking=False).result()


# ---- ending early --------------------------------------------------------------------------------


def test_cancel_keeps_what_was_there(model: Any) -> None:
    script(model, "ask", "a" * 200)
    stream = model.generate("ask")
    said = [next(stream).text for _ in range(5)]
    stream.cancel()
    assert list(stream) == []
    result = stream.result()
    assert (result.text, result.finish_reason) == ("".join(said), "cancelled")
    assert model.generate("ask", max_tokens=3).result().text == "aaa"


def test_cancel_before_the_start_and_after_the_end(model: Any) -> None:
    ids = script(model, "ask", "a")
    stream = model.generate("ask")
    stream.cancel()
    assert stream.result().finish_reason == "cancelled" and model._core.appended == 0
    stream = model.generate("ask")
    assert stream.result().token_ids == [*ids, END]
    stream.cancel()
    assert stream.result().finish_reason == "stop"


def test_cancel_reaches_into_a_long_prompt(small: Path) -> None:
    with fake_model(small, context=10_000, chunk_s=0.001) as model:
        stream = model.generate([5] * 9000)
        timer = threading.Timer(0.02, stream.cancel)
        timer.start()
        result = stream.result()
        assert result.finish_reason == "cancelled" and result.token_ids == []
        assert 0 < model._core.appended < 9000


def test_leaving_a_with_block_cancels(model: Any) -> None:
    script(model, "ask", "a" * 200)
    with model.generate("ask") as stream:
        next(stream)
    assert stream.result().finish_reason == "cancelled"


def test_a_dropped_stream_gives_its_session_back(model: Any) -> None:
    script(model, "ask", "a" * 200)
    for _ in model.generate("ask"):
        break
    gc.collect()
    assert len(model._pool._idle) == 1


def test_an_interrupt_leaves_the_answer_so_far(model: Any) -> None:
    ids = script(model, "ask", "abcdefgh")
    play = model._core.script

    def interrupted(history: list[int]) -> int:
        if history[-3:] == ids[2:5]:
            raise KeyboardInterrupt
        return play(history)

    model._core.script = interrupted
    stream = model.generate("ask")
    with pytest.raises(KeyboardInterrupt):
        stream.result()
    assert (stream.result().text, stream.result().finish_reason) == ("abcde", "cancelled")
    assert model.last.text == "abcde"
    model._core.script = play
    assert model.generate("ask").result().text == "abcdefgh"


def test_an_error_is_raised_again_by_result(model: Any) -> None:
    def broken(history: list[int]) -> int:
        raise MemoryError("no room")

    model._core.script = broken
    stream = model.generate("ask")
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            stream.result()
    assert model._pool._idle == []  # that session's state is not trusted again
    script(model, "ask", "fine")
    assert model.generate("ask").result().text == "fine"


def test_close_ends_running_streams(small: Path) -> None:
    model = fake_model(small, context=10_000, chunk_s=0.001)
    started, idle = model.generate([5] * 9000), model.generate("ask")
    thread = threading.Thread(target=started.result)
    thread.start()
    while model._core.appended == 0:
        pass
    model.close()
    thread.join(5)
    assert not thread.is_alive()
    for stream in (started, idle):
        assert list(stream) == [] and stream.result().finish_reason == "cancelled"


def test_close_from_within_a_stream_does_not_wait_for_itself(small: Path) -> None:
    model = fake_model(small, context=100)
    ids = model.tokenize("abc")

    def closing(history: list[int]) -> int:
        model.close()
        return ids[0]

    model._core.script = closing
    assert model.generate("ask").result().finish_reason == "cancelled"


# ---- threads and tasks ---------------------------------------------------------------------------


def test_two_threads_read_their_own_streams(model: Any) -> None:
    results: dict[str, list[int]] = {}

    def ask(prompt: str) -> None:
        results[prompt] = model.generate(prompt, max_tokens=20, ignore_eos=True).result().token_ids

    prompts = [f"prompt {i}" for i in range(6)]
    for prompt in prompts:
        ask(prompt)
    alone = dict(results)
    results.clear()
    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == alone and len(model._pool._idle) <= 2


def test_two_threads_on_one_stream_are_told(small: Path) -> None:
    with fake_model(small, context=10_000, chunk_s=0.001) as model:
        stream = model.generate([5] * 9000)
        thread = threading.Thread(target=stream.result)
        thread.start()
        while model._core.appended == 0:
            pass
        with pytest.raises(qwen35.BusyError, match="another thread"):
            next(stream)
        stream.cancel()
        thread.join(5)
        assert stream.result().finish_reason == "cancelled"


def test_async_iteration(model: Any) -> None:
    ids = script(model, "ask", "the answer")

    async def read() -> list[int]:
        return [token.id async for token in model.generate("ask")]

    assert asyncio.run(read()) == [*ids, END]


def test_cancelling_a_task_cancels_the_answer(small: Path) -> None:
    with fake_model(small, context=10_000, chunk_s=0.001) as model:
        stream = model.generate([5] * 9000)

        async def read() -> None:
            async with stream:
                async for _ in stream:
                    pass

        async def main() -> None:
            task = asyncio.create_task(read())
            while model._core.appended == 0:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert stream.result().finish_reason == "cancelled" and model._core.appended < 9000


def test_repr_shows_how_far_it_is(model: Any) -> None:
    script(model, "ask", "the answer")
    stream = model.generate("ask")
    assert repr(stream) == "<qwen35.TokenStream not started, 0 tokens: ''>"
    next(stream)
    assert repr(stream).startswith("<qwen35.TokenStream running, 1 tokens: ")
    stream.result()
    assert repr(stream).endswith("'the answer'>") and "stop" in repr(stream)
