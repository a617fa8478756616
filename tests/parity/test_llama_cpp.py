"""Oracle: llama.cpp's own logits on files that its quantizer made.

Small random models whose linear value heads are 2 and 3 times their key heads, so that the order of
heads in the file shows. Both round tokens to 8 bits for block types, each its own way: mean KL at
most 5e-3 nats, what random weights make of that rounding. With tokens in float32 NumPy is the
oracle.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import checkpoints
import core_models
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import Reference

import qwen35
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import export

ll = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

KL = 5e-3
EMBEDDING = (
    0.06  # standard deviation of its elements: logits of about 1, as a model's first guesses
)
IDS = np.random.default_rng(7).integers(0, 200, 96).astype(np.int32)
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Any:
    silent = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(silent, None)
    ll.llama_backend_init()
    yield silent


def writer() -> ModuleType:
    """benchmarks/write_gguf.py."""
    path = Path(__file__).parents[2] / "benchmarks" / "write_gguf.py"
    spec = importlib.util.spec_from_file_location("write_gguf", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[2, 3], ids=["2x", "3x"])
def bf16(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 GGUF of a random model."""
    folder = tmp_path_factory.mktemp("llama")
    heads = {"linear_num_value_heads": 2 * request.param}
    checkpoint = checkpoints.write_checkpoint(
        folder / "hf", seed=request.param, mtp=False, vision=False, **WIDE, **heads
    )
    name = "model.language_model.embed_tokens.weight"
    tensors = checkpoints.make_tensors(
        checkpoints.config_of(vision=False, **WIDE, **heads), seed=request.param, mtp=False
    )
    rows = np.random.default_rng(1).standard_normal(tensors[name].shape) * EMBEDDING
    tensors[name] = rows.astype(tensors[name].dtype)
    checkpoints.write_safetensors(checkpoint / "model.safetensors", tensors)
    out = folder / "bf16.gguf"
    writer().write(checkpoint, out)
    return out


def quantized(source: Path, ftype: str) -> Path:
    """The file as llama.cpp's own quantizer makes it."""
    out = source.with_name(f"{ftype}.gguf")
    if out.exists():
        return out
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{ftype}")
    params.nthread = 1
    assert ll.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
    return out


def theirs(path: Path) -> NDArray[np.float32]:
    """llama.cpp's logits of every position, [T, V]."""
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    assert model
    params = ll.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    context = ll.llama_init_from_model(model, params)
    batch = ll.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for i, id in enumerate(IDS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(id), i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, True
    assert ll.llama_decode(context, batch) == 0
    width = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    found = np.ctypeslib.as_array(ll.llama_get_logits(context), (len(IDS), width)).copy()
    ll.llama_batch_free(batch)
    ll.llama_free(context)
    ll.llama_model_free(model)
    return found


def ours(path: Path, dtype: str = "auto") -> NDArray[np.float32]:
    with qwen35.load(path, context=256, dtype=dtype) as model:
        return model.logits(IDS)


def log_softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def mean_kl(want: NDArray[Any], got: NDArray[Any]) -> float:
    """KL(want || got) in nats, over positions."""
    p, q = log_softmax(want), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize("ftype", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K", "Q4_0", "IQ4_NL"])
def test_logits_of_their_files(bf16: Path, ftype: str) -> None:
    """Both round tokens, each its own way."""
    path = quantized(bf16, ftype)
    kl = mean_kl(theirs(path), ours(path))
    print(f"{ftype}: KL {kl:.2e}")
    assert kl <= KL


@pytest.mark.parametrize("ftype", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K", "Q4_0", "Q6_K", "IQ4_NL"])
def test_logits_of_their_files_without_rounding_tokens(bf16: Path, ftype: str) -> None:
    path = quantized(bf16, ftype)
    assert mean_kl(theirs(path), ours(path, dtype="float32")) <= KL


@pytest.mark.parametrize("ftype", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_numbers_of_their_files(bf16: Path, ftype: str) -> None:
    """Tokens in float32 against NumPy in float64 on the decoded numbers: seen 8e-7 to 1.2e-6."""
    path = quantized(bf16, ftype)
    with qwen35.load(path, context=256, dtype="float32") as model:
        got, tensors = model.logits(IDS), dict(model.tensors)
    heads = tensors["model.language_model.layers.0.linear_attn.A_log"].size
    config = checkpoints.config_of(vision=False, **WIDE, linear_num_value_heads=heads)
    assert core_models.relative_error(got, Reference(config, tensors).logits(IDS)) <= 1e-4


def test_logits_of_bf16(bf16: Path) -> None:
    assert mean_kl(theirs(bf16), ours(bf16)) <= KL


def test_logits_of_our_calibrated_file(bf16: Path) -> None:
    """It has the types that calibration chose, blocks that were fitted, and no more bytes than
    llama.cpp's Q4_K_M.
    """
    path, text = bf16.with_name("calibrated.gguf"), np.random.default_rng(8).integers(0, 200, 1100)
    if not path.exists():
        checkpoint = open_checkpoint(bf16)
        export(checkpoint, path, "q4_k_m", calibrate=text.astype(np.int32))
        checkpoint.close()
    assert mean_kl(theirs(path), ours(path)) <= KL
    assert path.stat().st_size <= quantized(bf16, "Q4_K_M").stat().st_size
