"""The vocabulary of a GGUF file -> the tokenizer it was converted from; and what else the metadata
says besides sizes: names, chat template, sampling.

`tokenizer.ggml.*` -> Vocabulary (checked lists) -> tokenizers.Tokenizer with the ids of
tokenizer.json: byte-level BPE, NFC, the pre-tokenizer pattern that `tokenizer.ggml.pre` names. The
converter fills the list up to the embedding's rows with "[PAD248077]" and the like: they are left
out again. Source of the keys and of the types: llama.cpp's gguf-py/gguf/constants.py; of the
patterns: the tokenizer.json of Qwen2 and of Qwen3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError, UnsupportedModelError
from .gguf_metadata import Metadata
from .json_file import shown

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENS = 1 << 20
MAX_MERGES = 1 << 21
MAX_TOKEN_CHARACTERS = 4096  # the family's longest has some hundred
MAX_TEMPLATE_BYTES = 1 << 20
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
INT32 = 5
ROOT = "tokenizer.ggml."

_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
_TAIL = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {  # tokenizer.ggml.pre -> the pattern of tokenizer.json
    "qwen35": _HEAD + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + _TAIL,
    "qwen2": _HEAD + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + _TAIL,
}
# The converter marks every added token spelled <|...|> as control. In the family's tokenizer.json
# these are not special: an answer shows them.
SHOWN = frozenset(
    "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>".split()
)
SAMPLING = {  # general.sampling.* -> generation_config.json: name, range
    "temp": ("temperature", 0.0, 1e3),
    "top_p": ("top_p", 0.0, 1.0),
    "top_k": ("top_k", -1, 2**31 - 1),
    "min_p": ("min_p", 0.0, 1.0),
    "penalty_repeat": ("repetition_penalty", 1e-3, 1e3),
}
_SPECIAL_IDS = ("bos", "eos", "eot", "padding", "unknown")


@dataclass(frozen=True)
class Vocabulary:
    """The checked lists of a file. `tokens` leaves out what only fills the embedding up."""

    tokens: list[str]
    kinds: NDArray[np.int32]  # [len(tokens)]
    merges: list[str]
    pattern: str
    ids: dict[str, int]  # "bos", "eos", "eot", "padding", "unknown", as far as the file has them
    where: str

    @property
    def added(self) -> dict[str, int]:
        """Ids of the added tokens, by spelling."""
        return {self.tokens[i]: int(i) for i in np.flatnonzero(self.kinds != NORMAL)}


def has_vocabulary(metadata: Metadata) -> bool:
    """Whether the file has tokens: some are converted without ("no_vocab")."""
    return metadata.string(f"{ROOT}model", default="no_vocab") != "no_vocab"


def read_vocabulary(metadata: Metadata, *, rows: int | None = None) -> Vocabulary:
    """Read and check tokens, types and merges. rows: of the embedding.

    Raises ModelFormatError for lists that are missing, mistyped or contradict each other,
    UnsupportedModelError for another kind of tokenizer.
    """
    where = metadata.where
    kind = metadata.string(f"{ROOT}model")
    if kind != "gpt2":
        raise UnsupportedModelError(
            f"{where}: {ROOT}model={shown(kind)}: expected 'gpt2', byte-level BPE"
        )
    pre = metadata.string(f"{ROOT}pre")
    if pre not in PATTERNS:
        raise UnsupportedModelError(
            f"{where}: {ROOT}pre={shown(pre)}: supported are {', '.join(map(repr, PATTERNS))}"
        )
    tokens = metadata.strings(f"{ROOT}tokens", MAX_TOKENS)
    if rows is not None and len(tokens) > rows:
        raise ModelFormatError(
            f"{where}: {ROOT}tokens has {len(tokens)} entries, but token_embd.weight {rows} rows; "
            "they do not belong together"
        )
    kinds = _kinds(metadata, len(tokens))
    kept = len(tokens)
    while kept and kinds[kept - 1] in (UNUSED, USER_DEFINED) and tokens[kept - 1] == pad(kept - 1):
        kept -= 1
    tokens = tokens[:kept]
    kinds = np.where(kinds[:kept] == UNUSED, np.int32(NORMAL), kinds[:kept])
    _check_tokens(tokens, where)
    if metadata.flag(f"{ROOT}add_bos_token", default=False):
        raise UnsupportedModelError(
            f"{where}: {ROOT}add_bos_token=true: expected false, Qwen3.5 has no such token"
        )
    merges = metadata.strings(f"{ROOT}merges", MAX_MERGES)
    ids = {}
    for name in _SPECIAL_IDS:
        id = metadata.integer(f"{ROOT}{name}_token_id", 0, 2**32 - 1, default=None)
        if id is not None:
            ids[name] = id
    for name, id in ids.items():
        if id >= (len(tokens) if rows is None else rows):
            raise ModelFormatError(
                f"{where}: {ROOT}{name}_token_id={id}: expected an id below {len(tokens)}"
            )
    return Vocabulary(tokens, kinds, merges, PATTERNS[pre], ids, where)


def pad(id: int) -> str:
    """What stands for an id without a token."""
    return f"[PAD{id}]"


def _kinds(metadata: Metadata, count: int) -> NDArray[np.int32]:
    key = f"{ROOT}token_type"
    kinds = metadata.array(key, frozenset((INT32,)), f"an array of {count} INT32", MAX_TOKENS)
    if len(kinds) != count:
        raise ModelFormatError(
            f"{metadata.where}: {key} has {len(kinds)} entries: expected {count}, one for each of "
            f"{ROOT}tokens"
        )
    odd = np.flatnonzero(~np.isin(kinds, (NORMAL, CONTROL, USER_DEFINED, UNUSED)))
    if odd.size:
        raise UnsupportedModelError(
            f"{metadata.where}: {key}[{odd[0]}]={kinds[odd[0]]}: expected 1 (normal), 3 (control), "
            "4 (user defined) or 5 (unused), the types of byte-level BPE"
        )
    return kinds


def _check_tokens(tokens: list[str], where: str) -> None:
    lengths = set(map(len, tokens))
    if not lengths or 0 in lengths or max(lengths) > MAX_TOKEN_CHARACTERS:
        wrong = next((i for i, t in enumerate(tokens) if not 0 < len(t) <= MAX_TOKEN_CHARACTERS), 0)
        found = f"[{wrong}]={shown(tokens[wrong])}" if tokens else " is empty"
        raise ModelFormatError(
            f"{where}: {ROOT}tokens{found}: expected 1 to {MAX_TOKEN_CHARACTERS} characters"
        )
    if len(set(tokens)) != len(tokens):
        first: dict[str, int] = {}
        for id, token in enumerate(tokens):
            if first.setdefault(token, id) != id:
                raise ModelFormatError(
                    f"{where}: {ROOT}tokens[{id}]={shown(token)} is also token {first[token]}; "
                    "expected different spellings"
                )


def build_tokenizer(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The tokenizer, with the ids of the list. Costs half a second for 248,077 entries.

    Added tokens are those of type control (special) and user defined (not special). Raises
    ModelFormatError for merges that the vocabulary does not have.
    """
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokens, where = vocabulary.tokens, vocabulary.where
    normal = np.flatnonzero(vocabulary.kinds == NORMAL)
    # Added tokens behind the others are not in the model's own vocabulary, as in tokenizer.json;
    # any before them must be, to keep the ids.
    inner = int(normal[-1]) + 1 if normal.size else 0
    ids = dict(zip(tokens[:inner], range(inner), strict=True))
    pairs = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    wrong = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if wrong is not None:
        raise ModelFormatError(
            f"{where}: {ROOT}merges[{wrong}]={shown(vocabulary.merges[wrong])}: expected two "
            "tokens with one space between"
        )
    try:
        model = tokenizers.models.BPE(ids, pairs, fuse_unk=False)
    except Exception as error:  # the library's own; looked into only here, as looking takes time
        raise _merge_error(vocabulary, pairs, ids, error) from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(vocabulary.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(
                token,
                special=bool(vocabulary.kinds[id] == CONTROL) and token not in SHOWN,
                normalized=False,
            )
            for token, id in vocabulary.added.items()
        ]
    )
    return tokenizer


def _merge_error(
    vocabulary: Vocabulary, pairs: list[Any], ids: dict[str, int], error: Exception
) -> ModelFormatError:
    """What to say when the library refuses vocabulary and merges."""
    for index, (left, right) in enumerate(pairs):
        for part in (left, right, left + right):
            if part not in ids:
                return ModelFormatError(
                    f"{vocabulary.where}: {ROOT}merges[{index}]="
                    f"{shown(vocabulary.merges[index])}: {shown(part)} is not among the tokens"
                )
    return ModelFormatError(f"{vocabulary.where}: {ROOT}merges: {shown(str(error), 200)}")


# What else the metadata says


def general(metadata: Metadata) -> dict[str, Any]:
    """The scalar values under `general.`, without that prefix: name, size_label, license, ..."""
    return {
        key.removeprefix("general."): field.value
        for key, field in metadata.fields.items()
        if key.startswith("general.") and field.value is not None
    }


def chat_template(metadata: Metadata) -> str | None:
    """The model's own template, which may be absent."""
    template = metadata.string("tokenizer.chat_template", default=None)
    if template is not None and len(template) > MAX_TEMPLATE_BYTES:
        raise ModelFormatError(
            f"{metadata.where}: tokenizer.chat_template has {len(template)} characters: expected "
            f"at most {MAX_TEMPLATE_BYTES}"
        )
    return template


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """What generation_config.json would say: sampling and where answers end, as far as the file
    says it.
    """
    found: dict[str, Any] = {}
    for key, (name, low, high) in SAMPLING.items():
        read = metadata.integer if isinstance(low, int) else metadata.number
        value = read(f"general.sampling.{key}", low, high, default=None)
        if value is not None:
            found[name] = value
    ends = (
        metadata.integer(f"{ROOT}{name}_token_id", 0, 2**31 - 1, default=None)
        for name in ("eos", "eot")
    )
    ids = sorted({id for id in ends if id is not None})
    return found | ({"eos_token_id": ids} if ids else {})
