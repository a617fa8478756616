"""Metadata of GGUF files -> the Config that config.json would give.

Text: keys `qwen35.*`, what tensors show (vocabulary rows, a head of its own), token ids from the
vocabulary. Vision: `clip.*` of an mmproj file with projector `qwen3vl_merger`. Every key is read
in the range its field has in config.py, and the whole goes through `config_from`, so that both
kinds of model pass the same checks. Source of the keys: llama.cpp's src/llama-arch.cpp,
src/models/qwen35.cpp and tools/mtmd/clip.cpp.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .config import Config, TextConfig, VisionConfig, config_from
from .errors import ModelFormatError, UnsupportedModelError
from .gguf_file import GgufModel, GgufSpan
from .gguf_metadata import BOOL, INTEGERS, NUMBERS, Metadata
from .json_file import shown

ARCHITECTURE, PROJECTOR = "qwen35", "qwen3vl_merger"
LAYER_NORM_EPS = 1e-6  # of the vision tower, a constant of the family's code
MAX_BLOCKS = 1024 + 16
TEXT_KEYS = {  # field of TextConfig -> key behind `qwen35.`
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
}
VISION_KEYS = {  # field of VisionConfig -> key behind `clip.vision.`
    "depth": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "out_hidden_size": "projection_dim",
    "patch_size": "patch_size",
}
_IDS = {  # field of Config -> the token it names
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def read_config(
    text: GgufModel, vision: GgufModel | None = None, *, token_ids: Mapping[str, int] | None = None
) -> Config:
    """The Config of a text file and, with its mmproj file, of the model that sees.

    token_ids: ids of added tokens by spelling, as `Vocabulary.added` has them; without them the
    ids of the released models stand. Raises UnsupportedModelError for another architecture or
    projector, ModelFormatError for a key that is missing, out of range or contradicts the tensors
    or the other file.
    """
    where = str(text.path)
    fields = {"model_type": "qwen3_5_text", **_text(text)}
    known = token_ids or {}
    ids = {field: known[token] for field, token in _IDS.items() if token in known}
    if vision is None:
        return config_from({**fields, **ids}, where=f"{where}: as config.json")
    tower = _vision(vision)
    width, hidden = tower["out_hidden_size"], fields["hidden_size"]
    if width != hidden:
        raise ModelFormatError(
            f"{vision.path}: clip.vision.projection_dim={width}, but {where} has "
            f"{ARCHITECTURE}.embedding_length={hidden}; the vision file belongs to another size"
        )
    raw = {"model_type": "qwen3_5", "text_config": fields, "vision_config": tower, **ids}
    return config_from(raw, where=f"{where}: as config.json")


def read_preprocessor(vision: GgufModel) -> dict[str, Any]:
    """What preprocessor_config.json would say, for `vision_settings.read_settings`: mean, std and,
    where the file has them, the pixel limits.
    """
    metadata, found = vision.metadata, {}
    for name in ("image_mean", "image_std"):
        array = metadata.array(f"clip.vision.{name}", NUMBERS, "an array of three numbers", 3)
        found[name] = [float(str(value)) for value in array]
        if len(array) != 3 or not all(map(math.isfinite, found[name])):
            raise ModelFormatError(
                f"{metadata.where}: clip.vision.{name}={shown(found[name])}: expected three numbers"
            )
    for name in ("min_pixels", "max_pixels"):
        limit = metadata.integer(f"clip.vision.image_{name}", 1, 2**40, default=None)
        if limit is not None:
            found[name] = limit
    return found


def _architecture(model: GgufModel, wanted: str, what: str) -> Metadata:
    metadata = model.metadata
    found = metadata.string("general.architecture")
    if found != wanted:
        hint = ""
        if found == "clip":
            hint = "; this is a vision file: give it as mmproj, beside the text model"
        elif found == "qwen35moe":
            hint = "; the mixture-of-experts siblings are not run"
        elif wanted == "clip":
            hint = "; this is no vision file"
        raise UnsupportedModelError(
            f"{metadata.where}: general.architecture={shown(found)}: expected {wanted!r}, {what}"
            f"{hint}"
        )
    return metadata


def _range(owner: type, name: str) -> tuple[Any, Any, type]:
    """Smallest, largest and type of a config field."""
    (field,) = (field for field in dataclasses.fields(owner) if field.name == name)
    return field.metadata["low"], field.metadata["high"], field.metadata["kind"]


def _read(metadata: Metadata, owner: type, name: str, key: str) -> Any:
    low, high, kind = _range(owner, name)
    read = metadata.number if kind is float else metadata.integer
    return read(key, low, high)


# The text model


def _text(model: GgufModel) -> dict[str, Any]:
    """The fields of text_config."""
    metadata = _architecture(model, ARCHITECTURE, "a dense Qwen3.5 text model")
    _refuse_variants(model)
    values = {}
    for field, key in TEXT_KEYS.items():
        key = f"{ARCHITECTURE}.{key}"
        if field == "num_key_value_heads" and key in metadata:
            values[field] = _kv_heads(metadata, key)
        else:
            values[field] = _read(metadata, TextConfig, field, key)
    values |= _layers(metadata)
    values["linear_value_head_dim"] = _value_head_dim(metadata, values)
    values |= _vocabulary(model, values["hidden_size"])
    values["rope_parameters"] = _rope(metadata, values)
    length = metadata.integer(
        f"{ARCHITECTURE}.attention.value_length", 1, 65536, default=values["head_dim"]
    )
    if length != values["head_dim"]:
        raise ModelFormatError(
            f"{metadata.where}: {ARCHITECTURE}.attention.value_length={length}: expected "
            f"{values['head_dim']}, the key length"
        )
    eos = [
        metadata.integer(f"tokenizer.ggml.{name}_token_id", 0, 2**31 - 1, default=None)
        for name in ("eos", "eot")
    ]
    values["eos_token_id"] = sorted({id for id in eos if id is not None})
    return values


def _refuse_variants(model: GgufModel) -> None:
    """Files of this architecture that are not a whole model in llama.cpp's order."""
    key = f"{ARCHITECTURE}.ssm.v_head_reordered"  # Ollama's; true where it is absent
    if not model.metadata.flag(key, default=True):
        raise UnsupportedModelError(
            f"{model.path}: {key}=false: expected value heads in llama.cpp's order; convert the "
            "model with llama.cpp"
        )
    drafts = f"{ARCHITECTURE}.nextn_predict_layers"
    if drafts in model.metadata and "blk.0.attn_norm.weight" not in model.spans:
        raise UnsupportedModelError(
            f"{model.path}: holds the MTP layer alone ({drafts} is there, layer 0 is not); give "
            "the model's main file"
        )


def _kv_heads(metadata: Metadata, key: str) -> int:
    """Key-value heads: one number, or one a layer, 0 where a layer has no attention."""
    low, high, _ = _range(TextConfig, "num_key_value_heads")
    if metadata.fields[key].value is not None:
        return metadata.integer(key, low, high)
    array = metadata.array(key, INTEGERS, "an integer, or one a layer", MAX_BLOCKS)
    counts = {int(count) for count in array} - {0}
    if len(counts) != 1 or not low <= min(counts) <= high:
        raise ModelFormatError(
            f"{metadata.where}: {key}={shown(sorted(counts))}: expected one number in "
            f"[{low}, {high}] for all attention layers"
        )
    return counts.pop()


def _layers(metadata: Metadata) -> dict[str, Any]:
    """Layers, their kinds, and the MTP layers that are counted behind them."""
    blocks = metadata.integer(f"{ARCHITECTURE}.block_count", 1, MAX_BLOCKS)
    low, high, _ = _range(TextConfig, "mtp_num_hidden_layers")
    drafts = metadata.integer(f"{ARCHITECTURE}.nextn_predict_layers", low, high, default=0)
    layers = blocks - drafts
    if layers < 1:
        raise ModelFormatError(
            f"{metadata.where}: {ARCHITECTURE}.block_count={blocks} with "
            f"{ARCHITECTURE}.nextn_predict_layers={drafts}: expected a layer before these"
        )
    low, high, _ = _range(TextConfig, "full_attention_interval")
    every = metadata.integer(f"{ARCHITECTURE}.full_attention_interval", low, high, default=4)
    found = {
        "num_hidden_layers": layers,
        "mtp_num_hidden_layers": drafts,
        "full_attention_interval": every,
    }
    key = f"{ARCHITECTURE}.attention.recurrent_layers"
    if key in metadata:
        flags = metadata.array(key, frozenset((BOOL,)), "a BOOL for each block", blocks)
        if len(flags) not in (layers, blocks):
            raise ModelFormatError(
                f"{metadata.where}: {key} has {len(flags)} entries: expected {blocks}, one a block"
            )
        kinds = ("full_attention", "linear_attention")
        found["layer_types"] = [kinds[bool(flag)] for flag in flags[:layers]]
    return found


def _value_head_dim(metadata: Metadata, values: Mapping[str, Any]) -> int:
    key = f"{ARCHITECTURE}.ssm.inner_size"
    inner = metadata.integer(key, 1, 2**20)
    heads = values["linear_num_value_heads"]
    if inner % heads:
        raise ModelFormatError(
            f"{metadata.where}: {key}={inner}: expected a multiple of "
            f"{ARCHITECTURE}.ssm.time_step_rank={heads}"
        )
    return inner // heads


def _rope(metadata: Metadata, values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_parameters of config.json."""
    root = f"{ARCHITECTURE}.rope."
    head_dim, where = values["head_dim"], metadata.where
    rotary = metadata.integer(f"{root}dimension_count", 2, head_dim)
    found = {
        "rope_type": "default",
        "rope_theta": metadata.number(f"{root}freq_base", 1.001, 1e15),
        "partial_rotary_factor": rotary / head_dim,
    }
    if int(head_dim * found["partial_rotary_factor"]) != rotary:  # config.json's formula
        raise ModelFormatError(
            f"{where}: {root}dimension_count={rotary} of {head_dim}: expected a fraction that "
            "gives it back"
        )
    key = f"{root}dimension_sections"
    if key in metadata:
        array = metadata.array(key, INTEGERS, "an array of 3 or 4 integers", 4)
        sections = [int(part) for part in array]
        if len(sections) < 3 or any(sections[3:]) or sum(sections) * 2 != rotary:
            raise ModelFormatError(
                f"{where}: {key}={sections}: expected three integers that sum to {rotary // 2}, "
                "half the rotary dims, and a 0"
            )
        found["mrope_section"] = sections[:3]
    kind = metadata.string(f"{root}scaling.type", default="none")
    if kind == "none":
        return found
    if kind != "yarn":
        raise UnsupportedModelError(
            f"{where}: {root}scaling.type={shown(kind)}: supported are 'none' and 'yarn'"
        )
    found["rope_type"] = "yarn"
    found["factor"] = metadata.number(f"{root}scaling.factor", 1.0, 1024.0)
    original = metadata.integer(f"{root}scaling.original_context_length", 1, 2**40, default=None)
    optional = {
        "original_max_position_embeddings": original,
        "attention_factor": _optional(metadata, f"{root}scaling.yarn_attn_factor", 1e-3, 1e3),
        "beta_fast": _optional(metadata, f"{root}scaling.yarn_beta_fast", 1e-3, 1e6),
        "beta_slow": _optional(metadata, f"{root}scaling.yarn_beta_slow", 1e-3, 1e6),
    }
    return found | {name: value for name, value in optional.items() if value is not None}


def _optional(metadata: Metadata, key: str, low: float, high: float) -> float | None:
    return metadata.number(key, low, high, default=None)


def _vocabulary(model: GgufModel, hidden: int) -> dict[str, Any]:
    """vocab_size, from the embedding, and whether the head is the embedding."""
    metadata = model.metadata
    span = _matrix(model, "token_embd.weight", f"[vocabulary, {hidden}]")
    rows, columns = span.shape
    if columns != hidden:
        raise ModelFormatError(
            f"{metadata.where}: token_embd.weight has rows of {columns}, but "
            f"{ARCHITECTURE}.embedding_length={hidden}"
        )
    said = metadata.integer(f"{ARCHITECTURE}.vocab_size", 1, 2**32, default=rows)
    if said != rows:
        raise ModelFormatError(
            f"{metadata.where}: {ARCHITECTURE}.vocab_size={said}, but token_embd.weight has {rows} "
            "rows"
        )
    own = any(name.endswith(".nextn.embed_tokens.weight") for name in model.spans)
    return {
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in model.spans,
        "mtp_use_dedicated_embeddings": own,
    }


def _matrix(model: GgufModel, name: str, expected: str, dims: int = 2) -> GgufSpan:
    span = model.spans.get(name)
    if span is None or len(span.shape) != dims:
        found = "is missing" if span is None else f"is {list(span.shape)}"
        raise ModelFormatError(f"{model.path}: tensor {name} {found}: expected {expected}")
    return span


# The vision file


def _vision(model: GgufModel) -> dict[str, Any]:
    """The fields of vision_config."""
    metadata = _architecture(model, "clip", "a vision file")
    where = metadata.where
    kinds = ("clip.vision.projector_type", "clip.projector_type")
    key = next((key for key in kinds if key in metadata), kinds[1])
    kind = metadata.string(key)
    if kind != PROJECTOR:
        raise UnsupportedModelError(
            f"{where}: {key}={shown(kind)}: expected {PROJECTOR!r}, the projector of Qwen3.5"
        )
    if not metadata.flag("clip.has_vision_encoder", default=True):
        raise UnsupportedModelError(f"{where}: clip.has_vision_encoder=false: no vision tower")
    if not metadata.flag("clip.use_gelu", default=False):
        raise UnsupportedModelError(f"{where}: clip.use_gelu: expected true, as Qwen3.5 has it")
    eps = metadata.number("clip.vision.attention.layer_norm_epsilon", 0.0, 1.0)
    if eps != LAYER_NORM_EPS:
        raise UnsupportedModelError(
            f"{where}: clip.vision.attention.layer_norm_epsilon={eps}: expected {LAYER_NORM_EPS}"
        )
    root = "clip.vision."
    found = {
        field: _read(metadata, VisionConfig, field, root + key)
        for field, key in VISION_KEYS.items()
    }
    merge = metadata.integer(f"{root}spatial_merge_size", 1, 16, default=2)
    patch = found["patch_size"]
    conv = _matrix(model, "v.patch_embd.weight", "[D, C, patch, patch]", 4)
    if conv.shape[2:] != (patch, patch):
        raise ModelFormatError(
            f"{where}: v.patch_embd.weight is {list(conv.shape)}, but clip.vision.patch_size="
            f"{patch}"
        )
    table = _matrix(model, "v.position_embd.weight", "[positions, D]")
    side = metadata.integer(f"{root}image_size", 1, 2**20) / patch
    if table.shape[0] != side * side:
        raise ModelFormatError(
            f"{where}: v.position_embd.weight has {table.shape[0]} rows, but clip.vision.image_size"
            f"={int(side * patch)} in patches of {patch} means {side * side:g}"
        )
    return found | {
        "spatial_merge_size": merge,
        "in_channels": conv.shape[1],
        "temporal_patch_size": 2 if "v.patch_embd.weight.1" in model.spans else 1,
        "num_position_embeddings": table.shape[0],
        "deepstack_visual_indexes": _deepstack(metadata, found["depth"]),
    }


def _deepstack(metadata: Metadata, depth: int) -> list[int]:
    key = "clip.vision.is_deepstack_layers"
    if key not in metadata:
        return []
    flags = metadata.array(key, frozenset((BOOL,)), f"{depth} BOOLs, one a block", depth)
    if len(flags) not in (0, depth):
        raise ModelFormatError(
            f"{metadata.where}: {key} has {len(flags)} entries: expected {depth}, one a block"
        )
    return [index for index, flag in enumerate(flags) if flag]
