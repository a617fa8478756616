"""Oracle: `generate` and `chat`, one prompt after the other; for what is shared and told, literals.

On the real core tokens must be equal: bits of logits do not depend on neighbours (test_core_batch).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from fake_core import after, fake_model
from test_generation import CALL, HI, TOOLS

import qwen35
from qwen35.batch import SHARED_TOKENS, places

END = checkpoints.TOKEN_IDS["<|im_end|>"]
RNG = np.random.default_rng(8)
WORDS = 2000  # ids below are no control tokens of tiny


@pytest.fixture(scope="module")
def tiny() -> Iterator[Any]:
    with qwen35.load("tiny", context=1200, progress=False) as model:
        yield model


@pytest.fixture
def fake(small: Path) -> Iterator[Any]:
    with fake_model(small, context=1000) as model:
        yield model


def mixed_prompts(model: Any, n: int) -> list[Any]:
    """Texts, ids and Prompts of messages, thinking or not, of 1 to 400 tokens."""
    rng, prompts = np.random.default_rng(n), list[Any]()
    for i in range(n):
        question = f"What is {rng.integers(100)} + {rng.integers(100)}?"
        messages = [{"role": "user", "content": question}]
        length = int(rng.integers(1, 60)) if i != 2 else 400
        prompts.append(
            [
                question,
                rng.integers(0, WORDS, length).tolist(),
                model.prompt(messages, enable_thinking=True),
                model.prompt(messages, enable_thinking=False),
            ][(i + i // 4) % 4]
        )
    return prompts


def kept(answer: Any) -> dict[str, Any]:
    """All of an answer but what tells how it was computed."""
    fields = {name: getattr(answer, name) for name in answer.__dataclass_fields__}
    usage = fields.pop("usage")
    del fields["timings"]
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens)
    return fields | {"counts": counts}


# ---- the answers ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*went to reasoning")
@pytest.mark.parametrize("n", [1, 2, 3, 16, 40])
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_answers_are_those_of_generate(tiny: Any, n: int, way: str) -> None:
    prompts = mixed_prompts(tiny, n)
    fields: dict[str, Any] = {"max_tokens": 24, "logprobs": 2}
    fields |= {"temperature": 0} if way == "greedy" else {"temperature": 0.9, "top_k": 30}
    got = tiny.generate_batch(prompts, seed=11, max_batch=4, **fields)
    want = [
        tiny.generate(prompt, seed=11 + i, **fields).result() for i, prompt in enumerate(prompts)
    ]
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in want]
    if qwen35._core.cpu()["isa"] != "c":
        assert [kept(answer) for answer in got] == [kept(answer) for answer in want]


@pytest.mark.filterwarnings("ignore:.*went to reasoning")
@pytest.mark.parametrize("blocks", ["q8_0", "q4_k_m"])
def test_answers_of_a_quantized_model(blocks: str) -> None:
    with qwen35.load("tiny", context=600, quantize=blocks, progress=False) as model:
        prompts = mixed_prompts(model, 6)
        fields: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": 1}
        got = model.generate_batch(prompts, max_batch=5, ignore_eos=True, **fields)
        want = [model.generate(p, ignore_eos=True, **fields).result() for p in prompts]
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in want]
    if qwen35._core.cpu()["isa"] != "c":
        assert [answer.tokens for answer in got] == [answer.tokens for answer in want]


def test_messages_are_answered_as_chat_does(tiny: Any) -> None:
    talks = [[{"role": "user", "content": f"What is {i} + {i}?"}] for i in range(5)]
    got = tiny.generate_batch(talks, temperature=0, max_tokens=60)
    want = [tiny.chat(talk, temperature=0, max_tokens=60).result() for talk in talks]
    assert [kept(answer) for answer in got] == [kept(answer) for answer in want]
    assert [answer.text for answer in got] == ["0", "2", "4", "6", "8"]


def test_pictures_among_the_prompts(tiny: Any) -> None:
    """One picture twice, another once, text between."""
    red = np.zeros((64, 64, 3), np.uint8)
    red[16:48, 16:48, 0] = 255
    ask = {"type": "text", "text": "What colour is it?"}
    talks = [
        [{"role": "user", "content": [{"type": "image", "image": image}, ask]}]
        for image in (red, red[:, :, ::-1], red)
    ]
    prompts = [*(tiny.prompt(talk) for talk in talks), "What is 1 + 1?"]
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
    want = [kept(tiny.generate(prompt, **fields).result()) for prompt in prompts]
    assert [kept(answer) for answer in tiny.generate_batch(prompts, **fields)] == want
    assert [kept(answer) for answer in tiny.generate_batch(talks, **fields)] == want[:3]


def test_seeds_are_counted_on_and_wrap(tiny: Any) -> None:
    prompts = ["one", "two", "three"]
    fields: dict[str, Any] = {"max_tokens": 10, "temperature": 1.0}
    top = 2**64 - 2
    want = [
        tiny.generate(prompt, seed=seed, **fields).result().token_ids
        for prompt, seed in zip(prompts, (top, top + 1, 0), strict=True)
    ]
    params = qwen35.SamplingParams(seed=top, **fields)
    for given in ({"seed": top, **fields}, {"sampling": params}):
        answers = tiny.generate_batch(prompts, **given)
        assert [answer.token_ids for answer in answers] == want
    answers = tiny.generate_batch(["one"] * 8, max_tokens=20, temperature=1.0, ignore_eos=True)
    assert len({tuple(answer.token_ids) for answer in answers}) > 1  # without one, each has its own


@pytest.mark.parametrize(
    "fields", [{"stop": "two"}, {"max_tokens": 0}, {"max_tokens": 3}, {"stop": "x", "logprobs": 0}]
)
def test_ends_are_those_of_generate(fake: Any, fields: dict[str, Any]) -> None:
    ids = fake.tokenize("one two three")
    fake._core.script = after(fake.tokenize("ask"), ids, END)
    got = fake.generate_batch(["ask", "ask"], **fields)
    want = fake.generate("ask", **fields).result()
    assert [kept(answer) for answer in got] == [kept(want)] * 2


def test_tool_calls_and_reasoning_are_parsed(fake: Any) -> None:
    direct = fake.prompt(HI, tools=TOOLS, enable_thinking=False)
    thinking = fake.prompt(HI)
    said = [fake.tokenize(CALL, special=True), fake.tokenize("hmm</think>\n\nso", special=True)]
    scripts = [after(p.ids, s, END) for p, s in zip((direct, thinking), said, strict=True)]
    fake._core.script = lambda ids: scripts[ids[: len(thinking)] == thinking.ids.tolist()](ids)
    call, thought = fake.generate_batch([direct, thinking])
    assert [(c.name, c.arguments) for c in call.tool_calls] == [("add", {"a": 2})]
    assert (call.finish_reason, call.text) == ("tool_calls", "")
    assert (thought.reasoning.strip(), thought.text) == ("hmm", "so")
    assert thought.finish_reason == "stop"


def test_thinking_budget_and_the_warning_without_it(fake: Any) -> None:
    end = fake.tokenize("\n</think>\n\n", special=True)
    fake._core.script = lambda ids: END if ids[-len(end) :] == end else 66
    answers = fake.generate_batch([HI, HI], thinking_budget=3)
    assert [answer.token_ids for answer in answers] == [[66] * 3 + end + [END]] * 2
    with pytest.warns(RuntimeWarning, match=r"2 of 3 answers are empty \(the first: prompts\[1\]"):
        fake.generate_batch(["ask", HI, HI], max_tokens=5)


# ---- how they are read ---------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [SHARED_TOKENS - 1, SHARED_TOKENS, 300])
def test_a_shared_start_is_read_once(fake: Any, shared: int) -> None:
    start = RNG.integers(0, 250, shared).tolist()
    prompts = [[*start, 251 + i, *range(i)] for i in range(5)]
    before = fake._core.appended
    answers = fake.generate_batch(prompts, max_tokens=1)
    tails = sum(map(len, prompts)) - 5 * shared
    reads = 1 if shared >= SHARED_TOKENS else 5
    assert fake._core.appended - before == reads * shared + tails
    told = [answer.usage.cached_tokens for answer in answers]
    assert told == ([0, *[shared] * 4] if reads == 1 else [0] * 5)
    assert answers[0].timings.prefill_tokens == len(prompts[0])


def test_a_later_batch_starts_from_what_an_earlier_one_shared(fake: Any) -> None:
    start = RNG.integers(0, 250, 200).tolist()
    fake.generate_batch([[*start, 251], [*start, 252]], max_tokens=1)
    before = fake._core.appended
    answers = fake.generate_batch([[*start, 253, 1], [*start, 254, 1]], max_tokens=1)
    assert fake._core.appended - before == 4
    assert [answer.usage.cached_tokens for answer in answers] == [200, 200]


def test_equal_prompts_share_all_but_the_last_token(tiny: Any) -> None:
    ids = RNG.integers(0, WORDS, 90).tolist()
    answers = tiny.generate_batch([ids] * 3, temperature=0, max_tokens=9, ignore_eos=True)
    want = tiny.generate(ids, temperature=0, max_tokens=9, ignore_eos=True).result().token_ids
    assert [answer.token_ids for answer in answers] == [want] * 3
    assert answers[1].usage.cached_tokens == 89


def test_pictures_in_a_shared_start(tiny: Any) -> None:
    """Few-shot with a picture; where prompts part inside a run of picture tokens, before it."""
    image, other = (RNG.integers(0, 255, (160, 160, 3), dtype=np.uint8) for _ in range(2))
    words = {"type": "text", "text": "one two three " * 20}

    def talk(picture: Any, end: str) -> Any:
        parts = [words, {"type": "image", "image": picture}, {"type": "text", "text": end}]
        return tiny.prompt([{"role": "user", "content": parts}])

    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    for prompts in (
        [talk(image, "a"), talk(image, "b")],
        [talk(image, "a"), talk(other, "a")],
    ):
        got = tiny.generate_batch(prompts, **fields)
        want = [tiny.generate(prompt, **fields).result() for prompt in prompts]
        assert [kept(answer) for answer in got] == [kept(answer) for answer in want]
        assert got[1].usage.cached_tokens >= SHARED_TOKENS


def test_heads_of_prompts_do_not_cut_pictures(tiny: Any) -> None:
    image = RNG.integers(0, 255, (96, 96, 3), dtype=np.uint8)
    prompt = tiny.prompt("before <|image_pad|> after", images=[image])
    run = prompt.layout.runs[0]
    for length in range(1, len(prompt) + 1):
        head = prompt.head(length)
        assert len(head) == (run.start if run.start < length < run.stop else length)
        assert np.array_equal(head.ids, prompt.ids[: len(head)])
        assert np.array_equal(head.keys, prompt.keys[: len(head)])
        assert np.array_equal(head.position_ids, prompt.position_ids[:, : len(head)])


def test_no_more_than_max_batch_run_at_once(fake: Any) -> None:
    made = []
    make = fake._core.batch
    fake._core.batch = lambda size: made.append(make(size)) or made[-1]
    fake._core.script = lambda ids: END if len(ids) > ids[0] else 5
    answers = fake.generate_batch([[10], [3], [6], [3], [9]], max_batch=2)
    assert [answer.usage.completion_tokens for answer in answers] == [11, 4, 7, 4, 10]
    together = made[0].together
    assert made[0].size == 2 and sum(together) == 36  # full as long as prompts wait:
    assert together == sorted(together, reverse=True) and together.count(1) <= 10


def test_places() -> None:
    assert [places(n, 100) for n in (-3, 0, 1, 16, 64, 65, 10**9)] == [1, 1, 1, 16, 64, 64, 64]
    assert places(16, 3) == 3 and places(np.int64(2), 3) == 2
    for bad in (1.5, "4", None):
        with pytest.raises(TypeError, match="max_batch"):
            places(bad, 3)


def test_progress_tells_what_is_answered(fake: Any) -> None:
    fake._core.script = lambda ids: END
    seen: list[tuple[int, int]] = []
    prompts = [f"prompt {i}" for i in range(5)]
    fake.generate_batch(
        prompts, max_batch=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_bar_is_drawn_where_it_is_wanted(
    fake: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(qwen35.progress, "PATIENCE_S", 0.0)
    fake.generate_batch(["a", "b", "c"], max_batch=1, max_tokens=2, progress=True)
    assert "batch" in capsys.readouterr().err
    fake.generate_batch(["a", "b", "c"], max_batch=1, max_tokens=2, progress=False)
    assert capsys.readouterr().err == ""


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "fields", "kind", "message"),
    [
        ("ask", {}, TypeError, "put a single one in a list"),
        (7, {}, TypeError, "prompts: expected a list"),
        (["a", ""], {}, ValueError, r"prompts\[1\]: .*empty"),
        (["a", 5], {}, TypeError, r"prompts\[1\]: "),
        ([[1], [2, 307]], {}, ValueError, r"prompts\[1\]: .*307"),
        (["a", [5] * 1000], {}, qwen35.ContextLengthError, r"prompts\[1\]: .*1,000 tokens"),
        ([HI, [{"role": 5}]], {}, ValueError, r"prompts\[1\]: "),
        (["a"], {"top_p": 2}, ValueError, "top_p"),
        ([], {"seed": -1}, ValueError, "seed"),
        (["a"], {"max_token": 2}, TypeError, "did you mean 'max_tokens'"),
        (["a"], {"max_batch": "4"}, TypeError, "max_batch"),
        (["a"], {"sampling": {}}, TypeError, "SamplingParams"),
    ],
)
def test_errors_come_before_anything_is_computed(
    fake: Any, prompts: Any, fields: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        fake.generate_batch(prompts, **fields)
    assert fake._core.appended == 0


def test_no_prompts_no_answers(fake: Any) -> None:
    assert fake.generate_batch([]) == []


def test_an_error_inside_ends_all_and_leaves_the_model(fake: Any) -> None:
    def broken(ids: list[int]) -> int:
        raise MemoryError("no room")

    fake._core.script = broken
    with pytest.raises(MemoryError, match="no room"):
        fake.generate_batch([[*range(100), i] for i in range(3)])
    fake._core.script = lambda ids: END
    assert fake.generate_batch(["a", "b"])[1].token_ids == [END]


def test_what_progress_raises_comes_through(tiny: Any) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise Enough

    with pytest.raises(Enough):
        tiny.generate_batch(["a", "b", "c"], max_batch=1, max_tokens=3, progress=stop)
    assert len(tiny.generate("a", max_tokens=3, ignore_eos=True).result().token_ids) == 3


def test_a_closed_model_says_so(small: Path) -> None:
    model = fake_model(small, context=100)
    model.close()
    with pytest.raises(qwen35.ClosedError):
        model.generate_batch(["a"])


@pytest.mark.parametrize("shared", [0, 5000], ids=["in steps", "in the shared start"])
def test_close_ends_a_running_batch(small: Path, shared: int) -> None:
    start = [5] * shared
    model = fake_model(small, context=10_000, chunk_s=0.001)
    errors: list[BaseException] = []

    def answer() -> None:
        try:
            model.generate_batch([[*start, *[i] * 900] for i in range(8)], ignore_eos=True)
        except qwen35.ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    while model._core.appended == 0:
        pass
    model.close()
    thread.join(10)
    assert not thread.is_alive() and len(errors) == 1


def test_close_from_within_progress(small: Path) -> None:
    model = fake_model(small, context=100)
    with pytest.raises(qwen35.ClosedError):
        model.generate_batch(["a", "b"], progress=lambda done, total: model.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told(tiny: Any) -> None:
    child = os.fork()
    if child == 0:
        try:
            tiny.generate_batch(["a", "b"])
        except qwen35.ForkError:
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
