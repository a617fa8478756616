"""Oracle: the NumPy reference in float64 on the released tensors of the same file, whose heads are
in a checkpoint's order while the core runs the file's own; block bytes by golden decoders.

The file's sizes are `gguf_writer.SIZES`: 2 key and 6 value heads, so that every order shows.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import core_models
import ml_dtypes
import numpy as np
import pytest
from gguf_writer import (
    SIZES,
    blocks,
    of,
    text_metadata,
    text_shapes,
    text_tensors,
    vision_metadata,
    vision_tensors,
    write_gguf,
)
from reference import Reference

import qwen35
from qwen35 import ModelFormatError, UnsupportedModelError, _core
from qwen35.gguf_checkpoint import open_gguf_checkpoint

ROOT = "model.language_model."
FIELDS = {
    "text_config": {
        "vocab_size": SIZES["vocab"],
        "hidden_size": SIZES["hidden"],
        "intermediate_size": SIZES["inner"],
        "num_attention_heads": SIZES["heads"],
        "num_key_value_heads": SIZES["kv_heads"],
        "head_dim": SIZES["head_dim"],
        "linear_num_key_heads": SIZES["key_heads"],
        "linear_num_value_heads": SIZES["value_heads"],
        "linear_key_head_dim": SIZES["linear_dim"],
        "linear_value_head_dim": SIZES["linear_dim"],
        "linear_conv_kernel_dim": SIZES["conv"],
        "rms_norm_eps": 1e-6,
        "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "rope_parameters": {
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        },
    },
    "tie_word_embeddings": True,
}
IDS = np.random.default_rng(1).integers(0, SIZES["vocab"], 70).astype(np.int32)


def written(kind: str) -> dict[str, Any]:
    """Tensors of a small model: matrices in `kind` where their rows are whole blocks, else F16."""
    rng, out = np.random.default_rng(4), {}
    _, elements, _, _ = _core.formats()[kind.lower()]
    for name, shape in text_shapes().items():
        x = (rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 0.1)).astype(np.float32)
        if name.endswith("norm.weight"):
            x += 1
        if name.endswith("ssm_a"):
            x = -np.exp(x)
        if len(shape) == 1 or "conv1d" in name:
            out[name] = of(x)
        elif kind == "BF16":
            out[name] = of(x.astype(ml_dtypes.bfloat16))
        elif shape[1] % elements or kind in ("F32", "F16"):
            out[name] = of(x if kind == "F32" else x.astype(np.float16))
        else:
            out[name] = blocks(kind, shape, _core.encode_blocks(kind.lower(), x).tobytes())
    return out


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "IQ4_NL"])
def test_logits(tmp_path: Path, kind: str) -> None:
    """Float32 against float64 through four layers, on vectors that went to a checkpoint's form and
    back: 1e-4 of the largest. A head out of place is off by a third of it.
    """
    path = write_gguf(tmp_path / "x.gguf", text_metadata(), written(kind))
    with qwen35.load(path, dtype="float32", mtp=False) as model:
        got = model.logits(IDS)
        want = Reference(FIELDS, dict(model.tensors)).logits(IDS)
    assert core_models.relative_error(got, want) <= 1e-4


def test_tensors_are_those_of_a_checkpoint(tmp_path: Path) -> None:
    """Names, order and shapes that the config asks for; read-only; blocks decode to float32."""
    path = write_gguf(tmp_path / "x.gguf", text_metadata(), written("Q8_0"))
    checkpoint = open_gguf_checkpoint(path)
    expected = _core.expected_tensors(checkpoint.config.geometry())
    assert [(n, x.shape) for n, x in checkpoint.tensors.items()] == expected
    assert not any(x.flags.writeable for x in checkpoint.tensors.values())
    gate = checkpoint.tensors[f"{ROOT}layers.0.mlp.gate_proj.weight"]
    assert gate.dtype == np.float32
    span = checkpoint.tensors.span(f"{ROOT}layers.0.mlp.gate_proj.weight")
    assert (span.dtype, span.nbytes) == ("q8_0", 40 * 34)


def test_dtype_converts_what_is_not_in_blocks(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", text_metadata(), written("Q8_0"))
    with qwen35.load(path, dtype="bfloat16", mtp=False) as model:
        tensors = dict(model.tensors)
    assert tensors[f"{ROOT}layers.0.linear_attn.out_proj.weight"].dtype == ml_dtypes.bfloat16
    assert tensors[f"{ROOT}layers.0.mlp.gate_proj.weight"].dtype == np.float32
    path = write_gguf(tmp_path / "y.gguf", text_metadata(), written("F32"))
    with qwen35.load(path, dtype="bfloat16", kv_dtype="float32", mtp=False) as model:
        tensors = dict(model.tensors)
        got, want = model.logits(IDS), Reference(FIELDS, tensors).logits(IDS)
    assert tensors[f"{ROOT}layers.0.mlp.gate_proj.weight"].dtype == ml_dtypes.bfloat16
    # tokens in 16 bits: 2e-4 of a product, of which random layers make thirty times that
    assert core_models.relative_error(got, want) <= 1e-2


def test_what_is_known_without_reading_weights(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", text_metadata(), written("Q4_0"))
    with qwen35.load(path, mtp=False) as model:
        assert (model.config.text.hidden_size, model.name) == (SIZES["hidden"], "x")
        with pytest.raises(FileNotFoundError, match="only token ids work"):
            model.generate("text")
        answer = model.generate(IDS, max_tokens=3, ignore_eos=True).result()
        assert len(answer.token_ids) == 3


# ---- the vision file -----------------------------------------------------------------------------


def seeing_folder(folder: Path, name: str = "mmproj-F16.gguf", **changes: Any) -> Path:
    write_gguf(folder / name, vision_metadata(**changes), vision_tensors())
    return write_gguf(folder / "x.gguf", text_metadata(), text_tensors())


def test_vision_file_beside_or_given(tmp_path: Path) -> None:
    path = seeing_folder(tmp_path)
    for options in ({}, {"mmproj": tmp_path / "mmproj-F16.gguf"}):
        with qwen35.load(path, mtp=False, **options) as model:
            assert model.config.vision.hidden_size == 24
            assert "model.visual.patch_embed.proj.weight" in model.tensors
    with qwen35.load(path, mtp=False, vision=False) as model:
        assert model.config.vision is None


def test_vision_file_of_another_model(tmp_path: Path) -> None:
    """Found beside: a warning, and text alone; given: an error."""
    path = seeing_folder(tmp_path, **{"clip.vision.projection_dim": 48})
    with pytest.warns(UserWarning, match="belongs to another size"):
        model = qwen35.load(path, mtp=False)
    assert model.config.vision is None
    model.close()
    with pytest.raises(ModelFormatError, match="belongs to another size"):
        qwen35.load(path, mmproj=tmp_path / "mmproj-F16.gguf")


def test_the_finest_vision_file_is_taken(tmp_path: Path) -> None:
    seeing_folder(tmp_path, "mmproj-Q8_0.gguf", **{"clip.vision.image_mean": [0.1, 0.1, 0.1]})
    path = seeing_folder(tmp_path, "mmproj-BF16.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_gguf_checkpoint(path).preprocessor["image_mean"] == [0.5, 0.25, 0.125]


def test_the_vision_file_of_the_same_name_comes_first(tmp_path: Path) -> None:
    """As `qwen35 quantize` names it; files of other models beside it are not even opened."""
    seeing_folder(tmp_path, "mmproj-a-BF16.gguf", **{"clip.vision.projection_dim": 48})
    path = seeing_folder(tmp_path, "mmproj-X-Q8_0.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_gguf_checkpoint(path).preprocessor is not None


def test_vision_file_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belongs to a GGUF file"):
        qwen35.load("tiny", mmproj=tmp_path / "x.gguf")


def test_vision_file_as_model(tmp_path: Path) -> None:
    seeing_folder(tmp_path)
    with pytest.raises(UnsupportedModelError, match="clip"):
        qwen35.load(tmp_path / "mmproj-F16.gguf")
