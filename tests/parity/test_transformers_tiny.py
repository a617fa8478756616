"""Oracle: transformers on the embedded model's own folder: the same tokens, the same text, the same
prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
from transformers import AutoTokenizer

import qwen35

FOLDER = Path(qwen35.__file__).parent / "tiny"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(), reason="this build holds no embedded model"
)
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": True,
}
QUESTIONS = (
    "What is 23 + 45?",
    "Sort these words: pear, fig, plum.",
    "Tom lives in Oslo. Where does Tom live?",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}},
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "What is 23 + 45?"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n\nthere "},
    ],
    "turns": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "<think>\n2 + 3 = 5\n</think>\n\n5"},
        {"role": "user", "content": "And 4 more?"},
    ],
    "parts": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}],
        }
    ],
    "tool": [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sky": "grey"}', "tool_call_id": "c1"},
    ],
}
TEXTS = (
    "",
    " ",
    "a  b   c\t\td\r\n\n  e ",
    "It's 12345.678 + 9%, isn't it? I'LL",
    "Grüße, naïve e\u0301 \u00e9 \u1100\u1161 한국어 日本語 العربية",
    "👩\u200d👩\u200d👧 🇳🇴 \U0001f600\ufe0f",
    "\x00\x01\ufffd\u200b",
    "x" * 300,
    "<think>not a token</think> <|im_end|>",
)


@pytest.fixture(scope="module")
def ours() -> Iterator[qwen35.Model]:
    with qwen35.load("tiny", dtype="float32") as model:
        yield model


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def exact() -> Any:
    return hf.from_folder(FOLDER)


@pytest.mark.parametrize("question", QUESTIONS)
def test_200_greedy_tokens(ours: qwen35.Model, exact: Any, question: str) -> None:
    ids = ours.prompt([{"role": "user", "content": question}]).ids
    tokens = ours.generate(ids, max_tokens=200, **GREEDY)
    assert [token.id for token in tokens] == hf.greedy(exact, ids, 200)


def test_logits(ours: qwen35.Model, exact: Any) -> None:
    ids = np.random.default_rng(1).integers(0, len(ours.tokenize("")) + 1000, 400)
    want = hf.logits(exact, ids)
    assert abs(ours.logits(ids) - want).max() <= 2e-4 * abs(want).max()


def test_kl_as_stored(exact: Any) -> None:
    import torch

    with qwen35.load("tiny") as model:
        ids = np.concatenate(
            [model.prompt([{"role": "user", "content": q}]).ids for q in QUESTIONS]
        )
        got, want = model.logits(ids), hf.logits(exact, ids)
    kl = hf.mean_kl(want, got)
    assert kl <= 1e-4
    assert kl < hf.mean_kl(want, hf.logits(hf.from_folder(FOLDER, torch.bfloat16), ids))


def scene(seed: int) -> np.ndarray:
    """Coloured squares on gray, of a size that is no multiple of a patch for odd seeds."""
    rng = np.random.default_rng(seed)
    canvas = np.full((96 + 7 * (seed % 2), 128, 3), 120, np.uint8)
    for color in rng.permutation([(215, 35, 35), (45, 75, 220), (240, 225, 50)])[: 1 + seed % 3]:
        y, x = rng.integers(0, 70), rng.integers(0, 100)
        canvas[y : y + 24, x : x + 24] = color
    return canvas


def clip(seed: int) -> np.ndarray:
    """A red square that moves, in the direction the seed says."""
    frames = np.full((8, 64, 64, 3), 120, np.uint8)
    for i, frame in enumerate(frames):
        at = 4 + 5 * (i if seed % 2 else 7 - i)
        frame[20:38, at : at + 18] = (215, 35, 35)
    return frames


SHOWN = [
    ({"type": "image", "image": scene(0)}, "What color is the square?"),
    ({"type": "image", "image": scene(1)}, "How many objects are there?"),
    ({"type": "image", "image": scene(5)}, "What do you see?"),
    ({"type": "video", "video": clip(0), "fps": 4}, "What moves?"),
    ({"type": "video", "video": clip(1), "fps": 4}, "Which way does the red square move?"),
]


@pytest.mark.parametrize("thinking", [False, True])
def test_greedy_answers_to_what_is_shown(ours: qwen35.Model, thinking: bool) -> None:
    """The same tokens, 24 of them, from the same folder."""
    import torch

    model = hf.seeing_model(FOLDER)
    for part, question in SHOWN:
        messages = [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
        prompt = ours.prompt(messages, enable_thinking=thinking)
        inputs = hf.inputs_of(prompt, ours.config)
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=-1)
        got = [token.id for token in ours.generate(prompt, max_tokens=24, **GREEDY)]
        assert got == out[0, len(prompt.ids) :].tolist(), question


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer(ours: qwen35.Model, theirs: Any, text: str) -> None:
    """Special tokens in user text are plain text for us (split_special_tokens there)."""
    ids = [int(i) for i in ours.tokenize(text)]
    if "<" not in text:
        assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.detokenize(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("thinking", [True, False, None])
@pytest.mark.parametrize("chat", CHATS)
def test_chat_template(ours: qwen35.Model, theirs: Any, chat: str, thinking: bool | None) -> None:
    tools = [TOOL] if chat == "tool" else None
    given = {} if thinking is None else {"enable_thinking": thinking}
    want = theirs.apply_chat_template(
        CHATS[chat], tools=tools, tokenize=False, add_generation_prompt=True, **given
    )
    prompt = ours.prompt(CHATS[chat], tools=tools, **given)
    assert prompt.text == want
    assert list(prompt.ids) == theirs.encode(want, add_special_tokens=False)
