"""The models of the golden files: made from a seed, bit for bit the same on every machine, so that
no weights are stored.

Only Philox's raw 64-bit stream is used: NumPy keeps the streams of its bit generators (NEP 19) but
not those of its distributions. A Gaussian is the sum of four 16-bit uniforms, exact in float32
until the last scaling.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

KNOWN_IDS = 291  # entries of the tokenizer that checkpoints.py writes


def _config(**changes: Any) -> dict[str, Any]:
    text = {
        "model_type": "qwen3_5_text",
        "hidden_size": 68,
        "intermediate_size": 124,
        "vocab_size": 307,
        "num_hidden_layers": 4,
        "layer_types": [
            "linear_attention",
            "linear_attention",
            "linear_attention",
            "full_attention",
        ],
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 36,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 20,
        "linear_value_head_dim": 44,
        "linear_conv_kernel_dim": 4,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "mtp_num_hidden_layers": 0,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [4, 3, 2],
            "mrope_interleaved": True,
        },
    } | changes
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "equal-heads-tied": _config(linear_num_value_heads=2, tie_word_embeddings=True),
    "double-heads": _config(),
    "triple-heads-yarn": _config(
        linear_num_key_heads=3,
        linear_num_value_heads=9,
        num_key_value_heads=3,
        layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention"],
        max_position_embeddings=192,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 3.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [4, 3, 2],
            "mrope_interleaved": True,
        },
    ),
}


def raw_stream(key: str, n: int) -> NDArray[np.uint64]:
    """n raw 64-bit numbers that depend on the text `key` alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Philox(key=seed).random_raw(n)


def gaussian(
    key: str, shape: tuple[int, ...], *, mean: float = 0.0, std: float
) -> NDArray[np.float32]:
    """About normal numbers: four 16-bit uniforms summed."""
    parts = raw_stream(key, math.prod(shape)).view(np.uint16).reshape(-1, 4).astype(np.int64)
    centred = (parts.sum(axis=1) - 2 * 65535).astype(np.float32)
    unit = centred / np.float32(65536 * math.sqrt(4 / 12))
    return (unit * np.float32(std) + np.float32(mean)).reshape(shape)


def ids(name: str, T: int) -> NDArray[np.int32]:
    """The prompt of a golden file, [T]: ids the tokenizer knows (16 fewer than the model)."""
    return (raw_stream(name + " ids", T) % np.uint64(KNOWN_IDS)).astype(np.int32)


def tensors(name: str) -> dict[str, NDArray[Any]]:
    """The weights of one golden model, bfloat16 under checkpoint names."""
    out = {}
    for tensor, shape in checkpoints.text_shapes(CONFIGS[name]["text_config"]).items():
        mean, std = 0.0, 0.7 / math.sqrt(shape[-1])
        if tensor.endswith("A_log"):
            std = 1.0
        elif tensor.endswith("linear_attn.norm.weight"):
            mean, std = 1.0, 0.2
        elif tensor.endswith(("embed_tokens.weight", "lm_head.weight")):
            std = 2.0 / math.sqrt(shape[-1])
        elif len(shape) == 1:
            std = 0.3
        out[tensor] = gaussian(f"{name} {tensor}", shape, mean=mean, std=std).astype(
            ml_dtypes.bfloat16
        )
    return out


def write(name: str, folder: Path) -> Path:
    """The golden model as a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(folder / "config.json", CONFIGS[name])
    checkpoints.write_safetensors(folder / "model.safetensors", tensors(name))
    checkpoints.write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(checkpoints.TEMPLATE, encoding="utf-8")
    return folder
