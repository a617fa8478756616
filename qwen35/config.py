"""config.json -> Config: every field declared once, with its range, and checked before anything is
computed from it.

The released layout nests `text_config` and `vision_config` (model_type `qwen3_5`); a text-only
model saved by transformers has the text fields at the top (model_type `qwen3_5_text`). Defaults are
transformers' own; sizes that no one should guess have none. Fields that name code (`auto_map`,
`trust_remote_code`) are ignored.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ModelFormatError, UnsupportedModelError
from .fields import as_json, entry, nearest, read_fields
from .json_file import read_json
from .rope import KNOWN_KEYS, Rope, inverse_frequencies, read_rope, rope_of

SUPPORTED = "supported: the dense Qwen3.5 models, 'qwen3_5' and 'qwen3_5_text' (text only)"
LAYER_KINDS = ("linear_attention", "full_attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model; names as in config.json."""

    vocab_size: int = entry(int, 2, 2**24)
    hidden_size: int = entry(int, 1, 65536)
    intermediate_size: int = entry(int, 1, 2**20)
    num_hidden_layers: int = entry(int, 1, 1024)
    full_attention_interval: int = entry(int, 1, 1024, default=4)
    num_attention_heads: int = entry(int, 1, 1024)
    num_key_value_heads: int = entry(int, 1, 1024, default=4)
    head_dim: int = entry(int, 2, 1024, default=256)
    linear_num_key_heads: int = entry(int, 1, 1024, default=16)
    linear_num_value_heads: int = entry(int, 1, 1024, default=32)
    linear_key_head_dim: int = entry(int, 1, 1024, default=128)
    linear_value_head_dim: int = entry(int, 1, 1024, default=128)
    linear_conv_kernel_dim: int = entry(int, 1, 16, default=4)
    rms_norm_eps: float = entry(float, 1e-12, 0.1, default=1e-6)
    hidden_act: str = entry(str, default="silu")
    attention_bias: bool = entry(bool, default=False)
    attn_output_gate: bool = entry(bool, default=True)
    max_position_embeddings: int = entry(int, 1, 2**63 - 1, default=32768)
    mtp_num_hidden_layers: int = entry(int, 0, 16, default=0)
    mtp_use_dedicated_embeddings: bool = entry(bool, default=False)
    tie_word_embeddings: bool = entry(bool, default=False)
    layer_types: tuple[str, ...]  # "linear_attention" | "full_attention", one a layer
    rope_theta: float
    partial_rotary_factor: float
    mrope_section: tuple[int, int, int]
    rope_scaling: dict[str, Any] | None  # YaRN parameters
    eos_token_id: tuple[
        int, ...
    ]  # as the file says, possibly empty; turns also end with <|im_end|>

    @property
    def rope(self) -> Rope:
        """The rotary parameters together."""
        return Rope(
            rope_theta=self.rope_theta,
            partial_rotary_factor=self.partial_rotary_factor,
            mrope_section=self.mrope_section,
            scaling=self.rope_scaling,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower; names as in config.json."""

    depth: int = entry(int, 1, 256)
    hidden_size: int = entry(int, 8, 65536)
    intermediate_size: int = entry(int, 1, 2**20)
    num_heads: int = entry(int, 1, 1024)
    out_hidden_size: int = entry(int, 1, 65536)
    in_channels: int = entry(int, 1, 16, default=3)
    patch_size: int = entry(int, 1, 256, default=16)
    temporal_patch_size: int = entry(int, 1, 16, default=2)
    spatial_merge_size: int = entry(int, 1, 16, default=2)
    num_position_embeddings: int = entry(int, 1, 2**24, default=2304)
    hidden_act: str = entry(str, default="gelu_pytorch_tanh")
    deepstack_visual_indexes: tuple[int, ...]
    rope_theta: float = 10000.0

    def geometry(self) -> dict[str, Any]:
        """What the core needs (`_core.VisionGeometry`), but for the placeholders' ids."""
        same = (
            "hidden_size intermediate_size depth num_heads in_channels patch_size "
            "temporal_patch_size spatial_merge_size deepstack_visual_indexes"
        )
        half = np.float32(self.hidden_size // self.num_heads // 2)
        exponent = np.arange(0, half, 2, dtype=np.float32) / half
        return {
            **{name: getattr(self, name) for name in same.split()},
            "position_side": math.isqrt(self.num_position_embeddings),
            "inv_freq": (1 / np.float32(self.rope_theta) ** exponent).astype(np.float32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole config.json. `vision` is None for a text-only model."""

    text: TextConfig
    vision: VisionConfig | None
    image_token_id: int = entry(int, 0, 2**31 - 1, default=248056)
    video_token_id: int = entry(int, 0, 2**31 - 1, default=248057)
    vision_start_token_id: int = entry(int, 0, 2**31 - 1, default=248053)
    vision_end_token_id: int = entry(int, 0, 2**31 - 1, default=248054)

    def geometry(
        self, *, vision: bool = True, exact: bool = True, tiled_value_heads: bool = False
    ) -> dict[str, Any]:
        """What the core needs (`_core.Geometry`), frequencies included; with vision=False without
        the tower, with exact=False with leave to round the factors of the tower's products and
        the tokens that meet matrices of blocks, with tiled_value_heads=True for tensors in the
        order of GGUF files.
        """
        text = self.text
        inv_freq, attention_scaling = inverse_frequencies(text.rope, head_dim=text.head_dim)
        same = (
            "hidden_size intermediate_size vocab_size num_attention_heads num_key_value_heads "
            "head_dim linear_num_key_heads linear_num_value_heads linear_key_head_dim "
            "linear_value_head_dim linear_conv_kernel_dim rms_norm_eps tie_word_embeddings "
            "mrope_section"
        )
        return {
            **{name: getattr(text, name) for name in same.split()},
            "layer_types": list(text.layer_types),
            "inv_freq": inv_freq,
            "rope_attention_scaling": attention_scaling,
            "tiled_value_heads": tiled_value_heads,
            "integer_products": not exact,
            "vision": self._vision_geometry(exact) if vision and self.vision else None,
        }

    def _vision_geometry(self, exact: bool) -> dict[str, Any]:
        ids = {name: getattr(self, name) for name in ("image_token_id", "video_token_id")}
        return {**self.vision.geometry(), **ids, "exact": exact}

    @property
    def context_limit(self) -> int:
        """Tokens the positions were made for: the trained length, with YaRN the stretched one."""
        yarn = self.text.rope_scaling
        if yarn is None:
            return self.text.max_position_embeddings
        return int(yarn["original_max_position_embeddings"] * yarn["factor"])

    def with_rope_scaling(self, given: Mapping[str, Any]) -> "Config":
        """This config with its rope scaling replaced, e.g. by {"rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 262144}; "default" turns scaling off.

        Raises TypeError or ValueError about the argument, UnsupportedModelError for a type that is
        not run.
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"rope_scaling: expected a dict or None, got {type(given).__name__}")
        for key in given:
            if key not in KNOWN_KEYS:
                raise ValueError(
                    f"rope_scaling: unknown key {key!r}{nearest(str(key), KNOWN_KEYS)}"
                )
        if not {"rope_type", "type"} & set(given):
            raise ValueError('rope_scaling: "rope_type" is missing: expected "yarn" or "default"')
        if given.get("rope_type", given.get("type")) == "yarn" and given.get("factor") is None:
            raise ValueError(
                'rope_scaling: "factor" is missing: expected a number in [1.0, 1024.0]'
            )
        text = self.text
        kept = {name: getattr(text, name) for name in ("rope_theta", "partial_rotary_factor")}
        if "partial_rotary_factor" not in given:
            kept["mrope_section"] = text.mrope_section
        try:
            rope = rope_of(
                {**kept, **given},
                head_dim=text.head_dim,
                max_position_embeddings=text.max_position_embeddings,
                where="rope_scaling: ",
            )
        except ModelFormatError as error:  # the argument is wrong, not a file
            raise ValueError(str(error)) from None
        return dataclasses.replace(self, text=dataclasses.replace(text, **_rope_fields(rope)))


def read_config(path: Path) -> Config:
    """Read and check a config.json.

    Raises FileNotFoundError, ModelFormatError (a broken or contradictory file) or
    UnsupportedModelError (another architecture, a quantized checkpoint).
    """
    return config_from(read_json(path), where=str(path))


def config_from(raw: Mapping[str, Any], *, where: str) -> Config:
    """A Config from the parsed object; `where`, the file, opens every message."""
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise ModelFormatError(
            f"{where}: model_type={as_json(kind)}: expected a string; {SUPPORTED}"
        )
    if kind not in ("qwen3_5", "qwen3_5_text"):
        raise UnsupportedModelError(f"{where}: model_type={as_json(kind)}; {SUPPORTED}")
    if kind == "qwen3_5_text":
        _refuse_quantized(raw, f"{where}: ")
        text = _text(raw, f"{where}: ")
        return Config(text=text, vision=None, **read_fields(Config, raw, where=f"{where}: "))
    inner, inside = _section(raw, "text_config", where), f"{where}: text_config."
    if inner is None:
        raise ModelFormatError(f"{where}: text_config is missing: expected an object")
    if inner.get("model_type", "qwen3_5_text") != "qwen3_5_text":
        raise UnsupportedModelError(
            f"{inside}model_type={as_json(inner['model_type'])}; {SUPPORTED}"
        )
    _refuse_quantized(raw, f"{where}: ")
    _refuse_quantized(inner, inside)
    text = _text(inner, inside)
    if "tie_word_embeddings" in raw:  # as in transformers, the outer one decides
        tied = read_fields(_Outer, raw, where=f"{where}: ")["tie_word_embeddings"]
        text = dataclasses.replace(text, tie_word_embeddings=tied)
    vision = _section(raw, "vision_config", where)
    return Config(
        text=text,
        vision=None if vision is None else _vision(vision, text, f"{where}: vision_config."),
        **read_fields(Config, raw, where=f"{where}: "),
    )


@dataclasses.dataclass(frozen=True)
class _Outer:
    tie_word_embeddings: bool = entry(bool)


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any] | None:
    section = raw.get(name)
    if section is not None and not isinstance(section, Mapping):
        raise ModelFormatError(f"{where}: {name}={as_json(section)}: expected an object")
    return section


def _refuse_quantized(raw: Mapping[str, Any], where: str) -> None:
    settings = raw.get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    raise UnsupportedModelError(
        f"{where}quantization_config.quant_method={as_json(method)}: only bfloat16, float16 and "
        "float32 weights are read; take the unquantized checkpoint (to make it smaller, convert "
        "that one with `qwen35 quantize`)"
    )


def _text(raw: Mapping[str, Any], where: str) -> TextConfig:
    values = read_fields(TextConfig, raw, where=where)
    for name, wanted in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("attn_output_gate", True),
    ):
        if values[name] != wanted:
            raise UnsupportedModelError(
                f"{where}{name}={as_json(values[name])}: only {as_json(wanted)} is supported"
            )
    _multiple(values, "num_attention_heads", "num_key_value_heads", where)
    _multiple(values, "linear_num_value_heads", "linear_num_key_heads", where)
    rope = read_rope(
        raw,
        head_dim=values["head_dim"],
        max_position_embeddings=values["max_position_embeddings"],
        where=where,
    )
    return TextConfig(
        **values,
        **_rope_fields(rope),
        layer_types=_layer_types(raw.get("layer_types"), values, where),
        eos_token_id=_token_ids(raw.get("eos_token_id"), f"{where}eos_token_id"),
    )


def _rope_fields(rope: Rope) -> dict[str, Any]:
    return {
        "rope_theta": rope.rope_theta,
        "partial_rotary_factor": rope.partial_rotary_factor,
        "mrope_section": rope.mrope_section,
        "rope_scaling": rope.scaling,
    }


def _multiple(values: Mapping[str, Any], whole: str, part: str, where: str) -> None:
    if values[whole] % values[part]:
        raise ModelFormatError(
            f"{where}{whole}={values[whole]} is not a multiple of {part}={values[part]}"
        )


def _layer_types(given: Any, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    count, every = values["num_hidden_layers"], values["full_attention_interval"]
    if given is None:
        return tuple(LAYER_KINDS[(i + 1) % every == 0] for i in range(count))
    if not isinstance(given, list):
        raise ModelFormatError(
            f"{where}layer_types={as_json(given)}: expected a list of {count} words"
        )
    if len(given) != count:
        raise ModelFormatError(
            f"{where}layer_types has {len(given)} entries but num_hidden_layers={count}"
        )
    for index, kind in enumerate(given):
        if kind not in LAYER_KINDS:
            raise ModelFormatError(
                f"{where}layer_types[{index}]={as_json(kind)}: expected one of "
                f"{', '.join(map(repr, LAYER_KINDS))}"
            )
    return tuple(given)


def _token_ids(given: Any, where: str) -> tuple[int, ...]:
    ids = [] if given is None else given if isinstance(given, list) else [given]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise ModelFormatError(
            f"{where}={as_json(given)}: expected a token id, a list of them, or null"
        )
    return tuple(ids)


def _vision(raw: Mapping[str, Any], text: TextConfig, where: str) -> VisionConfig:
    values = read_fields(VisionConfig, raw, where=where)
    if values["hidden_act"] != "gelu_pytorch_tanh":
        raise UnsupportedModelError(
            f"{where}hidden_act={as_json(values['hidden_act'])}: only 'gelu_pytorch_tanh' is "
            "supported"
        )
    _multiple(values, "hidden_size", "num_heads", where)
    head_dim = values["hidden_size"] // values["num_heads"]
    if head_dim % 4:
        raise ModelFormatError(
            f"{where}hidden_size / num_heads = {head_dim}: expected a multiple of 4 (two rotary "
            "axes, in pairs)"
        )
    side = math.isqrt(values["num_position_embeddings"])
    if side * side != values["num_position_embeddings"]:
        raise ModelFormatError(
            f"{where}num_position_embeddings={values['num_position_embeddings']}: expected a "
            "square number (the position table covers a square)"
        )
    if values["out_hidden_size"] != text.hidden_size:
        raise ModelFormatError(
            f"{where}out_hidden_size={values['out_hidden_size']} differs from "
            f"text_config.hidden_size={text.hidden_size}"
        )
    indexes = raw.get("deepstack_visual_indexes")
    indexes = [] if indexes is None else indexes
    whole = isinstance(indexes, list) and all(type(i) is int for i in indexes)
    distinct = whole and len(set(indexes)) == len(indexes)
    if not distinct or not all(0 <= i < values["depth"] for i in indexes):
        raise ModelFormatError(
            f"{where}deepstack_visual_indexes={as_json(indexes)}: expected a list of different "
            f"layers in [0, {values['depth'] - 1}]"
        )
    rope = raw.get("rope_parameters")
    theta = rope.get("rope_theta", 10000.0) if isinstance(rope, Mapping) else 10000.0
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta < 1e12:
        raise ModelFormatError(
            f"{where}rope_parameters.rope_theta={as_json(theta)}: expected a number above 1"
        )
    return VisionConfig(**values, deepstack_visual_indexes=tuple(indexes), rope_theta=float(theta))
