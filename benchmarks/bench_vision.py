#!/usr/bin/env python3
"""One image through qwen35's vision tower and through llama.cpp's mtmd, the same weights, in turn.

    pip install llama-cpp-python==0.3.36 gguf
    python benchmarks/write_mmproj.py CHECKPOINT_DIR /tmp/mmproj.gguf --text /tmp/text.gguf
    python benchmarks/bench_vision.py CHECKPOINT_DIR /tmp/text.gguf /tmp/mmproj.gguf --json f.json
    python benchmarks/bench_vision.py CHECKPOINT_DIR --memory 4096

Each round starts a fresh process for each engine, alternating, and gives both the same new random
image; what they make of it must agree. qwen35's seconds are preprocessing and encoding, llama.cpp's
encoding alone: its preprocessing is part of tokenizing. Both encode a small image before, so that
encoding_MB, what the timed image adds to resident memory, is scratch and features, not weights.
`--memory` is qwen35 alone on one image of that side.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from resident import forget_peak, resident_bytes

TOKEN_SIDE = 32  # pixels of a token's side
SMALL = 256  # pixels; the smallest side that is not enlarged
LIKE = 0.99  # cosine of features of the same image and weights; f16 towers reach 0.99999
Encode = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], float]]


def random_image(size: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def open_qwen35(checkpoint: str, size: int, threads: int) -> Encode:
    """Image [H, W, 3] -> features [n, D] and the seconds of `Model.embed_image`."""
    import qwen35

    context = (size // TOKEN_SIDE + 1) ** 2
    model = qwen35.load(checkpoint, threads=threads, context=context, progress=False)

    def encode(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        start = time.perf_counter()
        features = model.embed_image(image)
        return features, time.perf_counter() - start

    return encode


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level: int, text: bytes, data: object) -> None:
    pass


def open_mtmd(text: str, mmproj: str, threads: int) -> Encode:
    """Image [H, W, 3] -> features [n, D] and the seconds of `mtmd_encode_chunk`."""
    import llama_cpp as ll
    from llama_cpp import mtmd_cpp as mtmd

    ll.llama_log_set(silent, None)
    mtmd.mtmd_helper_log_set(silent, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(text.encode(), ll.llama_model_default_params())
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.n_threads = False, False, threads
    context = mtmd.mtmd_init_from_file(mmproj.encode(), model, params)
    if not context:
        raise SystemExit(f"mtmd cannot open {mmproj} beside {text}")
    width = ll.llama_model_n_embd_inp(model)

    def encode(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        chunks = mtmd.mtmd_input_chunks_init()
        chunk = image_chunk(mtmd, context, chunks, image)
        start = time.perf_counter()
        if mtmd.mtmd_encode_chunk(context, chunk):
            raise SystemExit("mtmd_encode_chunk failed")
        seconds = time.perf_counter() - start
        shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), width)
        features = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape).copy()
        mtmd.mtmd_input_chunks_free(chunks)
        return features, seconds

    return encode


def image_chunk(mtmd: Any, context: Any, chunks: Any, image: NDArray[np.uint8]) -> Any:
    """The preprocessed image among the chunks of a prompt that is nothing else."""
    height, width, _ = image.shape
    pixels = image.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd.mtmd_bitmap_init(width, height, pixels)
    marker = mtmd.mtmd_default_marker()
    prompt = mtmd.mtmd_input_text(marker, len(marker), False, True)
    bitmaps = (ctypes.c_void_p * 1)(bitmap)
    if mtmd.mtmd_tokenize(context, chunks, ctypes.byref(prompt), bitmaps, 1):
        raise SystemExit("mtmd_tokenize failed")
    mtmd.mtmd_bitmap_free(bitmap)
    every = [
        mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))
    ]
    kind = mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
    return next(chunk for chunk in every if mtmd.mtmd_input_chunk_get_type(chunk) == kind)


def run_child(job: dict[str, Any]) -> dict[str, float]:
    """A small image, then the timed one, whose features go to `job["features"]`."""
    size, threads = job["size"], job["threads"]
    if job["engine"] == "qwen35":
        encode = open_qwen35(job["checkpoint"], size, threads)
    else:
        encode = open_mtmd(job["text"], job["mmproj"], threads)
    encode(random_image(SMALL, seed=job["seed"]))
    image = random_image(size, seed=job["seed"])
    forget_peak()
    before = resident_bytes("VmRSS")
    features, seconds = encode(image)
    peak = resident_bytes("VmHWM")
    if job["features"]:
        np.save(job["features"], features)
    return {"seconds": seconds, "peak_MB": peak / 1e6, "encoding_MB": (peak - before) / 1e6}


def measure(engine: str, options: argparse.Namespace, **job: Any) -> dict[str, float]:
    """One engine in a process of its own."""
    job |= {"engine": engine, "threads": options.threads, "checkpoint": options.checkpoint}
    job |= {"text": options.text, "mmproj": options.mmproj}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The smallest cosine between rows of the same place, float [n, D] each."""
    if a.shape != b.shape:
        raise SystemExit(f"features {a.shape} beside {b.shape}: another size or another tower")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.einsum("nd,nd->n", a, b) / lengths).min())


def run_round(index: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both engines on the image of this round; every other round llama.cpp goes first."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {engine: f"{folder}/{engine}.npy" for engine in ("qwen35", "llama.cpp")}
        for engine in list(files)[:: 1 if index % 2 == 0 else -1]:
            job = {"size": options.size, "seed": index, "features": files[engine]}
            figures[engine] = measure(engine, options, **job)
        figures["least_cosine"] = least_cosine(*map(np.load, files.values()))
    if figures["least_cosine"] < LIKE:
        raise SystemExit(f"features differ: {figures}, expected a cosine of {LIKE} at least")
    return figures


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each engine, and the median of the ratios of each round (qwen35's speed-up)."""
    result: dict[str, Any] = {
        engine: {
            key: round(statistics.median(r[engine][key] for r in rounds), 3)
            for key in rounds[0][engine]
        }
        for engine in ("qwen35", "llama.cpp")
    }
    ratios = [r["llama.cpp"]["seconds"] / r["qwen35"]["seconds"] for r in rounds]
    return result | {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "least_cosine": min(r["least_cosine"] for r in rounds),
    }


def machine_now(threads: int) -> dict[str, Any]:
    """What machine_limits.py says of this machine, and the kernels in use."""
    from machine_limits import describe

    import qwen35._core

    return describe(threads) | {"isa": qwen35._core.cpu()["isa"]}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    machine = machine_now(options.threads)
    machine["peer"] = f"llama-cpp-python {version('llama-cpp-python')}"
    print(json.dumps(machine), file=sys.stderr)
    rounds = []
    for index in range(options.rounds):
        rounds.append(run_round(index, options))
        print(json.dumps(rounds[-1]), file=sys.stderr)
    figures = {"machine": machine, "size": options.size, "image": summary(rounds)}
    row = figures["image"]
    ours, theirs = row["qwen35"], row["llama.cpp"]
    print(f"{'':12} {'qwen35':>10} {'llama.cpp':>10} {'ratio':>7}   image {options.size}")
    print(f"{'seconds':12} {ours['seconds']:10.2f} {theirs['seconds']:10.2f} {row['ratio']:7.2f}")
    for key in ("encoding_MB", "peak_MB"):
        print(f"{key:12} {ours[key]:10.0f} {theirs[key]:10.0f}")
    print(f"least cosine of features: {row['least_cosine']:.6f}")
    return figures | {"rounds": rounds}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    machine = machine_now(options.threads)
    print(json.dumps(machine), file=sys.stderr)
    row = measure("qwen35", options, size=options.memory, seed=0, features=None)
    print(
        f"image {options.memory}: {row['seconds']:.2f} s, {row['encoding_MB']:.0f} MB to encode, "
        f"{row['peak_MB']:.0f} MB peak"
    )
    return {"machine": machine, "size": options.memory, "image": {"qwen35": row}}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="Hugging Face folder, for qwen35")
    parser.add_argument("text", nargs="?", help="a text model with a vocabulary, for mtmd")
    parser.add_argument("mmproj", nargs="?", help="the same vision weights, for mtmd")
    parser.add_argument("--size", type=int, default=768, help="pixels of the image's sides")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="SIZE", help="qwen35 alone, on one image")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    if options.memory is None and options.mmproj is None:
        parser.error("expected TEXT.gguf and MMPROJ.gguf, or --memory SIZE")
    figures = compare(options) if options.memory is None else memory(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
