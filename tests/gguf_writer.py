"""Writes tiny GGUF files byte by byte, right ones and wrong ones: nothing is checked here.

A value is written by its Python type (int UINT32, float FLOAT32, bool, str, a list by its first
element) or as `Typed(kind, value)` and `Raw(bytes)`, which may be anything.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwen35.gguf_types import BY_NAME

CODES = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
NUMBERS = {"<f4": 0, "<f2": 1, "|i1": 24, "<i2": 25, "<i4": 26, "<i8": 27, "<f8": 28}


@dataclass(frozen=True)
class Typed:
    """A value, or the elements of a list, as this GGUF type."""

    kind: int
    value: Any


@dataclass(frozen=True)
class Raw:
    """The bytes behind a key: type and value."""

    data: bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor as it shall stand in the file. `shape` innermost last; `offset` None: where the
    data is put.
    """

    type: int
    shape: Sequence[int]
    data: bytes
    offset: int | None = None


def of(array: Any) -> Tensor:
    """A tensor of an array of a plain type."""
    kind = 30 if array.dtype == ml_dtypes.bfloat16 else NUMBERS[array.dtype.str]
    return Tensor(kind, array.shape, np.ascontiguousarray(array).tobytes())


def blocks(kind: str, shape: Sequence[int], data: bytes) -> Tensor:
    """A tensor of a block type; shape in elements."""
    return Tensor(BY_NAME[kind].id, shape, data)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def element(kind: int, value: Any) -> bytes:
    return string(value) if kind == 8 else struct.pack(CODES[kind], value)


def value_bytes(value: Any) -> bytes:
    """Type and value of one key."""
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, Typed):
        kind, value = value.kind, value.value
    else:
        first = value[0] if isinstance(value, list) else value
        kind = {bool: 7, int: 5 if isinstance(value, list) else 4, float: 6}.get(type(first), 8)
    if not isinstance(value, list):
        return struct.pack("<I", kind) + element(kind, value)
    body = b"".join(element(kind, item) for item in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + body


def gguf_bytes(
    metadata: Mapping[str, Any] | Sequence[tuple[Any, Any]] = (),
    tensors: Mapping[str, Tensor] | Sequence[tuple[Any, Tensor]] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    align: int = 32,
    pad_end: bool = True,
) -> bytes:
    """A whole file. `metadata` and `tensors` may repeat names when given as pairs."""
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    out = magic + struct.pack(
        "<IQQ",
        version,
        len(named) if tensor_count is None else tensor_count,
        len(pairs) if key_count is None else key_count,
    )
    for key, value in pairs:
        out += string(key) + value_bytes(value)
    data = b""
    for name, tensor in named:
        offset = len(data) if tensor.offset is None else tensor.offset
        out += string(name) + struct.pack("<I", len(tensor.shape))
        out += b"".join(struct.pack("<Q", extent % 2**64) for extent in reversed(tensor.shape))
        out += struct.pack("<IQ", tensor.type % 2**32, offset)
        data += tensor.data
        data += b"\0" * (-len(data) % align)
    if named and not pad_end:
        data = data[: len(data) - (-len(named[-1][1].data) % align)]
    return out + b"\0" * (-len(out) % align) + data


def write_gguf(path: Path, *args: Any, **options: Any) -> Path:
    """Write a file of `gguf_bytes`."""
    path.write_bytes(gguf_bytes(*args, **options))
    return path


# A whole tiny model: sizes pairwise different where the architecture lets them be.

SIZES = {
    "vocab": 24,
    "hidden": 32,
    "inner": 40,
    "layers": 4,
    "heads": 3,
    "kv_heads": 1,
    "head_dim": 16,
    "key_heads": 2,
    "value_heads": 6,
    "linear_dim": 8,
    "conv": 4,
}


def text_metadata(**changes: Any) -> dict[str, Any]:
    """Keys of a text model of SIZES; a change names the key behind `qwen35.` with _ for dots (or
    the whole key), None leaves it out.
    """
    s = SIZES
    found: dict[str, Any] = {
        "general.architecture": "qwen35",
        "general.name": "a tiny model",
        "qwen35.block_count": s["layers"],
        "qwen35.context_length": 4096,
        "qwen35.embedding_length": s["hidden"],
        "qwen35.feed_forward_length": s["inner"],
        "qwen35.attention.head_count": s["heads"],
        "qwen35.attention.head_count_kv": s["kv_heads"],
        "qwen35.attention.key_length": s["head_dim"],
        "qwen35.attention.value_length": s["head_dim"],
        "qwen35.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen35.rope.freq_base": 1e7,
        "qwen35.rope.dimension_count": 8,
        "qwen35.rope.dimension_sections": [2, 1, 1, 0],
        "qwen35.ssm.conv_kernel": s["conv"],
        "qwen35.ssm.state_size": s["linear_dim"],
        "qwen35.ssm.group_count": s["key_heads"],
        "qwen35.ssm.time_step_rank": s["value_heads"],
        "qwen35.ssm.inner_size": s["value_heads"] * s["linear_dim"],
        "qwen35.full_attention_interval": 4,
    }
    found |= changes
    return {key: value for key, value in found.items() if value is not None}


def text_shapes(drafts: int = 0) -> dict[str, tuple[int, ...]]:
    """Stored name and shape of every tensor of a text model of SIZES, written out from the table
    of llama.cpp's src/models/qwen35.cpp.
    """
    s = SIZES
    hidden, inner = s["hidden"], s["inner"]
    keys, values = s["key_heads"] * s["linear_dim"], s["value_heads"] * s["linear_dim"]
    wide = s["heads"] * s["head_dim"]
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (s["vocab"], hidden),
        "output_norm.weight": (hidden,),
    }
    for i in range(s["layers"] + drafts):
        b = f"blk.{i}."
        found |= {
            b + "attn_norm.weight": (hidden,),
            b + "post_attention_norm.weight": (hidden,),
            b + "ffn_gate.weight": (inner, hidden),
            b + "ffn_up.weight": (inner, hidden),
            b + "ffn_down.weight": (hidden, inner),
        }
        if i % 4 == 3 or i >= s["layers"]:
            found |= {
                b + "attn_q.weight": (2 * wide, hidden),
                b + "attn_k.weight": (s["kv_heads"] * s["head_dim"], hidden),
                b + "attn_v.weight": (s["kv_heads"] * s["head_dim"], hidden),
                b + "attn_output.weight": (hidden, wide),
                b + "attn_q_norm.weight": (s["head_dim"],),
                b + "attn_k_norm.weight": (s["head_dim"],),
            }
        else:
            found |= {
                b + "attn_qkv.weight": (2 * keys + values, hidden),
                b + "attn_gate.weight": (values, hidden),
                b + "ssm_alpha.weight": (s["value_heads"], hidden),
                b + "ssm_beta.weight": (s["value_heads"], hidden),
                b + "ssm_conv1d.weight": (2 * keys + values, s["conv"]),
                b + "ssm_a": (s["value_heads"],),
                b + "ssm_dt.bias": (s["value_heads"],),
                b + "ssm_norm.weight": (s["linear_dim"],),
                b + "ssm_out.weight": (hidden, values),
            }
        if i == s["layers"]:
            found |= {
                b + "nextn.eh_proj.weight": (hidden, 2 * hidden),
                b + "nextn.enorm.weight": (hidden,),
                b + "nextn.hnorm.weight": (hidden,),
                b + "nextn.shared_head_norm.weight": (hidden,),
            }
    return found


def text_tensors(drafts: int = 0) -> dict[str, Tensor]:
    """The tensors, float32, seeded noise; A below 0."""
    rng = np.random.default_rng(11)
    return {
        name: of(
            (
                -rng.uniform(0.5, 16, shape) if name.endswith("ssm_a") else rng.normal(size=shape)
            ).astype(np.float32)
        )
        for name, shape in text_shapes(drafts).items()
    }


VISION = {"hidden": 24, "inner": 36, "depth": 3, "heads": 2, "patch": 4, "side": 5}


def vision_metadata(**changes: Any) -> dict[str, Any]:
    """Keys of an mmproj file of VISION that fits SIZES."""
    v = VISION
    found: dict[str, Any] = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "qwen3vl_merger",
        "clip.vision.projection_dim": SIZES["hidden"],
        "clip.vision.image_size": v["side"] * v["patch"],
        "clip.vision.patch_size": v["patch"],
        "clip.vision.embedding_length": v["hidden"],
        "clip.vision.feed_forward_length": v["inner"],
        "clip.vision.block_count": v["depth"],
        "clip.vision.attention.head_count": v["heads"],
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.spatial_merge_size": 2,
        "clip.use_gelu": True,
        "clip.vision.image_mean": [0.5, 0.25, 0.125],
        "clip.vision.image_std": [0.5, 0.5, 0.75],
    }
    found |= changes
    return {key: value for key, value in found.items() if value is not None}


def vision_tensors(deepstack: Sequence[int] = ()) -> dict[str, Tensor]:
    """The tensors of an mmproj file, float32, seeded noise; `deepstack`: blocks with a merger."""
    rng = np.random.default_rng(12)
    v, out = VISION, SIZES["hidden"]
    hidden, inner, wide = v["hidden"], v["inner"], 4 * v["hidden"]
    patch = (hidden, 3, v["patch"], v["patch"])
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": patch,
        "v.patch_embd.weight.1": patch,
        "v.patch_embd.bias": (hidden,),
        "v.position_embd.weight": (v["side"] ** 2, hidden),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    for i in range(v["depth"]):
        block = f"v.blk.{i}."
        norm(block + "ln1", hidden)
        norm(block + "ln2", hidden)
        linear(block + "attn_qkv", 3 * hidden, hidden)
        linear(block + "attn_out", hidden, hidden)
        linear(block + "ffn_up", inner, hidden)
        linear(block + "ffn_down", hidden, inner)
    norm("v.post_ln", hidden)
    linear("mm.0", wide, wide)
    linear("mm.2", out, wide)
    for i in deepstack:
        norm(f"v.deepstack.{i}.norm", wide)
        linear(f"v.deepstack.{i}.fc1", wide, wide)
        linear(f"v.deepstack.{i}.fc2", out, wide)
    return {name: of(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}


def tokenizer_metadata(tokenizer: Mapping[str, Any], rows: int, pre: str = "qwen35") -> dict:
    """Keys for the parsed object of a tokenizer.json, as llama.cpp's converter writes them: filled
    up to `rows`, every added <|...|> marked control.
    """
    tokens = dict(enumerate(f"[PAD{i}]" for i in range(rows)))
    kinds = dict.fromkeys(range(rows), 5)
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], kinds[i] = token, 1
    for added in tokenizer["added_tokens"]:
        text = added["content"]
        looks = text.startswith("<|") and text.endswith("|>")
        tokens[added["id"]], kinds[added["id"]] = text, 3 if added["special"] or looks else 4
    merges = tokenizer["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens.values()),
        "tokenizer.ggml.token_type": list(kinds.values()),
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
    }
