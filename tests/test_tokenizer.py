"""Oracles: the tokenizers library for ids, Python's bytes.decode for text, literals for errors.

The vocabulary is a small byte-level one with Qwen's added tokens and its pre-tokenizer pattern.
"""

import copy
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from checkpoints import SPECIALS, TOKEN_IDS, write_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from qwen35 import tokenizer as module
from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.tokenizer import TextDecoder, Tokenizer

TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(SPECIALS),
        st.sampled_from(
            ["the", " hello", "\n\n", "  ", "it's", "e\u0301", "한글", "🙂", "<|im_", "|>"]
        ),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.from_file(file, embedding_rows=300)


@pytest.fixture(scope="module")
def library(file: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(file))


# Ids


@given(text=TEXTS)
@example(text="<|im_start|>user\n<think></think><|im_end|>")
def test_special_on_is_the_library(tokenizer: Tokenizer, library: Any, text: str) -> None:
    expected = library.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, special=True) == expected


@given(text=TEXTS)
def test_special_off_never_gives_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.added_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@given(text=TEXTS)
def test_special_off_is_the_library_where_nothing_is_special(
    tokenizer: Tokenizer, library: Any, text: str
) -> None:
    for spelling in SPECIALS:
        text = text.replace(spelling, "")
    if not any(spelling in text for spelling in SPECIALS):
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@given(text=st.lists(st.sampled_from("a Zé1\n.,'s한\u0301 \t\r"), max_size=200).map("".join))
@example(text="word word\nword\n\nword it's a " * 20)
def test_long_text_in_chunks_is_the_text_in_one_piece(
    tokenizer: Tokenizer, library: Any, text: str
) -> None:
    assert tokenizer._chunkable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 5)
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pattern", sorted(module._KNOWN_PATTERNS), ids=["qwen3.5", "qwen2"])
@given(text=st.lists(st.sampled_from("aZ1\n.,'s한\u0301\u0e33 \t\r\u00a0_\x1c\x85"), max_size=60))
def test_chunks_are_cut_where_the_pattern_cuts(pattern: str, text: list[str]) -> None:
    said = unicodedata.normalize("NFC", "".join(text))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    allowed = {begin for _, (begin, _) in split.pre_tokenize_str(said)}
    cuts = [cut.start() for cut in module._CUT.finditer(said)]
    assert allowed.issuperset(cuts)
    pieces = [said[a:b] for a, b in pairwise([0, *cuts, len(said)])]
    assert "".join(unicodedata.normalize("NFC", piece) for piece in pieces) == said


def test_second_encoder_shares_the_model(file: Path) -> None:
    """Two vocabularies would double the load time of 248,077 entries."""
    tokenizer = Tokenizer.from_file(file)
    tokenizer._with_added.model.dropout = 0.5
    assert tokenizer._plain.model.dropout == 0.5
    assert tokenizer._plain.get_added_tokens_decoder() == {}


def test_names_and_sizes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_id("<|im_end|>") == TOKEN_IDS["<|im_end|>"]
    assert tokenizer.token_id("<|nothing|>") is None
    assert tokenizer.vocab_size == max(TOKEN_IDS.values()) + 1
    assert tokenizer.rows == 300
    assert tokenizer.added_ids == frozenset(TOKEN_IDS.values())
    assert TOKEN_IDS["<|im_end|>"] in tokenizer.special_ids
    assert TOKEN_IDS["<think>"] not in tokenizer.special_ids


def test_lone_surrogate_is_named_with_its_position(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at position 2"):
        tokenizer.encode("ab\ud800c")


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a"]])
def test_only_str_is_encoded(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(TypeError, match="must be str"):
        tokenizer.encode(text)


def test_nul_and_empty(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


# Text

IDS = st.lists(st.integers(0, 299), max_size=60)


@given(ids=IDS)
def test_decode_is_utf8_of_the_joined_bytes(tokenizer: Tokenizer, ids: list[int]) -> None:
    joined = b"".join(tokenizer.token_bytes(id) for id in ids)
    assert tokenizer.decode(ids) == joined.decode(errors="replace")


@given(ids=IDS)
def test_decode_is_the_library(tokenizer: Tokenizer, library: Any, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special=True) == library.decode(ids, skip_special_tokens=True)


@given(ids=IDS)
def test_stream_joins_to_the_whole(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = TextDecoder(tokenizer)
    pieces = [decoder.push(id) for id in ids] + [decoder.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)


@given(text=TEXTS)
def test_stream_never_splits_a_character(tokenizer: Tokenizer, text: str) -> None:
    text = unicodedata.normalize("NFC", text.replace("\ufffd", ""))
    decoder = TextDecoder(tokenizer)
    pieces = [decoder.push(id) for id in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert decoder.flush() == ""


def test_half_a_character_comes_at_the_end_as_replacement(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("🙂")
    decoder = TextDecoder(tokenizer)
    assert (decoder.push(first), decoder.flush(), decoder.flush()) == ("", "\ufffd", "")


def test_padding_rows_have_no_text(tokenizer: Tokenizer) -> None:
    """The embedding has more rows than the tokenizer entries, and a model may say any of them."""
    assert tokenizer.vocab_size < 300
    assert tokenizer.token_bytes(299) == b""
    assert tokenizer.decode([299, *tokenizer.encode("a")]) == "a"


@pytest.mark.parametrize("id", [-1, 300, 2**40])
def test_ids_outside_the_embedding(tokenizer: Tokenizer, id: int) -> None:
    with pytest.raises(ValueError, match=r"ids\[1\]: token id .* outside 0 to 299"):
        tokenizer.decode([0, id])


@pytest.mark.parametrize("id", [True, 1.0, "1", None])
def test_ids_are_integers(tokenizer: Tokenizer, id: Any) -> None:
    with pytest.raises(TypeError, match=r"ids\[0\]: a token id must be an integer"):
        tokenizer.decode([id])


def test_numpy_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the hello")
    assert tokenizer.decode(np.array(ids, dtype=np.int32)) == "the hello"


# Files


Change = Callable[[dict[str, Any]], Any]


def broken(file: Path, folder: Path, change: Change) -> Path:
    """A copy of the file with `change` applied to its JSON."""
    value = copy.deepcopy(json.loads(file.read_text()))
    change(value)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(value))
    return path


def set_in(*path: Any) -> Change:
    """Set value["a"]["b"] = v, written set_in("a", "b", v)."""

    def change(value: Any) -> None:
        *steps, last, new = path
        for step in steps:
            value = value[step]
        value[last] = new

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "model of another type": (
        set_in("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        "expected BPE",
    ),
    "model of no type": (set_in("model", "type", "Nonsense"), "not a readable tokenizer"),
    "negative id": (set_in("model", "vocab", "a", -1), "not a readable tokenizer"),
    "huge id": (set_in("model", "vocab", "the", 2**31), "none has id"),
    "id used twice": (set_in("model", "vocab", "a", 5), "none has id"),
    "merge of unknown tokens": (set_in("model", "merges", 0, ["qq", "zz"]), "not a readable"),
    "lost byte token": (lambda v: v["model"]["vocab"].pop("Ġ"), "not a readable|byte tokens"),
    "dropout": (set_in("model", "dropout", 0.5), "dropout"),
    "catastrophic pattern": (
        set_in("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", r"(\w+\s?)+$"),
        "cannot be used for encoding",
    ),
    "text lost on the way": (
        set_in("pre_tokenizer", "pretokenizers", 0, "behavior", "Removed"),
        "not a byte-level tokenizer",
    ),
    "no byte level": (set_in("pre_tokenizer", None), "cannot be used|byte-level"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(file: Path, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    path = broken(file, tmp_path, change)
    with pytest.raises(ModelFormatError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_not_a_tokenizer_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="not a readable tokenizer"):
        Tokenizer.from_file(path)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_file(file: Path, cut: float) -> None:
    data = file.read_bytes()
    path = file.with_name("truncated.json")
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ModelFormatError):
        Tokenizer.from_file(path)


@given(data=st.data())
def test_flipped_bytes(file: Path, data: st.DataObject) -> None:
    """A file with some wrong bytes is refused, or is a tokenizer: nothing else comes out of it."""
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = file.with_name("flipped.json")
    path.write_bytes(content)
    try:
        tokenizer = Tokenizer.from_file(path, embedding_rows=300)
    except (ModelFormatError, UnsupportedModelError):
        return
    assert max(tokenizer.encode("the hello 🙂 <think>", special=True)) < 300


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="not found"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_not_a_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "tokenizer.json"
    make(path)
    with pytest.raises(ModelFormatError, match="not a regular file"):
        Tokenizer.from_file(path)


def test_more_tokens_than_embedding_rows(file: Path) -> None:
    with pytest.raises(ModelFormatError, match="the embedding has 100 rows"):
        Tokenizer.from_file(file, embedding_rows=100)


def test_ids_that_config_contradicts(file: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"'<\|image_pad\|>': \d+ here, 7 in config.json"):
        Tokenizer.from_file(file, expected_ids={"<|image_pad|>": 7, "<think>": None})


def test_added_tokens_with_flags_are_unsupported(file: Path, tmp_path: Path) -> None:
    path = broken(file, tmp_path, set_in("added_tokens", 0, "lstrip", True))
    with pytest.raises(UnsupportedModelError, match=r"'<\|endoftext\|>' .* sets lstrip"):
        Tokenizer.from_file(path)


def test_truncation_and_padding_of_the_file_are_not_applied(file: Path, tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path = broken(file, tmp_path, set_in("truncation", truncation))
    tokenizer = Tokenizer.from_file(path)
    for special in (True, False):
        assert tokenizer.decode(tokenizer.encode("a b c d e", special=special)) == "a b c d e"


def test_fork_after_use_is_silent(file: Path) -> None:
    """The library warns after a fork when its thread pool was started, and its switch is global."""
    code = (
        "import os, sys\nfrom qwen35.tokenizer import Tokenizer\n"
        f"t = Tokenizer.from_file({str(file)!r}); t.encode('the hello ' * 1000)\n"
        "pid = os.fork()\n"
        "t.encode('the'); t.decode([1, 2])\n"
        "if pid: os.waitpid(pid, 0)\n"
        "print(os.environ.get('TOKENIZERS_PARALLELISM'))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout.split(), done.stderr) == (["None", "None"], "")
