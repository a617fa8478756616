"""The Qwen3.5 vision tower in plain torch over a dict of parameters with released names.

patches of all frames [P, 1536] -> embedding + interpolated positions -> blocks that attend within a
frame -> 2 x 2 merger -> [P / 4, D of the text model]
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

P = "model.visual."
EMBED = P + "patch_embed.proj.weight"


def init_vision(cfg: dict, seed: int) -> dict[str, Tensor]:
    """Fresh f32 weights under the released names; `cfg` is the whole config.json."""
    v = cfg["vision_config"]
    gen = torch.Generator().manual_seed(seed)
    D, inner, out = v["hidden_size"], v["intermediate_size"], v["out_hidden_size"]
    merged = v["spatial_merge_size"] ** 2 * D
    patch = (v["in_channels"], v["temporal_patch_size"], v["patch_size"], v["patch_size"])
    depth_scale = 1 / math.sqrt(2 * v["depth"])
    w: dict[str, Tensor] = {}

    def linear(name: str, rows: int, *cols: int, scale: float = 1.0) -> None:
        x = torch.randn(rows, *cols, generator=gen)
        w[P + name + ".weight"] = x * (scale / math.sqrt(math.prod(cols)))
        w[P + name + ".bias"] = torch.zeros(rows)

    def norm(name: str, n: int) -> None:
        w[P + name + ".weight"], w[P + name + ".bias"] = torch.ones(n), torch.zeros(n)

    linear("patch_embed.proj", D, *patch)
    w[P + "pos_embed.weight"] = torch.randn(v["num_position_embeddings"], D, generator=gen) * 0.1
    for i in range(v["depth"]):
        b = f"blocks.{i}."
        norm(b + "norm1", D)
        norm(b + "norm2", D)
        linear(b + "attn.qkv", 3 * D, D)
        linear(b + "attn.proj", D, D, scale=depth_scale)
        linear(b + "mlp.linear_fc1", inner, D)
        linear(b + "mlp.linear_fc2", D, inner, scale=depth_scale)
    norm("merger.norm", D)
    linear("merger.linear_fc1", merged, merged)
    linear("merger.linear_fc2", out, merged, scale=0.1)  # as small as the embedding's rows
    return w


@functools.cache
def places(h: int, w: int, side: int, merge: int) -> tuple[Tensor, Tensor, Tensor]:
    """(row and column [n, 2] of each patch in merge order, indices [n, 4] into the side x side
    position table, their bilinear weights [n, 4]); corners are aligned."""
    rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack([rows, cols], -1).reshape(h // merge, merge, w // merge, merge, 2)
    at = at.transpose(1, 2).reshape(h * w, 2)
    source = at * (side - 1) / torch.tensor([max(1, h - 1), max(1, w - 1)])
    low = source.floor().long()
    share = source - low
    taps = torch.stack([low, (low + 1).clamp(max=side - 1)])  # [2, n, 2]
    weights = torch.stack([1 - share, share])
    index = [taps[a, :, 0] * side + taps[b, :, 1] for a in (0, 1) for b in (0, 1)]
    scale = [weights[a, :, 0] * weights[b, :, 1] for a in (0, 1) for b in (0, 1)]
    return at, torch.stack(index, 1), torch.stack(scale, 1)


Groups = tuple[list[tuple[Tensor, int]], Tensor]


def groups(lengths: list[int]) -> Groups:
    """Frames of one length together, so that none is padded: (the patches of each group and their
    length), and where each patch of the frames' order lies behind the last group's."""
    first = [0, *itertools.accumulate(lengths)]
    parts = []
    for n in sorted(set(lengths)):
        starts = torch.tensor([i for i, m in zip(first, lengths, strict=False) if m == n])
        parts.append(((starts[:, None] + torch.arange(n)).flatten(), n))
    return parts, torch.cat([rows for rows, _ in parts]).argsort()


class Tower:
    """The tower's forward pass over weights `w`; products in `dtype`, the rest in f32."""

    def __init__(self, cfg: dict, w: dict[str, Tensor], dtype: torch.dtype):
        self.v, self.w, self.dtype = cfg["vision_config"], w, dtype
        self.heads = self.v["num_heads"]
        self.head_dim = self.v["hidden_size"] // self.heads

    def linear(self, x: Tensor, name: str) -> Tensor:
        """The named layer with its bias, f32."""
        weight = self.w[P + name + ".weight"].flatten(1)
        return (
            F.linear(x.to(self.dtype), weight.to(self.dtype)).float() + self.w[P + name + ".bias"]
        )

    def norm(self, x: Tensor, name: str) -> Tensor:
        """The named layer norm."""
        names = P + name + ".weight", P + name + ".bias"
        return F.layer_norm(x, x.shape[-1:], self.w[names[0]], self.w[names[1]], 1e-6)

    def __call__(self, patches: Tensor, grids: list[tuple[int, int]]) -> Tensor:
        """Features [P / 4, D] of frames with these grids, patches [P, 1536] one after the other."""
        side = math.isqrt(self.v["num_position_embeddings"])
        found = [places(h, w, side, self.v["spatial_merge_size"]) for h, w in grids]
        at, index, share = (torch.cat(x) for x in zip(*found, strict=True))
        table = self.w[P + "pos_embed.weight"]
        x = self.linear(patches, "patch_embed.proj") + (table[index] * share[..., None]).sum(1)
        freq = 10000.0 ** (-torch.arange(0, self.head_dim // 2, 2) / (self.head_dim // 2))
        angle = (at[:, :, None] * freq).flatten(1)[:, None]  # [P, 1, head_dim / 2]
        rope = angle.cos(), angle.sin()
        alike = groups([h * w for h, w in grids])
        for i in range(self.v["depth"]):
            b = f"blocks.{i}."
            h = self.linear(self.norm(x, b + "norm1"), b + "attn.qkv")
            x = x + self.linear(self.attend(h, rope, alike), b + "attn.proj")
            h = self.linear(self.norm(x, b + "norm2"), b + "mlp.linear_fc1")
            x = x + self.linear(F.gelu(h, approximate="tanh"), b + "mlp.linear_fc2")
        merged = x.shape[-1] * self.v["spatial_merge_size"] ** 2
        x = self.linear(self.norm(x, "merger.norm").reshape(-1, merged), "merger.linear_fc1")
        return self.linear(F.gelu(x), "merger.linear_fc2")

    def attend(self, qkv: Tensor, rope: tuple[Tensor, Tensor], alike: Groups) -> Tensor:
        """Attention of each patch over its frame. qkv [P, 3 D] -> [P, D]."""
        cos, sin = rope
        q, k, v = qkv.reshape(len(qkv), 3, self.heads, self.head_dim).unbind(1)

        def turn(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        q, k, v = (x.to(self.dtype) for x in (turn(q * self.head_dim**-0.5), turn(k), v))
        parts, back = alike
        out = []
        for rows, n in parts:
            a, b, c = (x[rows].unflatten(0, (-1, n)).transpose(1, 2) for x in (q, k, v))
            scores = (a @ b.mT).float().softmax(-1).to(self.dtype)
            out.append((scores @ c).transpose(1, 2).flatten(0, 1))
        return torch.cat(out)[back].flatten(1)
