"""Small random models of transformers, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import (
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)


def text_config(**changes: Any) -> dict[str, Any]:
    """A text_config with pairwise different dimensions, none a multiple of 8."""
    return {
        "hidden_size": 44,
        "intermediate_size": 76,
        "vocab_size": 211,
        "num_hidden_layers": 4,
        "layer_types": [
            "linear_attention",
            "linear_attention",
            "linear_attention",
            "full_attention",
        ],
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 11,
        "linear_value_head_dim": 21,
        "linear_conv_kernel_dim": 4,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 2, 1],
            "mrope_interleaved": True,
        },
    } | changes


def random_weights(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations near 1 and gates away from their ends; norms away from 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(noise if "A_log" in name else p + 0.3 * noise)
            else:
                p.copy_(noise * (0.3 if "conv1d" in name else 0.7 / p.shape[-1] ** 0.5))


def text_model(config: dict[str, Any], seed: int) -> Qwen3_5ForCausalLM:
    """A model that was never a file, float32."""
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**config)).eval()
    random_weights(model, seed)
    return model


def tensors_of(model: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """The state of a text model under checkpoint names."""
    state = {n: p.numpy() for n, p in model.state_dict().items()}
    return {
        "model.language_model." + n.removeprefix("model.") if n.startswith("model.") else n: p
        for n, p in state.items()
    }


def from_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> Qwen3_5ForCausalLM:
    """The text model of a checkpoint folder, as transformers loads it; a missing or unexpected
    tensor is an error.
    """
    model, info = Qwen3_5ForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong = {
        k: v
        for k, v in info.items()
        if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if wrong:
        raise ValueError(f"{folder}: transformers reports {wrong}")
    return model.eval()


@torch.no_grad()
def logits(
    model: torch.nn.Module, ids: ArrayLike, position_ids: ArrayLike | None = None
) -> NDArray[np.float32]:
    """[T, V] float32 after each of ids [T]; position_ids [3, T]."""
    at = None if position_ids is None else torch.tensor(np.asarray(position_ids))[:, None]
    out = model(input_ids=torch.tensor(np.asarray(ids, dtype=np.int64))[None], position_ids=at)
    return out.logits[0].float().numpy()


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: ArrayLike, n: int) -> list[int]:
    """The n most likely next tokens, one by one through transformers' cache; no token stops it."""
    fed, cache, out = torch.tensor(np.asarray(ids, dtype=np.int64))[None], None, []
    for _ in range(n):
        answer = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
        fed = answer.logits[:, -1].argmax(-1, keepdim=True)
        out.append(int(fed))
    return out


def mean_kl(exact: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean over tokens of KL(softmax(exact) || softmax(other)) in nats, float64; both [T, V]."""

    def log_softmax(x: NDArray[Any]) -> NDArray[np.float64]:
        x = x.astype(np.float64)
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_softmax(exact), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def vision_config(**changes: Any) -> dict[str, Any]:
    """A vision_config with pairwise different dimensions; heads of 12, no multiple of a vector."""
    return {
        "depth": 3,
        "hidden_size": 36,
        "intermediate_size": 58,
        "num_heads": 3,
        "in_channels": 3,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 49,
        "out_hidden_size": 44,
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": [],
    } | changes


def vision_model(config: dict[str, Any], seed: int) -> torch.nn.Module:
    """A tower that was never a file, float32: Qwen3.5's, or Qwen3-VL's where DeepStack is asked
    for.
    """
    if config["deepstack_visual_indexes"]:
        from transformers.models.qwen3_vl import modeling_qwen3_vl as family

        made = family.Qwen3VLVisionModel(family.Qwen3VLVisionConfig(**config))
    else:
        from transformers.models.qwen3_5 import modeling_qwen3_5 as family

        made = family.Qwen3_5VisionModel(family.Qwen3_5VisionConfig(**config))
    random_weights(made.eval(), seed)
    return made


@torch.no_grad()
def features(model: torch.nn.Module, pixels: ArrayLike, grids: ArrayLike) -> NDArray[np.float32]:
    """[n, 1 + DeepStack layers, D] of pixels [patches, floats] and grids [m, 3]."""
    out = model(torch.tensor(np.asarray(pixels)), grid_thw=torch.tensor(np.asarray(grids)))
    parts = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
    return torch.stack(parts, dim=1).numpy()


def seeing_model(folder: str | Path) -> Qwen3_5ForConditionalGeneration:
    """The whole model of a checkpoint folder, float32; DeepStack's mergers, which it has no code
    for, may be left over.
    """
    model, info = Qwen3_5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    unused = [n for n in info["unexpected_keys"] if "deepstack" not in n and "mtp." not in n]
    if info["missing_keys"] or unused:
        raise ValueError(f"{folder}: missing {info['missing_keys']}, unused {unused}")
    return model.eval()


def inputs_of(prompt: Any, config: Any) -> dict[str, torch.Tensor]:
    """transformers' arguments for a prompt of ours."""
    kinds = np.zeros(len(prompt.ids), np.int64)
    kinds[prompt.ids == config.image_token_id] = 1
    kinds[prompt.ids == config.video_token_id] = 2

    inputs = {
        "input_ids": torch.tensor(prompt.ids.astype(np.int64))[None],
        "mm_token_type_ids": torch.tensor(kinds)[None],
    }
    for media, pixels, grid in (
        (prompt.images, "pixel_values", "image_grid_thw"),
        (prompt.videos, "pixel_values_videos", "video_grid_thw"),
    ):
        if media:
            inputs[pixels] = torch.tensor(np.concatenate([one.pixels for one in media]))
            inputs[grid] = torch.tensor([one.grid_thw for one in media])
    return inputs
