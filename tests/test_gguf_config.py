"""Oracle: the Config of the config.json that says the same, and literals.

The numbers in the test names are items of the list of hostile inputs the project keeps (50, 51).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writer import (
    VISION,
    Typed,
    of,
    text_metadata,
    text_tensors,
    vision_metadata,
    vision_tensors,
    write_gguf,
)

from qwen35.config import Config, config_from
from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.gguf_config import read_config, read_preprocessor
from qwen35.gguf_file import GgufModel, open_gguf
from qwen35.vision_settings import read_settings

CONFIG_JSON: dict[str, Any] = {
    "model_type": "qwen3_5",
    "text_config": {
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "full_attention_interval": 4,
        "rope_parameters": {
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        },
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [2],
    },
}


def text_file(folder: Path, *, name: str = "x", tensors: Any = None, **changes: Any) -> GgufModel:
    written = text_tensors() if tensors is None else tensors
    return open_gguf(write_gguf(folder / f"{name}.gguf", text_metadata(**changes), written))


def vision_file(folder: Path, *, tensors: Any = None, **changes: Any) -> GgufModel:
    written = vision_tensors((2,)) if tensors is None else tensors
    changes = {"clip.vision.is_deepstack_layers": [False, False, True]} | changes
    return open_gguf(write_gguf(folder / "v.gguf", vision_metadata(**changes), written))


def as_json(**text: Any) -> Config:
    raw = CONFIG_JSON | {"text_config": CONFIG_JSON["text_config"] | text}
    return config_from(raw, where="config.json")


def test_the_config_that_config_json_gives(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    assert read_config(text, vision_file(tmp_path)) == as_json()
    assert read_config(text) == dataclasses.replace(as_json(), vision=None)


def test_token_ids_come_from_the_vocabulary(tmp_path: Path) -> None:
    ids = {"<|image_pad|>": 5, "<|video_pad|>": 6, "<|vision_start|>": 7, "<|vision_end|>": 8}
    config = read_config(text_file(tmp_path), token_ids=ids)
    assert (config.image_token_id, config.video_token_id) == (5, 6)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (7, 8)
    ends = {"tokenizer.ggml.eos_token_id": 9, "tokenizer.ggml.eot_token_id": 3}
    assert read_config(text_file(tmp_path, **ends)).text.eos_token_id == (3, 9)


def test_head_of_its_own(tmp_path: Path) -> None:
    tensors = text_tensors()
    tensors["output.weight"] = tensors["token_embd.weight"]
    assert not read_config(text_file(tmp_path, tensors=tensors)).text.tie_word_embeddings


def test_draft_layers_are_not_layers(tmp_path: Path) -> None:
    changes = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    text = read_config(text_file(tmp_path, tensors=text_tensors(1), **changes)).text
    assert (text.num_hidden_layers, text.mtp_num_hidden_layers) == (4, 1)
    assert len(text.layer_types) == 4
    tensors = text_tensors(1)
    tensors["blk.4.nextn.embed_tokens.weight"] = tensors["token_embd.weight"]
    text = read_config(text_file(tmp_path, tensors=tensors, **changes)).text
    assert text.mtp_use_dedicated_embeddings


def test_layers_may_be_listed(tmp_path: Path) -> None:
    kinds = {"qwen35.attention.recurrent_layers": [True, False, True, False]}
    full, linear = "full_attention", "linear_attention"
    config = read_config(text_file(tmp_path, **kinds))
    assert config.text.layer_types == (linear, full, linear, full)
    counts = {"qwen35.attention.head_count_kv": [0, 0, 0, 1]}
    assert read_config(text_file(tmp_path, **counts)).text.num_key_value_heads == 1


def test_yarn(tmp_path: Path) -> None:
    scaling = {
        "qwen35.rope.scaling.type": "yarn",
        "qwen35.rope.scaling.factor": 4.0,
        "qwen35.rope.scaling.original_context_length": 1024,
        "qwen35.rope.scaling.yarn_beta_fast": 16.0,
    }
    wanted = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 16.0,
    }
    rope = CONFIG_JSON["text_config"]["rope_parameters"] | wanted
    config = read_config(text_file(tmp_path, **scaling))
    assert config == dataclasses.replace(as_json(rope_parameters=rope), vision=None)
    scaling["qwen35.rope.scaling.type"] = "linear"
    with pytest.raises(UnsupportedModelError, match="scaling.type='linear'"):
        read_config(text_file(tmp_path, **scaling))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"qwen35.{key}", None) for key in ("block_count", "embedding_length", "ssm.inner_size")),
        ("qwen35.rope.freq_base", None),
        ("qwen35.rope.dimension_count", None),
        ("qwen35.block_count", 0),
        ("qwen35.block_count", Typed(5, -1)),
        ("qwen35.block_count", 2**32 - 1),
        ("qwen35.block_count", 4.0),
        ("qwen35.block_count", "4"),
        ("qwen35.attention.head_count", 0),
        ("qwen35.attention.head_count", [3, 3, 3, 3]),
        ("qwen35.attention.head_count_kv", 0),
        ("qwen35.attention.head_count_kv", [0, 0]),
        ("qwen35.attention.head_count_kv", [1, 3]),
        ("qwen35.attention.key_length", 0),
        ("qwen35.attention.value_length", 8),
        ("qwen35.attention.layer_norm_rms_epsilon", 0.0),
        ("qwen35.attention.layer_norm_rms_epsilon", float("nan")),
        ("qwen35.context_length", 0),
        ("qwen35.embedding_length", 64),
        ("qwen35.vocab_size", 25),
        ("qwen35.full_attention_interval", 0),
        ("qwen35.nextn_predict_layers", 4),
        ("qwen35.ssm.group_count", 0),
        ("qwen35.ssm.time_step_rank", 0),
        ("qwen35.ssm.time_step_rank", 5),
        ("qwen35.ssm.inner_size", 47),
        ("qwen35.ssm.conv_kernel", 0),
        ("qwen35.rope.freq_base", 0.0),
        ("qwen35.rope.dimension_count", 0),
        ("qwen35.rope.dimension_count", 18),
        ("qwen35.rope.dimension_sections", [2, 1, 1, 1]),
        ("qwen35.rope.dimension_sections", [2, 1]),
        ("qwen35.rope.dimension_sections", [2, 1, 2, 0]),
        ("qwen35.rope.dimension_sections", [2.0, 1.0, 1.0]),
        ("qwen35.attention.recurrent_layers", [True, False]),
        ("qwen35.attention.recurrent_layers", [1, 0, 1, 0]),
        ("tokenizer.ggml.eos_token_id", Typed(5, -1)),
    ],
)
def test_50_keys_of_the_text_model(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        read_config(text_file(tmp_path, **{key: value}))
    message = str(caught.value)
    assert key in message and message.startswith(str(tmp_path))
    assert "expected" in message or "but" in message


def test_50_numbers_that_do_not_fit_each_other(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="linear_num_value_heads=6 is not a multiple"):
        read_config(text_file(tmp_path, **{"qwen35.ssm.group_count": 4}))
    with pytest.raises(ModelFormatError, match="num_attention_heads=3 is not a multiple"):
        read_config(text_file(tmp_path, **{"qwen35.attention.head_count_kv": 2}))
    tensors = text_tensors()
    del tensors["token_embd.weight"]
    with pytest.raises(ModelFormatError, match="token_embd.weight is missing"):
        read_config(text_file(tmp_path, tensors=tensors))
    tensors["token_embd.weight"] = of(np.zeros(32, np.float32))
    with pytest.raises(ModelFormatError, match=r"token_embd.weight is \[32\]"):
        read_config(text_file(tmp_path, tensors=tensors))


def test_51_another_architecture(tmp_path: Path) -> None:
    for name, hint in (("llama", "dense"), ("qwen35moe", "mixture"), ("clip", "as mmproj")):
        with pytest.raises(UnsupportedModelError, match=hint):
            read_config(text_file(tmp_path, **{"general.architecture": name}))
    with pytest.raises(ModelFormatError, match="general.architecture is missing"):
        read_config(text_file(tmp_path, **{"general.architecture": None}))
    text = text_file(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no vision file"):
        read_config(text, text)


def test_51_files_that_are_no_whole_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="v_head_reordered=false"):
        read_config(text_file(tmp_path, **{"qwen35.ssm.v_head_reordered": False}))
    tensors = {name: x for name, x in text_tensors(1).items() if not name.startswith("blk.0.")}
    changes = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    with pytest.raises(UnsupportedModelError, match="the MTP layer alone"):
        read_config(text_file(tmp_path, tensors=tensors, **changes))


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("clip.vision.projection_dim", 64, ModelFormatError),
        ("clip.vision.projection_dim", None, ModelFormatError),
        ("clip.vision.block_count", 0, ModelFormatError),
        ("clip.vision.attention.head_count", 0, ModelFormatError),
        ("clip.vision.patch_size", 0, ModelFormatError),
        ("clip.vision.patch_size", 8, ModelFormatError),
        ("clip.vision.image_size", 24, ModelFormatError),
        ("clip.vision.spatial_merge_size", 0, ModelFormatError),
        ("clip.vision.is_deepstack_layers", [True], ModelFormatError),
        ("clip.vision.attention.layer_norm_epsilon", 1e-5, UnsupportedModelError),
        ("clip.projector_type", "qwen2vl_merger", UnsupportedModelError),
        ("clip.vision.projector_type", "gemma3", UnsupportedModelError),
        ("clip.projector_type", None, ModelFormatError),
        ("clip.use_gelu", False, UnsupportedModelError),
        ("clip.has_vision_encoder", False, UnsupportedModelError),
    ],
)
def test_51_keys_of_the_vision_file(
    tmp_path: Path, key: str, value: Any, error: type[Exception]
) -> None:
    text, vision = text_file(tmp_path), vision_file(tmp_path, **{key: value})
    with pytest.raises(error) as caught:
        read_config(text, vision)
    assert key in str(caught.value) and str(vision.path) in str(caught.value)


def test_preprocessor(tmp_path: Path) -> None:
    limits = {"clip.vision.image_min_pixels": 1024, "clip.vision.image_max_pixels": 65536}
    given = read_preprocessor(vision_file(tmp_path, **limits))
    assert given == {
        "image_mean": [0.5, 0.25, 0.125],
        "image_std": [0.5, 0.5, 0.75],
        "min_pixels": 1024,
        "max_pixels": 65536,
    }
    sizes = {"patch_size": VISION["patch"], "temporal_patch_size": 2, "merge_size": 2}
    images, _ = read_settings(given, None, where="x", **sizes)
    assert images.mean == (0.5, 0.25, 0.125) and images.min_pixels == 1024
    for wrong in ([0.5, 0.5], [0.5, 0.5, float("inf")], [1, 1, 1], None):
        with pytest.raises(ModelFormatError, match="clip.vision.image_mean"):
            read_preprocessor(vision_file(tmp_path, **{"clip.vision.image_mean": wrong}))
