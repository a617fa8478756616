#!/usr/bin/env python3
"""4-bit files of tiny, ours and llama.cpp's, by what they did to the model: KL to bf16.

    pip install llama-cpp-python==0.3.36
    python benchmarks/bench_four_bit.py --json four_bit.json

Both quantizers get the same text: ours by calibrate=, llama.cpp's as an imatrix of the mean squares
that we measured on it, which is what its own tool would put there. Both results are measured on
other questions, those that training never saw either: by our engine, and by llama.cpp's. --text and
--held-out take texts of yours instead.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np

import qwen35
from qwen35 import fidelity
from qwen35.calibrate import collect, input_of, token_ids, windows
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import export
from qwen35.gguf_file import GgufFile
from qwen35.machine import default_threads

sys.path.append(str(Path(__file__).parents[1] / "examples" / "tiny"))
from conversations import conversations  # noqa: E402

CONTEXT = 256
TINY = Path(qwen35.__file__).parent / "tiny"


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level: int, text: bytes, data: object) -> None:
    """What llama.cpp has to say."""


def ours(path: Path, recipe: str, **options: Any) -> Path:
    """tiny by our quantizer, without vision and drafts."""
    checkpoint = open_checkpoint("tiny")
    try:
        export(checkpoint, path, recipe, mtp=False, vision=False, **options)
    finally:
        checkpoint.close()
    return path


def mean_squares(bf16: Path, text: str) -> dict[str, np.ndarray]:
    """Of the columns of every matrix of a GGUF file, under its names and in its order."""
    with qwen35.load(bf16, progress=False) as model:
        tensors = model._checkpoint.tensors
        shapes = {name: tensors.span(name).shape for name in tensors}
        columns = {n: s[1] for n, s in shapes.items() if len(s) == 2 and n.endswith(".weight")}
        ids = token_ids(model._checkpoint, model.tokenize(text, special=True))
        found = collect(model._core, windows(ids), columns, orders={})
        return {
            tensors.home(name)[1].stored[0]: found[input_of(name)].mean_squares()
            for name in columns
        }


def theirs(bf16: Path, path: Path, importance: dict[str, np.ndarray]) -> Path:
    """The file by llama.cpp's quantizer."""
    params = ll.llama_model_quantize_default_params()
    params.ftype, params.nthread = ll.LLAMA_FTYPE_MOSTLY_Q4_K_M, default_threads()
    entries = (ll.llama_model_imatrix_data * (len(importance) + 1))()  # the last is empty
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        params.imatrix = entries
    if ll.llama_model_quantize(str(bf16).encode(), str(path).encode(), params):
        raise SystemExit(f"llama.cpp could not quantize {bf16}")
    return path


def llama_logits(path: Path, ids: np.ndarray) -> list[np.ndarray]:
    """llama.cpp's logits [CONTEXT, V] of each window."""
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.n_threads = params.n_threads_batch = default_threads()
    width, found = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model)), []
    for window in ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT):
        context, batch = ll.llama_init_from_model(model, params), ll.llama_batch_init(CONTEXT, 0, 1)
        batch.n_tokens = CONTEXT
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, True
        if ll.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        found.append(np.ctypeslib.as_array(ll.llama_get_logits(context), (CONTEXT, width)).copy())
        ll.llama_batch_free(batch)
        ll.llama_free(context)
    ll.llama_model_free(model)
    return found


def llama_kl(reference: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Mean KL of the second half of each window, as our own measure takes it."""
    half = slice(CONTEXT // 2, CONTEXT - 1)
    none = np.zeros(CONTEXT - 1 - CONTEXT // 2, np.int64)
    pairs = zip(reference, found, strict=True)
    return float(np.mean([fidelity.compare(a[half], b[half], none).kl.mean() for a, b in pairs]))


def tensor_bytes(path: Path) -> int:
    """Of all tensors, without padding."""
    file = GgufFile(path)
    try:
        return sum(span.nbytes for span in file.spans.values())
    finally:
        file.close()


def run(folder: Path, text: str, held: str) -> dict[str, Any]:
    """All files made and measured."""
    bf16 = ours(folder / "bf16.gguf", "keep")
    files = {
        "llama.cpp Q4_K_M": theirs(bf16, folder / "llama.gguf", {}),
        "llama.cpp Q4_K_M, imatrix": theirs(bf16, folder / "im.gguf", mean_squares(bf16, text)),
        "qwen35 q4_k_m": ours(folder / "plain.gguf", "q4_k_m"),
        "qwen35 q4_k_m, calibrated": ours(
            folder / "calibrated.gguf", "q4_k_m", calibrate=text, special=True
        ),
    }
    with qwen35.load("tiny", context=CONTEXT) as reference:
        ids = np.array(reference.tokenize(held, special=True), np.int32)
        found = fidelity.measure(files, reference, ids, context=CONTEXT, progress=False)
    print(found)
    wanted, result = llama_logits(bf16, ids), {}
    for one in found:
        path = files[one.name]
        result[one.name] = {
            "bytes": tensor_bytes(path),
            "kl": one.kl,
            "kl_error": one.kl_error,
            "kl_in_llama_cpp": llama_kl(wanted, llama_logits(path, ids)),
            "same_top": one.agreement,
            "scored": one.scored,
        }
        print(
            f"{one.name:<28} {result[one.name]['bytes']:>10,} bytes  KL {one.kl:.3e}, in llama.cpp "
            f"{result[one.name]['kl_in_llama_cpp']:.3e}"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="to calibrate on, special tokens spelt out")
    parser.add_argument("--held-out", type=Path, help="to measure on")
    parser.add_argument("--questions", type=int, default=20, help="of a kind, to calibrate on (20)")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    ll.llama_log_set(silent, None)
    ll.llama_backend_init()
    text = conversations(TINY, "calibrate", options.questions, held=False)
    held = conversations(TINY, "held out", 8, held=True)
    if options.text:
        text = options.text.read_text(encoding="utf-8")
    if options.held_out:
        held = options.held_out.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), text, held)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
