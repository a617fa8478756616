#!/usr/bin/env python3
"""Write a checkpoint's text model as a bf16 GGUF: llama.cpp runs the very same weights.

    pip install gguf
    python benchmarks/write_gguf.py CHECKPOINT_DIR OUT.gguf

Speed and logits only: the file carries no tokenizer. Value heads are put into the order that
llama.cpp's `qwen35` architecture expects (key head = h mod Hk), norms carry their 1, `ssm_a` is
-exp(A_log).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

import qwen35.loading

LAYER_NAMES = {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.norm": "ssm_norm",
}
TOP_NAMES = {
    "model.language_model.embed_tokens.weight": "token_embd.weight",
    "model.language_model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ROOT = "model.language_model.layers."


def head_order(x: NDArray, text: object, *, axis: int = 0) -> NDArray:
    """Value heads from (key head, its value heads) to (repeat, key head) order along an axis."""
    keys, values = text.linear_num_key_heads, text.linear_num_value_heads
    x = np.moveaxis(x, axis, 0)
    grouped = x.reshape(keys, values // keys, -1, *x.shape[1:])
    return np.moveaxis(grouped.swapaxes(0, 1).reshape(x.shape), 0, axis)


def converted(name: str, x: NDArray, text: object) -> tuple[str, NDArray]:
    """The GGUF name and content of one checkpoint tensor."""
    if name in TOP_NAMES:
        return TOP_NAMES[name], x.astype(np.float32) + 1 if x.ndim == 1 else x
    layer, rest = name.removeprefix(ROOT).split(".", 1)
    head = f"blk.{layer}."
    key_rows = 2 * text.linear_num_key_heads * text.linear_key_head_dim
    if rest == "linear_attn.A_log":
        return head + "ssm_a", head_order(-np.exp(x.astype(np.float32)), text)
    if rest == "linear_attn.dt_bias":
        return head + "ssm_dt.bias", head_order(x.astype(np.float32), text)
    if rest == "linear_attn.conv1d.weight":
        taps = x.astype(np.float32).reshape(x.shape[0], -1)
        values = head_order(taps[key_rows:], text)
        return head + "ssm_conv1d.weight", np.concatenate([taps[:key_rows], values])
    stem = rest.removesuffix(".weight")
    target = head + LAYER_NAMES[stem] + ".weight"
    if x.ndim == 1:
        return target, x.astype(np.float32) + (0 if stem == "linear_attn.norm" else 1)
    if stem == "linear_attn.in_proj_qkv":
        return target, np.concatenate([x[:key_rows], head_order(x[key_rows:], text)])
    if stem in ("linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"):
        return target, head_order(x, text)
    if stem == "linear_attn.out_proj":
        return target, head_order(x, text, axis=1)
    return target, x


def write_metadata(out: gguf.GGUFWriter, text: object) -> None:
    """The keys llama.cpp reads for this architecture."""
    out.add_block_count(text.num_hidden_layers)
    out.add_context_length(text.max_position_embeddings)
    out.add_embedding_length(text.hidden_size)
    out.add_feed_forward_length(text.intermediate_size)
    out.add_head_count(text.num_attention_heads)
    out.add_head_count_kv(text.num_key_value_heads)
    out.add_key_length(text.head_dim)
    out.add_value_length(text.head_dim)
    out.add_layer_norm_rms_eps(text.rms_norm_eps)
    out.add_rope_freq_base(text.rope_theta)
    out.add_rope_dimension_count(int(text.head_dim * text.partial_rotary_factor))
    out.add_rope_dimension_sections([*text.mrope_section, 0])
    out.add_ssm_conv_kernel(text.linear_conv_kernel_dim)
    out.add_ssm_state_size(text.linear_key_head_dim)
    out.add_ssm_group_count(text.linear_num_key_heads)
    out.add_ssm_time_step_rank(text.linear_num_value_heads)
    out.add_ssm_inner_size(text.linear_num_value_heads * text.linear_value_head_dim)
    out.add_full_attention_interval(text.layer_types.index("full_attention") + 1)
    out.add_vocab_size(text.vocab_size)
    out.add_tokenizer_model("no_vocab")


def write(source: Path, path: Path) -> None:
    """The text model of a checkpoint folder as a GGUF file."""
    checkpoint = qwen35.loading.open_checkpoint(source)
    text = checkpoint.config.text
    out = gguf.GGUFWriter(path, "qwen35")
    write_metadata(out, text)
    for name, x in checkpoint.tensors.items():
        if name.startswith(("mtp.", "model.visual.")):
            continue
        target, value = converted(name, np.asarray(x), text)
        if value.dtype == np.float32:
            out.add_tensor(target, np.ascontiguousarray(value))
        else:
            raw = np.ascontiguousarray(value).view(np.uint8)
            out.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file(progress=True)
    out.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    write(options.checkpoint, options.out)


if __name__ == "__main__":
    main()
