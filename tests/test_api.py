"""Oracle: literals, and for scores a NumPy log-softmax of the model's own logits.

The names, types and errors of the public interface.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from fake_core import fake_model

import qwen35

END = checkpoints.TOKEN_IDS["<|im_end|>"]


@pytest.fixture
def fake(small: Path) -> Any:
    with fake_model(small, context=100) as model:
        yield model


@pytest.fixture
def real(small: Path) -> Any:
    with qwen35.load(small, context=100, threads=1) as model:
        yield model


# ---- the package ---------------------------------------------------------------------------------


def test_public_names_are_listed_and_resolve() -> None:
    for name in qwen35.__all__:
        assert getattr(qwen35, name) is not None
        assert name in dir(qwen35)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = qwen35.lode


def test_import_alone_loads_no_numpy() -> None:
    code = "import sys, qwen35; print('numpy' in sys.modules, dir(qwen35).count('load'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]


def test_errors_are_what_python_users_catch() -> None:
    value = {"ModelFormatError", "UnsupportedModelError", "TemplateError", "MediaError"}
    for name in value | {"ContextLengthError"}:
        assert issubclass(getattr(qwen35, name), (qwen35.Error, ValueError))
        assert issubclass(getattr(qwen35, name), ValueError)
    for name in ("ClosedError", "BusyError", "ForkError"):
        assert issubclass(getattr(qwen35, name), RuntimeError)


# ---- prompts -------------------------------------------------------------------------------------

BAD_PROMPTS = [
    ("", ValueError, "prompt is empty"),
    ([], ValueError, "prompt is empty"),
    (None, TypeError, "got NoneType"),
    (b"hi", TypeError, "got bytes"),
    ("ab\udc80c", ValueError, "U\\+DC80 at position 2"),
    ([1, -1], ValueError, "prompt\\[1\\]: token id -1"),
    ([1, 2, 307], ValueError, "prompt\\[2\\]: token id 307"),
    ([300], ValueError, "prompt\\[0\\]: token id 300 .*0 to 290"),  # a padding row
    ([1, True], ValueError, "prompt\\[1\\].*bool"),
    ([1.0], ValueError, "prompt\\[0\\].*float"),
    ([2**40], ValueError, "prompt\\[0\\]: token id 1099511627776"),
    ([2**70], ValueError, "prompt\\[0\\]: token id"),
    (np.zeros((1, 3), int), ValueError, "shape \\[T\\], got \\[1, 3\\]"),
    (np.array([1.5]), ValueError, "float64"),
    (np.array(["a"]), ValueError, "integers"),
    ([{"role": "user", "content": "hi"}], TypeError, "model.chat"),
]


@pytest.mark.parametrize(("prompt", "error", "message"), BAD_PROMPTS)
def test_bad_prompts_are_refused_before_anything_runs(
    fake: Any, prompt: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fake.generate(prompt)
    assert fake._core.appended == 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", ">u2", ">i4", "int64", "uint64"])
def test_ids_of_every_integer_type_mean_the_same(fake: Any, dtype: str) -> None:
    ids = np.array([5, 0, 6, 0, 7, 0], dtype)[::2]
    prompt = fake.prompt(ids)
    assert prompt.ids.tolist() == [5, 6, 7] and prompt.ids.dtype == np.int32


def test_prompt_holds_ids_and_positions(fake: Any) -> None:
    prompt = fake.prompt("the<|im_end|>")
    assert END not in prompt.ids  # spelt out in text it stays text
    assert fake.tokenizer.decode(prompt.ids.tolist()) == prompt.text == "the<|im_end|>"
    assert prompt.position_ids.dtype == np.int32
    assert prompt.position_ids.tolist() == [list(range(len(prompt)))] * 3
    assert (prompt.images, prompt.videos) == ([], [])


def test_prompt_of_messages_is_what_chat_sends(fake: Any) -> None:
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    prompt = fake.prompt(messages, enable_thinking=False)
    assert prompt.ids.tolist().count(END) == 1
    assert prompt.text.endswith("</think>\n\n") and not prompt.thinking
    assert fake.prompt(messages).thinking
    with pytest.raises(ValueError, match="go with messages"):
        fake.prompt("hi", enable_thinking=True)


def test_context_is_told_in_numbers(fake: Any) -> None:
    for count in (100, 101):
        with pytest.raises(qwen35.ContextLengthError, match=f"{count} tokens.*holds 100.*context="):
            fake.generate([1] * count)
    assert fake.generate([1] * 99).result().finish_reason == "length"
    with pytest.raises(qwen35.ContextLengthError, match="more than"):
        fake.generate("a" * 1_000_000)  # refused before it is tokenized


def test_unknown_keywords_get_the_nearest_name(fake: Any) -> None:
    with pytest.raises(TypeError, match="'temprature'.*did you mean 'temperature'"):
        fake.generate("hi", temprature=0.5)
    with pytest.raises(TypeError, match="'enable_thinkin'.*did you mean 'enable_thinking'"):
        fake.chat("hi", enable_thinkin=True)
    with pytest.raises(TypeError, match="'image'.*did you mean 'images'"):
        fake.generate("hi", image=None)


def test_bad_sampling_fields_are_refused_at_once(fake: Any) -> None:
    for fields in ({"temperature": -1.0}, {"top_p": 1.1}, {"max_tokens": -1}, {"stop": [""]}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            fake.generate("hi", **fields)
    with pytest.raises(ValueError, match="thinking_budget=-1"):
        fake.chat("hi", thinking_budget=-1)


def test_a_model_without_a_tower_refuses_media(fake: Any) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(qwen35.UnsupportedModelError, match=r"images\[0\].*vision=False"):
        fake.generate("hi", images=[image])
    with pytest.raises(qwen35.UnsupportedModelError, match="vision=False"):
        fake.embed_image(image)


def test_placeholders_without_pixels_are_refused(small: Path) -> None:
    pads = [checkpoints.TOKEN_IDS["<|image_pad|>"], checkpoints.TOKEN_IDS["<|video_pad|>"]]
    with fake_model(small, context=100) as model:
        for pad, kind in zip(pads, ("image", "video"), strict=True):
            with pytest.raises(ValueError, match=f"prompt: 2 {kind} placeholders .* and 0 {kind}s"):
                model.generate([5, pad, pad])


def test_a_prompt_made_by_hand_is_checked(fake: Any) -> None:
    prompt = qwen35.Prompt(np.array([1, 400]))
    with pytest.raises(ValueError, match="prompt.ids\\[1\\]: token id 400"):
        fake.generate(prompt)
    assert fake.generate(qwen35.Prompt([1, 2]), max_tokens=1).result().usage.prompt_tokens == 2


def test_temperature_0_is_greedy_whatever_the_presets_penalties(real: Any) -> None:
    """The presets of the larger sizes have a presence_penalty, which is for sampling."""
    answer = real.generate("the other", max_tokens=20, temperature=0, ignore_eos=True).result()
    rows = real.logits([*real.tokenize("the other"), *answer.token_ids[:-1]])
    assert rows[-20:].argmax(axis=1).tolist() == answer.token_ids


# ---- numbers -------------------------------------------------------------------------------------


def test_logits_have_one_row_a_token(real: Any) -> None:
    ids = [5, 6, 7, 8, 300]  # a padding row has an embedding and may be asked about
    logits = real.logits(ids)
    assert logits.shape == (5, 307) and logits.dtype == np.float32
    last = real.logits(ids, last_only=True)
    assert last.shape == (1, 307)
    np.testing.assert_allclose(last[0], logits[-1], rtol=1e-5, atol=1e-5)


def test_score_is_the_log_softmax_of_logits(real: Any) -> None:
    prompt, endings = "the other", [" one", [3, 4, 5], " the"]
    scores = real.score(prompt, endings)
    start = real.tokenize(prompt)
    for ending, score in zip(endings, scores, strict=True):
        ids = real.tokenize(ending) if isinstance(ending, str) else ending
        rows = real.logits([*start, *ids]).astype(np.float64)[len(start) - 1 : -1]
        table = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        want = [table[i, token] for i, token in enumerate(ids)]
        # float32 logits of a prefill cut in other places: a few units in the last place
        np.testing.assert_allclose(score.logprobs, want, atol=1e-4)
        assert score.logprob == pytest.approx(sum(want), abs=1e-3)
        assert score.is_greedy == (table.argmax(axis=1).tolist() == list(ids))
    assert scores == real.score(prompt, endings)


def test_score_of_the_greedy_answer_is_greedy(real: Any) -> None:
    answer = real.generate("the other", max_tokens=6, temperature=0, ignore_eos=True).result()
    (score,) = real.score("the other", [answer.token_ids])
    assert score.is_greedy and len(score.logprobs) == 6


def test_score_refuses_what_it_cannot_score(real: Any) -> None:
    with pytest.raises(TypeError, match="list of texts"):
        real.score("a", "b")
    with pytest.raises(ValueError, match="continuations\\[1\\] is empty"):
        real.score("a", ["b", ""])
    with pytest.raises(qwen35.ContextLengthError):
        real.score([1] * 60, [[1] * 60])
    assert real.score("a", []) == []


def test_tokenize_and_back(real: Any) -> None:
    assert real.tokenize("<|im_end|>", special=True) == [END]
    assert END not in real.tokenize("<|im_end|>")
    assert real.detokenize(real.tokenize("héllo 世界")) == "héllo 世界"
    assert real.detokenize([]) == ""
    with pytest.raises(TypeError, match="takes a str"):
        real.tokenize(b"hi")
    with pytest.raises(ValueError, match="307"):
        real.detokenize([307])


def test_tensors_are_read_only_views_in_checkpoint_order(real: Any, small: Path) -> None:
    from safetensors import safe_open

    with safe_open(small / "model.safetensors", "np") as file:
        assert set(real.tensors) == set(file.keys())
    name = "model.language_model.embed_tokens.weight"
    tensor = real.tensors[name]
    assert tensor.dtype.name == "bfloat16" and tensor.shape == (307, 72)
    assert not tensor.flags.writeable and not tensor.flags.owndata
    with pytest.raises(TypeError):
        real.tensors[name] = tensor


def test_memory_adds_up(real: Any) -> None:
    memory = real.memory()
    assert memory["total"] == sum(v for k, v in memory.items() if k != "total")
    assert {"weights", "kv", "state", "scratch", "total"} <= memory.keys()
    # 1 attention layer x K and V x 2 heads of 40 in 16 bits, 100 tokens; as int16 they are filled
    # up to 48, and have a factor
    head = {"float16": 40 * 2, "int16": 48 * 2 + 4}[real.kv_dtype]
    assert memory["kv"] == 1 * 2 * 2 * head * 100
    assert real.memory(context=200)["kv"] == 2 * memory["kv"]


# ---- life ----------------------------------------------------------------------------------------


def test_close_is_final_and_may_be_repeated(small: Path) -> None:
    model = qwen35.load(small, context=64, threads=1)
    session = model.session()
    model.close()
    model.close()
    assert "closed" in repr(model)
    uses = [
        lambda: model.generate("hi"),
        lambda: model.chat("hi"),
        lambda: model.logits("hi"),
        lambda: model.score("hi", ["a"]),
        lambda: model.tensors,
        lambda: model.session(),
        lambda: model.memory(),
        lambda: model.prompt("hi"),
        lambda: session.sync("hi"),
        lambda: session.position,
        lambda: model.__enter__(),
    ]
    for use in uses:
        with pytest.raises(qwen35.ClosedError):
            use()


def test_views_outlive_the_model(small: Path) -> None:
    with qwen35.load(small, context=64, threads=1) as model:
        view = model.tensors["model.language_model.norm.weight"]
        before = view.astype(np.float32)
    assert np.array_equal(view.astype(np.float32), before)


def test_a_dropped_model_is_freed_at_once(small: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        model = qwen35.load(small, context=64, threads=1)
        model.generate("the other", max_tokens=4).result()
        model.chat("hi", max_tokens=4, enable_thinking=False).result()
        model.score("the", ["a", "b"])
        stream = model.generate("again", max_tokens=4)
        next(stream)
        gone = weakref.ref(model)
        del model, stream
        assert gone() is None
    finally:
        gc.enable()


def test_models_are_not_copied(fake: Any) -> None:
    stream, session = fake.generate("hi"), fake.session()
    for thing in (fake, stream, session):
        for copier in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                copier(thing)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_and_the_parent_goes_on(real: Any) -> None:
    stream = real.generate("the other", max_tokens=4, temperature=0)
    first = next(stream)
    session = real.session()
    child = os.fork()
    if child == 0:
        code = 0
        for use in (lambda: real.generate("hi"), lambda: next(stream), lambda: session.sync("hi")):
            try:
                use()
                code = 1
            except qwen35.ForkError:
                pass
            except BaseException:
                code = 2
        real.close()  # a with block may end in the child: nothing is the child's to free
        del stream, session
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [first.id, *(token.id for token in stream)] == stream.result().token_ids


def test_repr_names_what_it_is(real: Any) -> None:
    text = repr(real)
    for part in ("4 layers", "1 threads", "context 100"):
        assert part in text
    assert repr(real.session()) == "<qwen35.Session 0 of 100 tokens>"
