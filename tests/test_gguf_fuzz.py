"""Oracle: a rule: a damaged GGUF file is read, or refused by one of our two errors; nothing else
happens, and no memory is taken for it.
"""

import random
import tracemalloc
from pathlib import Path

import numpy as np
from gguf_writer import gguf_bytes, of, text_metadata, tokenizer_metadata

from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.gguf_config import read_config
from qwen35.gguf_file import open_gguf
from qwen35.gguf_tokenizer import build_tokenizer, read_vocabulary


def test_one_flipped_byte(tmp_path: Path) -> None:
    """Header and metadata with one byte changed: read, or refused by one of our two errors."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68)]
    tokens = {chr(code): id for id, code in enumerate(alphabet)} | {"ab": 256, "abc": 257}
    tokenizer = {
        "model": {"vocab": tokens, "merges": [["a", "b"], ["ab", "c"]]},
        "added_tokens": [{"id": 258, "content": "<|im_end|>", "special": True}],
    }
    metadata = text_metadata() | tokenizer_metadata(tokenizer, 260)
    data = gguf_bytes(metadata, {"token_embd.weight": of(np.zeros((260, 32), np.float32))})
    header = len(data) - 260 * 32 * 4
    path = tmp_path / "x.gguf"

    def use() -> str:
        try:
            model = open_gguf(path)
            vocabulary = read_vocabulary(model.metadata, rows=260)
            read_config(model, token_ids=vocabulary.added)
            build_tokenizer(vocabulary)
        except (ModelFormatError, UnsupportedModelError) as error:
            assert str(error).isprintable()
            return "refused"
        return "read"

    path.write_bytes(data)
    assert use() == "read"
    random_ = random.Random(17)
    found = {"read": 0, "refused": 0}
    tracemalloc.start()
    for turn in range(3000):
        at = random_.randrange(header if turn % 2 else 1200)  # every second one before the tokens
        changed = bytearray(data)
        changed[at] ^= random_.randrange(1, 256)
        path.write_bytes(changed)
        found[use()] += 1
        if turn == 500:  # counting memory is slow
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert min(found.values()) > 100
    assert peak < 4 << 20
