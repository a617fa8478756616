"""Small random checkpoints in the released layout, for tests: any geometry, dtype, sharding and
alignment.

`write_checkpoint(folder)` makes one that this package and transformers load. Dimensions are
pairwise different and no multiples of a vector width; the scale of the weights gives logits of a
standard deviation of about 2.

In transformers, `AutoModelForImageTextToText` makes a full-size vision tower when config.json
describes none, so a small one is written; `Qwen3_5ForCausalLM` and `AutoModelForCausalLM` load the
same folder without it (and the one that `vision=False` writes). `text_only=True` writes the layout
of a saved Qwen3_5ForCausalLM: fields at the top of config.json, tensors named `model.*`. None of
them leaves a missing or unexpected key.
"""

import copy
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qwen35.checkpoint import open_checkpoint
from qwen35.errors import ModelFormatError

_SPECIALS = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>
<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>
<|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think> </think>
"""
SPECIALS = _SPECIALS.split()
PLAIN_ADDED = {s for s in SPECIALS if not s.startswith("<|")} | {s for s in SPECIALS if "fim" in s}
PLAIN_ADDED |= {"<|repo_name|>", "<|file_sep|>"}
MERGES = [
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġt", "he"),
    ("i", "n"),
    ("e", "r"),
    ("o", "n"),
    ("Ġ", "a"),
    ("l", "l"),
    ("he", "ll"),
]
FIRST_SPECIAL = 256 + len(MERGES)
TOKEN_IDS = {text: FIRST_SPECIAL + i for i, text in enumerate(SPECIALS)}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| "
    r"?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXT: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": 307,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "full_attention_interval": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 40,
    "attn_output_gate": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "tie_word_embeddings": True,
    "eos_token_id": TOKEN_IDS["<|endoftext|>"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [2, 2, 1],
    },
}
VISION: dict[str, Any] = {
    "model_type": "qwen3_5",
    "depth": 2,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 72,
    "hidden_act": "gelu_pytorch_tanh",
    "deepstack_visual_indexes": [],
}
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n# Tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content or [] %}{{ part.text if part.type == 'text' else
'<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}{% endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{{- '\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false }}
{%- endif %}
"""


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    shards: int = 1,
    misaligned: bool = False,
    text_only: bool = False,
    vision: bool = True,
    mtp: bool = True,
    tokenizer: bool = True,
    template: str | None = TEMPLATE,
    generation_config: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    **text: Any,
) -> Path:
    """Write a checkpoint into `folder` (made if needed) and return it.

    dtype: "bfloat16", "float16", "float32". `text` overrides fields of the text config (unknown
    names are a TypeError; layer_types follows num_hidden_layers and full_attention_interval when
    it is not given); `config` overrides fields at the top of config.json. vision=False leaves
    the tower and its config out, mtp=False the MTP tensors. preprocessor is what both processor
    files say.
    """
    unknown = set(text) - set(TEXT)
    if unknown:
        raise TypeError(f"write_checkpoint() got unexpected fields {sorted(unknown)}")
    fields = config_of(vision=vision and not text_only, **text)
    if config:
        fields |= config
    tensors = make_tensors(fields, seed=seed, dtype=dtype, mtp=mtp)
    if text_only:
        fields = fields["text_config"] | {"mtp_num_hidden_layers": 0}
        old, new = "model.language_model.", "model."
        tensors = {
            k.replace(old, new, 1): v for k, v in tensors.items() if not k.startswith("mtp.")
        }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", fields)
    write_shards(folder, tensors, shards=shards, misaligned=misaligned)
    if tokenizer:
        write_tokenizer(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if generation_config is not None:
        write_json(folder / "generation_config.json", generation_config)
    if preprocessor is not None:
        write_json(folder / "preprocessor_config.json", preprocessor)
        write_json(folder / "video_preprocessor_config.json", preprocessor)
    return folder


def config_of(*, vision: bool = True, **text: Any) -> dict[str, Any]:
    """The object of config.json."""
    inner = copy.deepcopy(TEXT) | text
    if "layer_types" not in text:
        every, count = inner["full_attention_interval"], inner["num_hidden_layers"]
        kinds = ("linear_attention", "full_attention")
        inner["layer_types"] = [kinds[(i + 1) % every == 0] for i in range(count)]
    outer = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": inner,
        "tie_word_embeddings": inner["tie_word_embeddings"],
        "image_token_id": TOKEN_IDS["<|image_pad|>"],
        "video_token_id": TOKEN_IDS["<|video_pad|>"],
        "vision_start_token_id": TOKEN_IDS["<|vision_start|>"],
        "vision_end_token_id": TOKEN_IDS["<|vision_end|>"],
    }
    if vision:
        outer["vision_config"] = copy.deepcopy(VISION) | {"out_hidden_size": inner["hidden_size"]}
    return outer


def text_shapes(t: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of the text tensors of a text config, in file order."""
    hidden, value_heads = t["hidden_size"], t["linear_num_value_heads"]
    keys, values = (
        t["linear_num_key_heads"] * t["linear_key_head_dim"],
        value_heads * t["linear_value_head_dim"],
    )
    root = "model.language_model."
    shapes: dict[str, tuple[int, ...]] = {
        root + "embed_tokens.weight": (t["vocab_size"], hidden),
        root + "norm.weight": (hidden,),
    }
    if not t["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (t["vocab_size"], hidden)
    for i, kind in enumerate(t["layer_types"]):
        layer = f"{root}layers.{i}."
        shapes |= _block_shapes(layer, t)
        if kind == "full_attention":
            shapes |= _attention_shapes(layer + "self_attn.", t)
            continue
        shapes |= {
            layer + "linear_attn.in_proj_qkv.weight": (2 * keys + values, hidden),
            layer + "linear_attn.in_proj_z.weight": (values, hidden),
            layer + "linear_attn.in_proj_b.weight": (value_heads, hidden),
            layer + "linear_attn.in_proj_a.weight": (value_heads, hidden),
            layer + "linear_attn.conv1d.weight": (
                2 * keys + values,
                1,
                t["linear_conv_kernel_dim"],
            ),
            layer + "linear_attn.out_proj.weight": (hidden, values),
            layer + "linear_attn.norm.weight": (t["linear_value_head_dim"],),
            layer + "linear_attn.A_log": (value_heads,),
            layer + "linear_attn.dt_bias": (value_heads,),
        }
    return shapes


def mtp_shapes(t: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of the MTP layers."""
    hidden = t["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(t["mtp_num_hidden_layers"]):
        shapes |= _block_shapes(f"mtp.layers.{i}.", t) | _attention_shapes(
            f"mtp.layers.{i}.self_attn.", t
        )
    if shapes:
        shapes |= {"mtp.fc.weight": (hidden, 2 * hidden)}
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            shapes[f"mtp.{name}.weight"] = (hidden,)
    return shapes


def vision_shapes(v: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of the vision tower."""
    root, width, inner = "model.visual.", v["hidden_size"], v["intermediate_size"]
    merged = v["spatial_merge_size"] ** 2 * width
    patch = (v["in_channels"], v["temporal_patch_size"], v["patch_size"], v["patch_size"])
    shapes: dict[str, tuple[int, ...]] = {
        root + "patch_embed.proj.weight": (width, *patch),
        root + "patch_embed.proj.bias": (width,),
        root + "pos_embed.weight": (v["num_position_embeddings"], width),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{root}{name}.weight"], shapes[f"{root}{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str, size: int) -> None:
        shapes[f"{root}{name}.weight"], shapes[f"{root}{name}.bias"] = (size,), (size,)

    for i in range(v["depth"]):
        norm(f"blocks.{i}.norm1", width)
        norm(f"blocks.{i}.norm2", width)
        linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.linear_fc1", inner, width)
        linear(f"blocks.{i}.mlp.linear_fc2", width, inner)
    deep = [f"deepstack_merger_list.{i}" for i in range(len(v.get("deepstack_visual_indexes", ())))]
    for merger in ["merger", *deep]:
        norm(f"{merger}.norm", width if merger == "merger" else merged)
        linear(f"{merger}.linear_fc1", merged, merged)
        linear(f"{merger}.linear_fc2", v["out_hidden_size"], merged)
    return shapes


def _block_shapes(layer: str, t: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = t["hidden_size"], t["intermediate_size"]
    return {
        layer + "mlp.gate_proj.weight": (inner, hidden),
        layer + "mlp.up_proj.weight": (inner, hidden),
        layer + "mlp.down_proj.weight": (hidden, inner),
        layer + "input_layernorm.weight": (hidden,),
        layer + "post_attention_layernorm.weight": (hidden,),
    }


def _attention_shapes(layer: str, t: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, dim = t["hidden_size"], t["head_dim"]
    heads, kv_heads = t["num_attention_heads"], t["num_key_value_heads"]
    return {
        layer + "q_proj.weight": (2 * heads * dim, hidden),
        layer + "k_proj.weight": (kv_heads * dim, hidden),
        layer + "v_proj.weight": (kv_heads * dim, hidden),
        layer + "o_proj.weight": (hidden, heads * dim),
        layer + "q_norm.weight": (dim,),
        layer + "k_norm.weight": (dim,),
    }


def make_tensors(
    fields: Mapping[str, Any], *, seed: int = 0, dtype: str = "bfloat16", mtp: bool = True
) -> dict[str, np.ndarray]:
    """Random tensors for the object of a released config.json."""
    text = dict(fields["text_config"]) | {"tie_word_embeddings": fields["tie_word_embeddings"]}
    shapes = text_shapes(text)
    if mtp:
        shapes |= mtp_shapes(text)
    if fields.get("vision_config"):
        shapes |= vision_shapes(fields["vision_config"])
    rng = np.random.default_rng(seed)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return {name: _noise(rng, name, shape).astype(kind) for name, shape in shapes.items()}


def _noise(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("A_log"):
        return np.log(rng.uniform(0.5, 16, shape)).astype(np.float32)
    if name.endswith("dt_bias"):
        return noise
    if name.endswith("conv1d.weight"):
        return 0.3 * noise
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 2.0 / math.sqrt(shape[-1]) * noise
    if len(shape) > 1:
        return 0.7 / math.sqrt(math.prod(shape[1:])) * noise
    ones = name.endswith(
        ("linear_attn.norm.weight", "norm1.weight", "norm2.weight", "merger.norm.weight")
    )
    return float(ones) + 0.1 * noise


def write_shards(
    folder: Path, tensors: Mapping[str, np.ndarray], *, shards: int = 1, misaligned: bool = False
) -> None:
    """model.safetensors, or `shards` files and their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, misaligned=misaligned)
        return
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / file, {n: tensors[n] for n in part}, misaligned=misaligned)
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in tensors.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], *, misaligned: bool = False
) -> None:
    """One safetensors file; with `misaligned` the data starts at an odd offset."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        dtype = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[array.dtype.name]
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    path.write_bytes(
        raw_safetensors(header, b"".join(a.tobytes() for a in tensors.values()), odd=misaligned)
    )


def raw_safetensors(header: Mapping[str, Any] | bytes, data: bytes, *, odd: bool = False) -> bytes:
    """The bytes of a file with this header, true or not, padded with spaces."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if not isinstance(header, bytes):
        text += b" " * (-len(text) % 8 + odd)
    return struct.pack("<Q", len(text)) + text + data


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE with a handful of merges and Qwen's special tokens, as tokenizer.json and "
    "tokenizer_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = alphabet + [a + b for a, b in MERGES]
    tokenizer = Tokenizer(
        BPE({token: i for i, token in enumerate(vocabulary)}, MERGES, fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(s, special=s not in PLAIN_ADDED, normalized=False) for s in SPECIALS]
    tokenizer.add_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "model_max_length": 4096,
        },
    )


def refusal(folder: Path, error: type[Exception] = ModelFormatError) -> str:
    """The message that refuses this checkpoint; it names the folder."""
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message
