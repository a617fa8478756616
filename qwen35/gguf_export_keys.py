"""What the metadata of a GGUF file says about a checkpoint: the inverse of gguf_config.py and of
gguf_tokenizer.py.

Checkpoint -> keys of the text file (sizes, tokenizer, template, sampling) and of the vision file. A
checkpoint that was a GGUF file keeps its own keys, but for those that count what is written.
Source of the keys: llama.cpp's src/llama-arch.cpp and tools/mtmd/clip.cpp.
"""

import json
import math
from typing import Any

import numpy as np

from .checkpoint import Checkpoint
from .config import TextConfig, VisionConfig
from .errors import UnsupportedModelError
from .gguf_config import ARCHITECTURE, LAYER_NORM_EPS, PROJECTOR, TEXT_KEYS, VISION_KEYS
from .gguf_metadata import ARRAY, FLOAT32, Metadata
from .gguf_tokenizer import (
    CONTROL,
    INT32,
    NORMAL,
    PATTERNS,
    ROOT,
    SAMPLING,
    SHOWN,
    UNUSED,
    USER_DEFINED,
    pad,
)
from .gguf_write import Typed
from .json_file import shown
from .tokenizer import Tokenizer
from .vision_settings import IMAGE_PIXELS, read_settings

QUANTIZATION_VERSION = 2  # of the block types
FILE_TYPES = {  # general.file_type of a recipe, or of what matrices are stored as
    "float32": 0,
    "float16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "bfloat16": 32,
}
TURN_END, TEXT_END = "<|im_end|>", "<|endoftext|>"
_DRAFTS, _BLOCKS = f"{ARCHITECTURE}.nextn_predict_layers", f"{ARCHITECTURE}.block_count"


def text_keys(checkpoint: Checkpoint, file_type: str, *, mtp: bool) -> dict[str, Any]:
    """Keys of the text file. file_type: of FILE_TYPES, left out where it is not among them."""
    text = checkpoint.config.text
    keys: dict[str, Any] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": checkpoint.name,
    }
    if file_type in FILE_TYPES:
        keys["general.file_type"] = FILE_TYPES[file_type]
    keys["general.quantization_version"] = QUANTIZATION_VERSION
    keys |= _sampling(checkpoint)
    keys |= {f"{ARCHITECTURE}.{key}": getattr(text, name) for name, key in TEXT_KEYS.items()}
    keys[f"{ARCHITECTURE}.attention.value_length"] = text.head_dim
    keys[f"{ARCHITECTURE}.ssm.inner_size"] = (
        text.linear_num_value_heads * text.linear_value_head_dim
    )
    keys |= _layers(text, text.mtp_num_hidden_layers if mtp else 0)
    keys |= _rope(text, str(checkpoint.path))
    keys |= _tokenizer(checkpoint)
    if checkpoint.chat_template is not None:
        keys["tokenizer.chat_template"] = checkpoint.chat_template
    return keys


def _layers(text: TextConfig, drafts: int) -> dict[str, Any]:
    layers, every = text.num_hidden_layers, text.full_attention_interval
    keys: dict[str, Any] = {
        _BLOCKS: layers + drafts,
        f"{ARCHITECTURE}.full_attention_interval": every,
    }
    if drafts:
        keys[_DRAFTS] = drafts
    recurrent = [kind == "linear_attention" for kind in text.layer_types]
    if recurrent != [(i + 1) % every != 0 for i in range(layers)]:
        keys[f"{ARCHITECTURE}.attention.recurrent_layers"] = recurrent + [False] * drafts
    return keys


def _rope(text: TextConfig, where: str) -> dict[str, Any]:
    root = f"{ARCHITECTURE}.rope."
    keys: dict[str, Any] = {
        root + "freq_base": text.rope_theta,
        root + "dimension_count": int(text.head_dim * text.partial_rotary_factor),
        root + "dimension_sections": [*text.mrope_section, 0],
    }
    yarn = text.rope_scaling
    if yarn is None:
        return keys
    lost = [key for key in ("mscale", "mscale_all_dim") if yarn.get(key)]
    if lost or not yarn.get("truncate", True):
        raise UnsupportedModelError(
            f"{where}: rope_scaling has {', '.join(lost) or 'truncate=false'}: expected parameters "
            "that GGUF has keys for"
        )
    keys[root + "scaling.type"] = "yarn"
    names = {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    for name, key in names.items():
        value = yarn.get(name)
        if value is not None:
            whole = name == "original_max_position_embeddings"
            keys[f"{root}scaling.{key}"] = int(value) if whole else float(value)
    return keys


def _sampling(checkpoint: Checkpoint) -> dict[str, Any]:
    """general.sampling.*: what generation_config.json says, do_sample=false as temperature 0."""
    said, keys = dict(checkpoint.generation_config), {}
    if said.get("do_sample") is False:
        said["temperature"] = 0.0
    for key, (name, low, _) in SAMPLING.items():
        value = said.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(low, int)
            keys[f"general.sampling.{key}"] = (
                Typed(INT32, int(value)) if whole else Typed(FLOAT32, float(value))
            )
    return keys


# The tokenizer


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer.ggml.*, from tokenizer.json; "no_vocab" for a folder without one."""
    path, rows = checkpoint.tokenizer_file, checkpoint.config.text.vocab_size
    if not path.exists():
        return {f"{ROOT}model": "no_vocab", f"{ARCHITECTURE}.vocab_size": rows}
    known = Tokenizer.from_file(path, embedding_rows=rows)  # checks it
    raw = json.loads(path.read_bytes())
    tokens = [pad(i) for i in range(rows)]
    kinds = np.full(rows, UNUSED, np.int32)
    for token, id in raw["model"]["vocab"].items():
        tokens[id], kinds[id] = token, NORMAL
    for token, id in known.added_tokens.items():
        # llama.cpp insists on `control` for those of SHOWN, and the reader knows it.
        control = id in known.special_ids or token in SHOWN
        tokens[id], kinds[id] = token, CONTROL if control else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    return {
        f"{ROOT}model": "gpt2",
        f"{ROOT}pre": _pattern_name(raw, str(path)),
        f"{ROOT}tokens": Typed(8, tokens),
        f"{ROOT}token_type": Typed(INT32, kinds),
        f"{ROOT}merges": Typed(8, merges),
        f"{ROOT}add_bos_token": False,
        **_special_ids(checkpoint, known),
    }


def _pattern_name(raw: dict[str, Any], where: str) -> str:
    """The tokenizer.ggml.pre of a tokenizer.json's pattern."""
    stage = raw.get("pre_tokenizer") or {}
    found = [
        part.get("pattern", {}).get("Regex")
        for part in (stage.get("pretokenizers") or [stage])
        if part.get("type") == "Split"
    ]
    for name, pattern in PATTERNS.items():
        if found == [pattern]:
            return name
    raise UnsupportedModelError(
        f"{where}: pre_tokenizer splits by {shown(found)}: expected the pattern of Qwen3.5 or "
        "Qwen2, the ones that have a name in GGUF"
    )


def _special_ids(checkpoint: Checkpoint, known: Tokenizer) -> dict[str, int]:
    """Where answers end, and what fills batches up. A GGUF file has room for two ends: the turn's
    own first.
    """
    ends: list[int] = []
    turn = known.added_tokens.get(TURN_END)
    said = [checkpoint.generation_config.get("eos_token_id"), checkpoint.config.text.eos_token_id]
    for value in (turn, *said):
        ids = value if isinstance(value, list | tuple) else [value]
        ends += [id for id in ids if isinstance(id, int) and id not in ends and id < known.rows]
    keys = {f"{ROOT}{name}_token_id": id for name, id in zip(("eos", "eot"), ends, strict=False)}
    filler = checkpoint.generation_config.get("pad_token_id", known.added_tokens.get(TEXT_END))
    if isinstance(filler, int) and 0 <= filler < known.rows:
        keys[f"{ROOT}padding_token_id"] = filler
    return keys


# The vision file


def vision_keys(checkpoint: Checkpoint, vision: VisionConfig, file_type: str) -> dict[str, Any]:
    """Keys of the vision file."""
    if vision.temporal_patch_size != 2:
        raise UnsupportedModelError(
            f"{checkpoint.path}: temporal_patch_size={vision.temporal_patch_size}: expected 2, "
            "what GGUF vision files hold (--no-vision leaves the tower out)"
        )
    images, _ = read_settings(
        checkpoint.preprocessor,
        checkpoint.video_preprocessor,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        where=str(checkpoint.path),
    )
    root = "clip.vision."
    keys: dict[str, Any] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": checkpoint.name,
        "general.file_type": FILE_TYPES[file_type],
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTOR,
        "clip.use_gelu": True,
        **{root + key: getattr(vision, name) for name, key in VISION_KEYS.items()},
        root + "image_size": math.isqrt(vision.num_position_embeddings) * vision.patch_size,
        root + "attention.layer_norm_epsilon": LAYER_NORM_EPS,
        root + "spatial_merge_size": vision.spatial_merge_size,
        root + "image_mean": list(images.mean),
        root + "image_std": list(images.std),
    }
    if (images.min_pixels, images.max_pixels) != IMAGE_PIXELS:
        keys[root + "image_min_pixels"] = images.min_pixels
        keys[root + "image_max_pixels"] = images.max_pixels
    deep = set(vision.deepstack_visual_indexes)
    if deep:
        keys[root + "is_deepstack_layers"] = [i in deep for i in range(vision.depth)]
    return keys


# A GGUF file's own keys


def kept_keys(metadata: Metadata) -> dict[str, Any]:
    """Every key with its type, but for those about the parts of a split file."""
    keys: dict[str, Any] = {}
    for key, field in metadata.fields.items():
        if not key.startswith("split.") and key != "general.alignment":
            kind = field.element if field.type == ARRAY else field.type
            keys[key] = Typed(kind, metadata[key])
    return keys


def kept_text_keys(metadata: Metadata, file_type: str, text: TextConfig, *, mtp: bool) -> dict:
    """The keys of a text file for what is written now: another type, perhaps without MTP blocks."""
    keys = kept_keys(metadata)
    if file_type in FILE_TYPES:
        keys["general.file_type"] = FILE_TYPES[file_type]
        keys = {key: value for key, value in keys.items() if not key.startswith("quantize.imatrix")}
    keys["general.quantization_version"] = QUANTIZATION_VERSION
    if not mtp and _DRAFTS in keys:
        layers, blocks = text.num_hidden_layers, metadata[_BLOCKS]
        del keys[_DRAFTS]
        keys[_BLOCKS] = layers
        for key, field in metadata.fields.items():  # a value a block
            if key.startswith(ARCHITECTURE) and field.type == ARRAY and field.count == blocks:
                if not key.endswith("dimension_sections"):
                    keys[key] = Typed(field.element, metadata[key][:layers])
    return keys
