"""Text to token ids and back, on the `tokenizers` library, for byte-level BPE as Qwen uses it.

tokenizer.json -> one BPE model in memory -> two encoders over it: one that knows the added tokens
(<|im_end|>, <think>, ...) and one that does not. The second is the default, so that text from
outside never becomes a control token. Decoding works on bytes: every token is a byte string, and a
text is the UTF-8 of the joined bytes. Does not render conversations (chat.py) and does not
interpret what a model says (answer.py).
"""

from __future__ import annotations

import codecs
import json
import operator
import re
import stat
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelFormatError, UnsupportedModelError

if TYPE_CHECKING:
    import tokenizers

MAX_FILE_BYTES = 128 << 20  # a file with the family's 248,077 entries has some tens of MB

# Pre-tokenizer patterns of the family. Their pieces are known to end between a letter and "
# letter", and between a newline and a letter or digit: a long text can be encoded in chunks cut
# there, so that Ctrl-C does not wait for all of it.
_KNOWN_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=\n)(?=[^\W_])")
_CHUNK = 32768  # characters; about 30 ms

_PROBE = "Hello, it's 2024:\n\n\t naïve 世界 🙂  end\r\n"
_HOSTILE_PROBES = ("a" * 64 + "!", " " * 64 + "!", "0" * 64 + "!", "'" * 64 + "a")


@cache
def _bytes_of_characters() -> dict[str, int]:
    """The byte each printable stand-in of byte-level BPE means (the alphabet of GPT-2's
    vocabulary)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


class Tokenizer:
    """The vocabulary of a checkpoint. Immutable; shared by threads. Made by `Tokenizer.from_file`.

    vocab_size   entries of tokenizer.json, added tokens included
    rows         rows of the embedding, >= vocab_size: ids from vocab_size up are padding, without
                 text
    added_ids    ids of all added tokens
    special_ids  those that are control tokens, which an answer does not show (special=true; <think>
                 is not among them)
    """

    def __init__(self, encoder: tokenizers.Tokenizer, *, where: str, rows: int | None = None):
        import tokenizers

        self._where = where
        self._with_added = encoder
        self._plain = tokenizers.Tokenizer(
            encoder.model
        )  # shares the BPE model: nothing is loaded twice
        self._plain.normalizer = encoder.normalizer
        self._plain.pre_tokenizer = encoder.pre_tokenizer
        self._chunkable = _pattern_is_known(encoder.pre_tokenizer)
        self.vocab_size: int = encoder.get_vocab_size(with_added_tokens=True)
        self.rows: int = self.vocab_size if rows is None else rows
        self.added_tokens: dict[str, int] = {
            token.content: id for id, token in encoder.get_added_tokens_decoder().items()
        }
        self.added_ids = frozenset(self.added_tokens.values())
        self.special_ids = frozenset(
            id for id, token in encoder.get_added_tokens_decoder().items() if token.special
        )
        self._added_bytes = {id: text.encode() for text, id in self.added_tokens.items()}
        self._bytes: dict[int, bytes] = {}  # filled as ids are first decoded

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        embedding_rows: int | None = None,
        expected_ids: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """Read and check a tokenizer.json.

        embedding_rows: V of the model; every id must be below it.
        expected_ids: ids config.json gives to added tokens, by spelling (None values are skipped).
        Raises ModelFormatError for a file that breaks its format or contradicts these,
        UnsupportedModelError for a well-formed tokenizer of another kind.
        """
        encoder = _read(Path(path))
        return cls.from_encoder(
            encoder, where=str(path), embedding_rows=embedding_rows, expected_ids=expected_ids
        )

    @classmethod
    def from_encoder(
        cls,
        encoder: tokenizers.Tokenizer,
        *,
        where: str,
        embedding_rows: int | None = None,
        expected_ids: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """Check a tokenizer that was made otherwise; `where` names it in errors, which are those of
        `from_file`.
        """
        encoder.no_truncation()
        encoder.no_padding()
        _check_kind(encoder, where)
        _check_ids(encoder, where, embedding_rows)
        tokenizer = cls(encoder, where=where, rows=embedding_rows)
        _check_behaviour(tokenizer, where)
        _check_expected(tokenizer, where, expected_ids or {})
        return tokenizer

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`.

        special=False: spellings of added tokens in the text are plain text. special=True: they
        become their ids. Raises TypeError for anything but str, ValueError at the position of a
        lone surrogate.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be str, not {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: lone surrogate {text[error.start]!r} at position {error.start}; it has no "
                "UTF-8, open files with encoding='utf-8'"
            ) from None
        if special:
            return self._run(self._with_added, text)
        ids = self._encode_plain(text)
        if not self.added_ids.isdisjoint(ids):
            raise ModelFormatError(
                f"{self._where}: plain text was encoded to an added token; its merges make "
                "control tokens"
            )
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        if not self._chunkable or len(text) <= _CHUNK:
            return self._run(self._plain, text)
        ids: list[int] = []
        start = 0
        while start < len(text):
            cut = _CUT.search(text, start + _CHUNK)
            end = cut.start() if cut else len(text)
            ids += self._run(self._plain, text[start:end])
            start = end
        return ids

    def _run(self, encoder: tokenizers.Tokenizer, text: str) -> list[int]:
        # One text at a time never starts the library's thread pool, so TOKENIZERS_PARALLELISM need
        # not be touched and a later fork prints no warning.
        try:
            return encoder.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not _is_library_error(error):
                raise
            raise ValueError(
                f"text of {len(text)} characters cannot be split by the pattern of {self._where}: "
                f"{_one_line(error)}; a very long run of one kind of character does this"
            ) from None

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ids; invalid UTF-8 becomes U+FFFD as in bytes.decode(errors="replace").

        skip_special leaves out control tokens (`special_ids`). Raises ValueError with the index of
        an id that is no row of the embedding.
        """
        pieces = []
        for index, id in enumerate(ids):
            try:
                piece = self.token_bytes(id)
            except (TypeError, ValueError) as error:
                raise type(error)(f"ids[{index}]: {error}") from None
            if not (skip_special and id in self.special_ids):
                pieces.append(piece)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for; empty for the padding rows above the vocabulary."""
        known = self._bytes.get(id) if type(id) is int else None
        if known is not None:
            return known
        if isinstance(id, bool):
            raise TypeError("a token id must be an integer, not bool")
        try:
            id = operator.index(id)
        except TypeError:
            raise TypeError(f"a token id must be an integer, not {type(id).__name__}") from None
        if not 0 <= id < self.rows:
            raise ValueError(f"token id {id} is outside 0 to {self.rows - 1}")
        self._bytes[id] = result = self._bytes_of(id)
        return result

    def _bytes_of(self, id: int) -> bytes:
        if id in self._added_bytes:
            return self._added_bytes[id]
        token = self._with_added.id_to_token(id)
        if token is None:
            return b""
        alphabet = _bytes_of_characters()
        try:
            return bytes(alphabet[character] for character in token)
        except (
            KeyError
        ):  # not spelled in the byte alphabet: its own text, as the library decodes it
            return token.encode()

    def token_id(self, token: str) -> int | None:
        """Id of an added token by its text, or of an entry by its spelling in the file; None when
        there is none."""
        return self._with_added.token_to_id(token)

    def __repr__(self) -> str:
        return f"Tokenizer({self._where!r}, vocab_size={self.vocab_size}, rows={self.rows})"


class TextDecoder:
    """Ids in, text out as soon as its characters are whole.

    The pieces join to `tokenizer.decode(ids)`, whatever the ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Text that is certain after this token; "" while a character is incomplete."""
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What an incomplete character at the end turns into (U+FFFD), or ""; the decoder is new
        afterwards."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _is_library_error(error: BaseException) -> bool:
    """Whether it came out of the library: its own Exception, or a Rust panic (which is no Exception
    in Python)."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].encode("unicode_escape").decode()


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        info = path.stat()
    except FileNotFoundError:
        raise ModelFormatError(
            f"{path}: not found; a checkpoint needs its tokenizer.json beside the weights"
        ) from None
    if not stat.S_ISREG(info.st_mode):
        raise ModelFormatError(f"{path}: not a regular file")
    if info.st_size > MAX_FILE_BYTES:
        raise ModelFormatError(
            f"{path}: {info.st_size} bytes, expected at most {MAX_FILE_BYTES} for a tokenizer"
        )
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:
        if not _is_library_error(error):
            raise
        raise ModelFormatError(
            f"{path}: not a readable tokenizer: {_one_line(error)}; download the file again"
        ) from None


def _check_kind(encoder: tokenizers.Tokenizer, where: str) -> None:
    import tokenizers

    model = encoder.model
    if not isinstance(model, tokenizers.models.BPE):
        raise ModelFormatError(f"{where}: model.type is {type(model).__name__}, expected BPE")
    if model.dropout:
        raise ModelFormatError(
            f"{where}: model.dropout is {model.dropout}: encoding would be random; set it to null"
        )
    missing = [c for c in _bytes_of_characters() if model.token_to_id(c) is None]
    if missing:
        raise ModelFormatError(
            f"{where}: the vocabulary lacks {len(missing)} of the 256 byte tokens (first "
            f"{missing[0]!r}), some text could not be encoded; expected byte-level BPE"
        )
    for id, token in encoder.get_added_tokens_decoder().items():
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if getattr(token, flag)]
        if flags:
            raise UnsupportedModelError(
                f"{where}: added token {token.content!r} (id {id}) sets {', '.join(flags)}; "
                "only plain added tokens are supported"
            )


def _check_ids(encoder: tokenizers.Tokenizer, where: str, rows: int | None) -> None:
    size = encoder.get_vocab_size(with_added_tokens=True)
    if rows is not None and size > rows:
        raise ModelFormatError(
            f"{where}: {size} tokens, but the embedding has {rows} rows; they do not belong "
            "together"
        )
    # `size` different spellings fill the ids 0 to size - 1 without a gap exactly when no id is
    # shared or outside.
    tokens = list(map(encoder.id_to_token, range(size)))
    if None in tokens:
        missing = tokens.index(None)
        raise ModelFormatError(
            f"{where}: {size} tokens, but none has id {missing}; ids must be 0 to {size - 1}, each "
            "used once"
        )


def _check_behaviour(tokenizer: Tokenizer, where: str) -> None:
    """Encode and decode a sample: finds other pre-tokenizers, normalizers, and patterns that take
    for ever."""
    normalizer = tokenizer._plain.normalizer
    expected = normalizer.normalize_str(_PROBE) if normalizer else _PROBE
    began = time.monotonic()
    try:
        got = tokenizer.decode(tokenizer.encode(_PROBE))
        for probe in _HOSTILE_PROBES:
            tokenizer.encode(probe)
            if time.monotonic() - began > 1:
                raise ValueError("its pattern takes over a second on 64 characters")
        for content in tokenizer.added_tokens:
            tokenizer.encode(content)
    except ValueError as error:
        raise ModelFormatError(f"{where}: cannot be used for encoding: {error}") from None
    if got != expected:
        raise ModelFormatError(
            f"{where}: not a byte-level tokenizer: {_PROBE!r} encoded and decoded gives {got!r}"
        )


def _check_expected(tokenizer: Tokenizer, where: str, expected: Mapping[str, int | None]) -> None:
    wrong = [
        f"{token!r}: {tokenizer.token_id(token)} here, {id} in config.json"
        for token, id in expected.items()
        if id is not None and tokenizer.token_id(token) != id
    ]
    if wrong:
        raise ModelFormatError(f"{where}: token ids disagree with config.json: {'; '.join(wrong)}")


def _pattern_is_known(pre_tokenizer: Any) -> bool:
    try:
        state = json.loads(pre_tokenizer.__getstate__())
        first = state["pretokenizers"][0]
        return first["behavior"] == "Isolated" and first["pattern"]["Regex"] in _KNOWN_PATTERNS
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return False
