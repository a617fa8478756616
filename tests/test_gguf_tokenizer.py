"""Oracle: the tokenizer.json that the GGUF keys were made from, and literals.

The numbers in the test names are items of the list of hostile inputs the project keeps (43,
53, 56).
"""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gguf_writer import Typed, of, text_metadata, tokenizer_metadata, write_gguf

from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.gguf_file import open_gguf
from qwen35.gguf_tokenizer import (
    ROOT,
    Vocabulary,
    build_tokenizer,
    chat_template,
    general,
    generation_config,
    has_vocabulary,
    read_vocabulary,
)
from qwen35.tokenizer import Tokenizer

TINY = Path(str(files("qwen35") / "tiny" / "tokenizer.json"))
ALPHABET = [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68)]
SMALL: dict[str, Any] = {
    "model": {
        "vocab": {chr(c): i for i, c in enumerate(ALPHABET)} | {"ab": 256, "abc": 257},
        "merges": [["a", "b"], ["ab", "c"]],
    },
    "added_tokens": [
        {"id": 258, "content": "<|im_end|>", "special": True},
        {"id": 259, "content": "<think>", "special": False},
    ],
}
TEXTS = [
    "Hello, it's 2024:\n\n\t naïve 世界 🙂  end\r\n",
    "สวัสดีครับ e\u0301 <|im_end|> <think>ok</think> <|fim_prefix|>",
    "    def f(x):\n        return x**2\n",
    "\u212b\ufb01 İ ß 𝒳 \u0000 \x7f \ufeff",
    "",
]


def keys(tokenizer: dict[str, Any], rows: int, **changes: Any) -> dict[str, Any]:
    found = {**text_metadata(), **tokenizer_metadata(tokenizer, rows)} | changes
    return {key: value for key, value in found.items() if value is not None}


def vocabulary(
    folder: Path, tokenizer: dict[str, Any] = SMALL, rows: int = 262, **changes: Any
) -> Vocabulary:
    tensors = {"t": of(np.zeros(1, np.float32))}
    file = open_gguf(write_gguf(folder / "x.gguf", keys(tokenizer, rows, **changes), tensors))
    return read_vocabulary(file.metadata, rows=rows)


def state(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())


def test_the_tokenizer_it_was_made_from(tmp_path: Path) -> None:
    raw = json.loads(TINY.read_text())
    own = tokenizers.Tokenizer.from_file(str(TINY))
    built = build_tokenizer(vocabulary(tmp_path, raw, rows=2100))
    assert state(built) == state(own)
    ours = Tokenizer(built, where="x.gguf", rows=2100)
    theirs = Tokenizer.from_file(TINY, embedding_rows=2100)
    assert ours.added_tokens == theirs.added_tokens and ours.special_ids == theirs.special_ids
    assert ours.vocab_size == theirs.vocab_size and ours.rows == theirs.rows
    for text in TEXTS:
        for special in (False, True):
            ids = ours.encode(text, special=special)
            assert ids == theirs.encode(text, special=special)
            assert ours.decode(ids) == theirs.decode(ids)


def test_tokens_marked_control_for_their_looks_alone(tmp_path: Path) -> None:
    """The converter calls <|fim_prefix|> control; answers must go on showing it."""
    added = [*SMALL["added_tokens"], {"id": 260, "content": "<|fim_prefix|>", "special": False}]
    found = vocabulary(tmp_path, SMALL | {"added_tokens": added})
    assert found.kinds[260] == 3
    tokens = build_tokenizer(found).get_added_tokens_decoder()
    assert {token.content: token.special for token in tokens.values()} == {
        "<|im_end|>": True,
        "<think>": False,
        "<|fim_prefix|>": False,
    }


def test_padding_is_left_out(tmp_path: Path) -> None:
    found = vocabulary(tmp_path)
    assert len(found.tokens) == 260 and found.added == {"<|im_end|>": 258, "<think>": 259}
    assert build_tokenizer(found).get_vocab_size() == 260
    kinds = [*found.kinds.tolist(), 4, 4]  # older converters call it user defined
    assert len(vocabulary(tmp_path, **{f"{ROOT}token_type": kinds}).tokens) == 260


def test_added_tokens_between_others_keep_their_ids(tmp_path: Path) -> None:
    tokens = {**SMALL["model"]["vocab"], "abc": 259}
    added = [
        {"id": 257, "content": "<think>", "special": False},
        {"id": 258, "content": "<|im_end|>", "special": True},
    ]
    model = SMALL["model"] | {"vocab": tokens}
    built = build_tokenizer(vocabulary(tmp_path, {"model": model, "added_tokens": added}))
    assert built.encode("abc<think>ab<|im_end|>").ids == [259, 257, 256, 258]
    assert built.get_vocab_size() == 260


def test_pre_tokenizers(tmp_path: Path) -> None:
    """A combining mark belongs to its word in Qwen3.5's pattern, not in Qwen2's."""
    text = "n\u0320o"
    for pre, pieces in (("qwen35", 1), ("qwen2", 2)):
        built = build_tokenizer(vocabulary(tmp_path, **{f"{ROOT}pre": pre}))
        assert len(built.pre_tokenizer.pre_tokenize_str(text)) == pieces


def test_full_vocabulary(tmp_path: Path) -> None:
    """The family's own 248,077 entries, where a tokenizer.json is at hand."""
    place = os.environ.get("QWEN35_TOKENIZER")
    if not place:
        pytest.skip("QWEN35_TOKENIZER does not name a tokenizer.json")
    raw = json.loads(Path(place).read_text())
    built = build_tokenizer(vocabulary(tmp_path, raw, rows=248320))
    own = tokenizers.Tokenizer.from_file(place)
    assert state(built) == state(own)
    for text in TEXTS:
        assert built.encode(text).ids == own.encode(text).ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", Typed(0, [65] * 262)),
        ("tokens", [1, 2, 3]),
        ("tokens", "abc"),
        ("tokens", None),
        ("token_type", Typed(0, [1] * 262)),
        ("token_type", Typed(6, [1.0] * 262)),
        ("token_type", [1] * 261),
        ("token_type", None),
        ("merges", Typed(0, [1])),
        ("merges", None),
        ("model", None),
        ("pre", 3),
        ("eos_token_id", 262),
        ("eos_token_id", Typed(5, -1)),
        ("bos_token_id", "x"),
        ("add_bos_token", 1),
    ],
)
def test_43_types_of_the_lists(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        vocabulary(tmp_path, **{ROOT + key: value})
    assert ROOT + key in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("model", "llama", "model='llama': expected 'gpt2'"),
        ("pre", "default", "pre='default'"),
        ("token_type", [1] * 261 + [6], "token_type[261]=6"),
        ("token_type", [1] * 261 + [-1], "token_type[261]=-1"),
        ("add_bos_token", True, "add_bos_token=true"),
    ],
)
def test_other_kinds(tmp_path: Path, key: str, value: Any, found: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        vocabulary(tmp_path, **{ROOT + key: value})
    assert found in str(caught.value)


def changed(at: int, token: str | bytes) -> list[Any]:
    tokens = tokenizer_metadata(SMALL, 262)[f"{ROOT}tokens"]
    tokens[at] = token
    return tokens


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("", "tokens[7]='': expected 1 to 4096 characters"),
        ("x" * 5000, "(5000 characters)"),
        ("ab", "tokens[256]='ab' is also token 7"),
        ("<think>", "tokens[259]='<think>' is also token 7"),
        (b"\xff", "tokens[7] is not UTF-8"),
    ],
)
def test_53_spellings_refused(tmp_path: Path, token: str | bytes, found: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        vocabulary(tmp_path, **{f"{ROOT}tokens": changed(7, token)})
    assert found in str(caught.value) and str(caught.value).isprintable()


CUT = {f"{ROOT}merges": ["a b"]}


@pytest.mark.parametrize("token", ["<0x-1>", "<0xGG>", "<0x41>", "\x00", "\x1b[31m", "[PAD9]"])
def test_53_spellings_that_mean_nothing(tmp_path: Path, token: str) -> None:
    """They are text like other text: nobody parses them."""
    built = build_tokenizer(vocabulary(tmp_path, **{f"{ROOT}tokens": changed(257, token)} | CUT))
    assert built.id_to_token(257) == token
    assert built.encode("ab").ids == [256]


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    file = open_gguf(write_gguf(tmp_path / "x.gguf", keys(SMALL, 262)))
    with pytest.raises(ModelFormatError, match="262 entries, but token_embd.weight 261 rows"):
        read_vocabulary(file.metadata, rows=261)


@pytest.mark.parametrize(
    ("merge", "found"),
    [
        ("a", "merges[1]='a': expected two tokens"),
        ("a b c", "merges[1]='a b c': expected two tokens"),
        ("", "merges[1]='': expected two tokens"),
        ("ab zz", "'zz' is not among the tokens"),
        ("ab d", "'abd' is not among the tokens"),
        ("a ", "'' is not among the tokens"),
    ],
)
def test_56_merges(tmp_path: Path, merge: str, found: str) -> None:
    read = vocabulary(tmp_path, **{f"{ROOT}merges": ["a b", merge]})
    with pytest.raises(ModelFormatError) as caught:
        build_tokenizer(read)
    assert found in str(caught.value)


def test_what_else_the_metadata_says(tmp_path: Path) -> None:
    more = {
        "general.name": "Qwen3.5 0.8B",
        "general.tags": ["a"],
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": Typed(5, 20),
        "general.sampling.top_p": 0.95,
        "general.sampling.penalty_repeat": 1.0,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.chat_template": "{{ messages }}",
    }
    metadata = open_gguf(write_gguf(tmp_path / "x.gguf", keys(SMALL, 262, **more))).metadata
    assert general(metadata) == {"architecture": "qwen35", "name": "Qwen3.5 0.8B"} | {
        "sampling.temp": 0.6,
        "sampling.top_k": 20,
        "sampling.top_p": 0.95,
        "sampling.penalty_repeat": 1.0,
    }
    assert generation_config(metadata) == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "eos_token_id": [258],
    }
    assert chat_template(metadata) == "{{ messages }}" and has_vocabulary(metadata)
    assert read_vocabulary(metadata).ids == {"eos": 258}
    empty = open_gguf(write_gguf(tmp_path / "e.gguf", text_metadata())).metadata
    assert generation_config(empty) == {} and chat_template(empty) is None
    assert not has_vocabulary(empty)
    for key, value in (
        ("tokenizer.chat_template", 3),
        ("tokenizer.chat_template", "x" * (1 << 20) + "x"),
        ("general.sampling.temp", -1.0),
        ("general.sampling.top_p", float("nan")),
    ):
        wrong = open_gguf(write_gguf(tmp_path / "w.gguf", keys(SMALL, 262, **{key: value})))
        with pytest.raises(ModelFormatError, match=key):
            chat_template(wrong.metadata)
            generation_config(wrong.metadata)
