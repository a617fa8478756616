#!/usr/bin/env python3
"""Write a checkpoint's vision tower as an mmproj GGUF: llama.cpp's mtmd runs the very same weights.

    pip install gguf
    python benchmarks/write_mmproj.py CHECKPOINT_DIR OUT.gguf [--type f16|bf16|f32]
    python benchmarks/write_mmproj.py CHECKPOINT_DIR OUT.gguf --text TEXT.gguf

mtmd wants a text model beside the tower, and asks it for the width of its embedding and for the
tokens around an image: the files of write_gguf.py have no vocabulary. `--text` writes a stand-in
that has one, and one layer of zeros: enough to encode images, nothing to talk to.

The convolution over two frames is stored as one per frame. Matrices get the asked-for type, biases,
norms and the position table stay float32, as does a bf16 patch convolution.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import qwen35.loading
from qwen35.checkpoint import Checkpoint
from qwen35.config import VisionConfig
from qwen35.vision_settings import VisionSettings, read_settings

ROOT = "model.visual."
BLOCK_NAMES = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}
TOP_NAMES = {
    "pos_embed": "v.position_embd",
    "merger.norm": "v.post_ln",
    "merger.linear_fc1": "mm.0",
    "merger.linear_fc2": "mm.2",
}
LAYER_NORM_EPS = 1e-6  # a constant of the family's code, in no config.json
TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}
PATCH = "v.patch_embd.weight"
BYTE_TOKENS = 256


def converted(name: str, x: NDArray) -> Iterator[tuple[str, NDArray]]:
    """The GGUF name and content of a tensor; the patch convolution [D, C, 2, P, P] makes two."""
    if name == "patch_embed.proj.weight":
        yield PATCH, x[:, :, 0]
        yield PATCH + ".1", x[:, :, 1]
    elif name == "patch_embed.proj.bias":
        yield "v.patch_embd.bias", x
    elif name.startswith("blocks."):
        _, block, rest = name.split(".", 2)
        stem, kind = rest.rsplit(".", 1)
        yield f"v.blk.{block}.{BLOCK_NAMES[stem]}.{kind}", x
    else:
        stem, kind = name.rsplit(".", 1)
        yield f"{TOP_NAMES[stem]}.{kind}", x


def stored_dtype(target: str, x: NDArray, dtype: type) -> type:
    """What type a tensor is stored as; llama.cpp unfolds images for no bf16 convolution."""
    if x.ndim == 1 or target.startswith("v.position_embd"):
        return np.float32
    if target.startswith(PATCH) and dtype is ml_dtypes.bfloat16:
        return np.float32
    return dtype


def add_tensor(out: gguf.GGUFWriter, name: str, x: NDArray) -> None:
    """Add a float32, float16 or bfloat16 tensor."""
    x = np.ascontiguousarray(x)
    if x.dtype == ml_dtypes.bfloat16:
        out.add_tensor(name, x.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        out.add_tensor(name, x)


def write_metadata(out: gguf.GGUFWriter, vision: VisionConfig, images: VisionSettings) -> None:
    """The keys mtmd reads for the projector type qwen3vl_merger."""
    out.add_type(gguf.GGUFType.MMPROJ)
    out.add_clip_has_vision_encoder(True)
    out.add_clip_projector_type(gguf.VisionProjectorType.QWEN3VL)
    out.add_vision_projection_dim(vision.out_hidden_size)
    out.add_vision_image_size(math.isqrt(vision.num_position_embeddings) * vision.patch_size)
    out.add_vision_patch_size(vision.patch_size)
    out.add_vision_embedding_length(vision.hidden_size)
    out.add_vision_feed_forward_length(vision.intermediate_size)
    out.add_vision_block_count(vision.depth)
    out.add_vision_head_count(vision.num_heads)
    out.add_vision_attention_layernorm_eps(LAYER_NORM_EPS)
    out.add_vision_spatial_merge_size(vision.spatial_merge_size)
    out.add_vision_use_gelu(True)
    out.add_vision_image_mean(list(images.mean))
    out.add_vision_image_std(list(images.std))


def write_file(out: gguf.GGUFWriter) -> None:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_tower(checkpoint: Checkpoint, path: Path, dtype: type) -> None:
    """The vision tower and its projector. ValueError for a checkpoint whose tower mtmd lacks."""
    vision = checkpoint.config.vision
    if vision is None or vision.deepstack_visual_indexes:
        raise ValueError(f"{checkpoint.path}: expected a vision tower without DeepStack")
    images, _ = read_settings(
        checkpoint.preprocessor,
        checkpoint.video_preprocessor,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        where=str(checkpoint.path),
    )
    out = gguf.GGUFWriter(path, "clip")
    write_metadata(out, vision, images)
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(ROOT):
            for target, x in converted(name.removeprefix(ROOT), np.asarray(tensor)):
                add_tensor(out, target, x.astype(stored_dtype(target, x, dtype)))
    write_file(out)


def write_text(path: Path, width: int) -> None:
    """The stand-in: a `llama` of `width`, one head, one layer of zeros, a token for each byte."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(1)
    out.add_context_length(BYTE_TOKENS)
    out.add_embedding_length(width)
    out.add_feed_forward_length(32)
    out.add_head_count(1)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_dimension_count(width)
    out.add_tokenizer_model("llama")
    out.add_token_list([f"<0x{byte:02X}>" for byte in range(BYTE_TOKENS)])
    out.add_token_scores([0.0] * BYTE_TOKENS)
    out.add_token_types([gguf.TokenType.BYTE] * BYTE_TOKENS)
    shapes = {
        "token_embd": (BYTE_TOKENS, width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width),
        "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_norm": (width,),
        "blk.0.ffn_gate": (32, width),
        "blk.0.ffn_up": (32, width),
        "blk.0.ffn_down": (width, 32),
    }
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    write_file(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices")
    parser.add_argument("--text", type=Path, help="write a stand-in for the text model here too")
    options = parser.parse_args()
    checkpoint = qwen35.loading.open_checkpoint(options.checkpoint)
    write_tower(checkpoint, options.out, TYPES[options.type])
    if options.text:
        write_text(options.text, checkpoint.config.vision.out_hidden_size)


if __name__ == "__main__":
    main()
