"""The vision tower in NumPy: the twin of the section "What is seen" of csrc/MODEL.md, with the same
letters.

    pixels [S, P] -> patches -> + position -> L x (norm, attention, +, norm, mlp, +) -> merger

Written to be read: one frame at a time, whole matrices of scores. Letters (the tower's own): S
patches of a frame of h x w, P numbers of a patch, D hidden, H heads of Dh, F MLP width, m patches a
side of a token, M = m^2 D, side of the square position table.

Sources: transformers 5.23 models/qwen3_5 (Qwen3_5VisionModel) and models/qwen3_vl (DeepStack).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
ROOT = "model.visual."


def layer_norm(x: Array, w: Mapping[str, Array], name: str) -> Array:
    """(x - mean) / sqrt(var + 1e-6) * weight + bias over the last dimension."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Array, w: Mapping[str, Array], name: str) -> Array:
    """x [.., n] W [m, n] -> [.., m], plus bias."""
    weight = w[f"{name}.weight"]
    return x @ weight.reshape(len(weight), -1).T + w[f"{name}.bias"]


def gelu_tanh(x: Array) -> Array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))"""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: Array) -> Array:
    """0.5 x (1 + erf(x / sqrt(2)))"""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def places(h: int, w: int, m: int) -> tuple[Array, Array]:
    """Row and column of each patch: tokens line by line, within a token its m x m patches."""
    index = np.arange(h * w).reshape(h // m, m, w // m, m).transpose(0, 2, 1, 3).ravel()
    return index // w, index % w


def taps(index: Array, size: int, side: int) -> tuple[Array, Array, Array]:
    """Two neighbouring entries of a table of `side` for places 0 .. size-1, ends on ends, and the
    weight of the second.
    """
    at = index * (side - 1) / max(size - 1, 1)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, side - 1), at - low


def position(table: Array, row: Array, col: Array, h: int, w: int) -> Array:
    """The table [side^2, D], interpolated to the frame's rows and columns: [S, D]."""
    side = math.isqrt(len(table))
    square = table.reshape(side, side, -1)
    r0, r1, down = taps(row, h, side)
    c0, c1, right = taps(col, w, side)
    down, right = down[:, None], right[:, None]
    above = square[r0, c0] * (1 - right) + square[r0, c1] * right
    below = square[r1, c0] * (1 - right) + square[r1, c1] * right
    return above * (1 - down) + below * down


def rotate(x: Array, row: Array, col: Array) -> Array:
    """x [S, H, Dh]: pairs (j, j + Dh/2) turned, the first half of them by the row, the second by
    the column, with frequencies 10000^(-2 j / (Dh / 2)).
    """
    Dh = x.shape[-1]
    frequency = 10000.0 ** -(np.arange(0, Dh // 2, 2) / (Dh // 2))
    angle = np.concatenate([row[:, None] * frequency, col[:, None] * frequency], -1)[:, None]
    a, b = x[..., : Dh // 2], x[..., Dh // 2 :]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x: Array, w: Mapping[str, Array], name: str, H: int, row: Array, col: Array) -> Array:
    """Every patch of a frame sees every other."""
    q, k, v = linear(x, w, f"{name}.qkv").reshape(len(x), 3, H, -1).swapaxes(0, 1)
    q, k = rotate(q, row, col), rotate(k, row, col)
    scores = np.einsum("shd,thd->hst", q, k) / math.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hst,thd->shd", p / p.sum(-1, keepdims=True), v)
    return linear(mixed.reshape(x.shape), w, f"{name}.proj")


def merge(x: Array, w: Mapping[str, Array], name: str, m: int, *, deep: bool) -> Array:
    """m x m patches -> one token. DeepStack's mergers norm the patches together, the last one each
    by itself.
    """
    shape = (len(x) // m**2, -1)
    x = layer_norm(x.reshape(shape) if deep else x, w, f"{name}.norm").reshape(shape)
    return linear(gelu(linear(x, w, f"{name}.linear_fc1")), w, f"{name}.linear_fc2")


def features(
    config: Mapping[str, Any], tensors: Mapping[str, Array], pixels: Array, grid: ArrayLike
) -> Array:
    """[n, 1 + DeepStack layers, D of the text model] float64 of one image or video."""
    w = {n[len(ROOT) :]: np.asarray(x).astype(float) for n, x in tensors.items() if ROOT in n}
    m, H = config["spatial_merge_size"], config["num_heads"]
    times, height, width = np.asarray(grid).tolist()
    row, col = places(height, width, m)
    tokens = []
    for frame in np.asarray(pixels).astype(float).reshape(times, height * width, -1):
        x = linear(frame, w, "patch_embed.proj")
        x = x + position(w["pos_embed.weight"], row, col, height, width)
        parts = []
        for i in range(config["depth"]):
            h = layer_norm(x, w, f"blocks.{i}.norm1")
            x = x + attention(h, w, f"blocks.{i}.attn", H, row, col)
            h = linear(layer_norm(x, w, f"blocks.{i}.norm2"), w, f"blocks.{i}.mlp.linear_fc1")
            x = x + linear(gelu_tanh(h), w, f"blocks.{i}.mlp.linear_fc2")
            if i in config["deepstack_visual_indexes"]:
                name = f"deepstack_merger_list.{config['deepstack_visual_indexes'].index(i)}"
                parts.append(merge(x, w, name, m, deep=True))
        tokens.append(np.stack([merge(x, w, "merger", m, deep=False), *parts], axis=1))
    return np.concatenate(tokens)
