"""The Qwen3.5 model in plain torch, written for training speed on a CPU; the tower is in tower.py.

tokens -> embedding -> 3 x DeltaNet : 1 x attention, each followed by a SwiGLU MLP -> norm -> tied
head

Same mathematics and tensor names as transformers' `models/qwen3_5` (checked to 1e-4 by
`check_reference.py`). What makes it faster: projections that read the same input are one product,
the head runs on supervised positions only, matrix products are bf16, and where a C compiler is
found kernels.c does the rest in few passes. Without one, or in f32, plain torch does it: the delta
rule inverts each chunk's triangular system by squaring. Sequences are padded on the right, which a
causal model never sees. It keeps no cache between calls: generation belongs to `qwen35` and
transformers.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import kernels
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tower import Tower

ROOT = "model.language_model."
CHUNK = 16


@dataclass
class Sight:
    """What a batch of rows holds beside text: frames in the order of the rows' placeholders."""

    patches: Tensor  # [P, 1536] f32
    grids: list[tuple[int, int]]  # height and width in patches of each frame
    pads: Tensor  # [B, T] bool: placeholder tokens, a quarter of P
    positions: Tensor  # [3, B, T]


def init_weights(cfg: dict, seed: int) -> dict[str, Tensor]:
    """Fresh f32 weights under the released names; `cfg` is the whole config.json."""
    t = cfg["text_config"]
    gen = torch.Generator().manual_seed(seed)
    D, F_, V = t["hidden_size"], t["intermediate_size"], t["vocab_size"]
    Dh, Hq, Hkv = t["head_dim"], t["num_attention_heads"], t["num_key_value_heads"]
    Hk, Hv = t["linear_num_key_heads"], t["linear_num_value_heads"]
    Dk, Dv, K = t["linear_key_head_dim"], t["linear_value_head_dim"], t["linear_conv_kernel_dim"]
    qkv = 2 * Hk * Dk + Hv * Dv
    depth_scale = 1 / math.sqrt(2 * t["num_hidden_layers"])

    def normal(rows: int, cols: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, cols, generator=gen) * (scale / math.sqrt(cols))

    def attention(p: str) -> dict[str, Tensor]:
        return {
            p + "q_proj.weight": normal(2 * Hq * Dh, D),
            p + "k_proj.weight": normal(Hkv * Dh, D),
            p + "v_proj.weight": normal(Hkv * Dh, D),
            p + "o_proj.weight": normal(D, Hq * Dh, depth_scale),
            p + "q_norm.weight": torch.zeros(Dh),
            p + "k_norm.weight": torch.zeros(Dh),
        }

    def block(p: str) -> dict[str, Tensor]:
        return {
            p + "mlp.gate_proj.weight": normal(F_, D),
            p + "mlp.up_proj.weight": normal(F_, D),
            p + "mlp.down_proj.weight": normal(D, F_, depth_scale),
            p + "input_layernorm.weight": torch.zeros(D),
            p + "post_attention_layernorm.weight": torch.zeros(D),
        }

    w = {
        ROOT + "embed_tokens.weight": torch.randn(V, D, generator=gen) * 0.05,
        ROOT + "norm.weight": torch.zeros(D),
    }
    for i, kind in enumerate(t["layer_types"]):
        p = f"{ROOT}layers.{i}."
        w |= block(p)
        if kind == "full_attention":
            w |= attention(p + "self_attn.")
            continue
        a = p + "linear_attn."
        # Decay half-lives from about 2 to about 700 tokens at the start, one per value head.
        rate = torch.logspace(-3, -0.5, Hv)
        w |= {
            a + "in_proj_qkv.weight": normal(qkv, D),
            a + "in_proj_z.weight": normal(Hv * Dv, D),
            a + "in_proj_b.weight": normal(Hv, D),
            a + "in_proj_a.weight": normal(Hv, D, 0.5),
            a + "conv1d.weight": torch.randn(qkv, 1, K, generator=gen) * 0.2
            + torch.tensor([0.0] * (K - 1) + [0.6]),
            a + "out_proj.weight": normal(D, Hv * Dv, depth_scale),
            a + "norm.weight": torch.ones(Dv),
            a + "A_log": torch.zeros(Hv),
            a + "dt_bias": torch.log(torch.expm1(rate)),
        }
    for i in range(t["mtp_num_hidden_layers"]):
        w |= {
            "mtp.fc.weight": normal(D, 2 * D),
            "mtp.pre_fc_norm_embedding.weight": torch.zeros(D),
            "mtp.pre_fc_norm_hidden.weight": torch.zeros(D),
            "mtp.norm.weight": torch.zeros(D),
            **block(f"mtp.layers.{i}."),
            **attention(f"mtp.layers.{i}.self_attn."),
        }
    return {name: x.contiguous() for name, x in w.items()}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * (1 + weight), in f32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up for x = [gate, up]."""
    gate, up = x.float().chunk(2, -1)
    return F.silu(gate) * up


def conv_silu(x: Tensor, weight: Tensor) -> Tensor:
    """Causal depthwise convolution, then silu. x [B, T, C], weight [C, 1, K]."""
    K, T = weight.shape[-1], x.shape[1]
    x = F.pad(x.float(), (0, 0, K - 1, 0))
    y = x[:, :T] * weight[:, 0, 0]
    for k in range(1, K):
        y = y + x[:, k : k + T] * weight[:, 0, k]
    return F.silu(y)


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Per-head RMS norm times weight (no 1 added), times silu(z). x, z [B, T, Hv, Dv]."""
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * weight * F.silu(z.float())


def l2_norm(x: Tensor) -> Tensor:
    """x * rsqrt(sum(x^2) + 1e-6) over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class UnitLowerInverse(torch.autograd.Function):
    """(I + L)^-1 for strictly lower L [..., C, C]: (I - L)(I + L^2)(I + L^4)... since L^C = 0."""

    @staticmethod
    def forward(ctx, lower: Tensor) -> Tensor:
        C = lower.shape[-1]
        power = lower
        inverse = torch.eye(C) - lower
        n = 2
        while n < C:
            power = power @ power
            inverse = inverse + inverse @ power
            n *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        t = inverse.mT
        return -(t @ grad @ t)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Gated delta rule in chunks. q, k [B, Hv, T, Dk] unit length; v [B, Hv, T, Dv]; g, beta [B,
    Hv, T].

    S_t = e^g_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T, o_t = S_t^T q_t / sqrt(Dk); T a
    multiple of the chunk.
    """
    B, H, T, Dk = q.shape
    C = CHUNK if T <= 256 else 2 * CHUNK  # longer chunks: fewer steps of the scan
    n = T // C
    q, k, v = (x.reshape(B, H, n, C, -1) for x in (q * Dk**-0.5, k, v))
    g, beta = g.reshape(B, H, n, C).cumsum(-1), beta.reshape(B, H, n, C, 1)
    upper = torch.ones(C, C, dtype=torch.bool).triu(1)
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(upper, -1e4).exp()
    k_beta = k * beta
    inverse = UnitLowerInverse.apply(((k_beta @ k.mT) * decay).tril(-1))
    growth = g.exp()[..., None]
    fresh = inverse @ (v * beta)
    reads = inverse @ (k_beta * growth)
    within = (q @ k.mT) * decay
    q = q * growth
    last = g[..., -1:]
    k = k * (last - g).exp()[..., None]
    keep = last.exp()[..., None]
    state, out = None, []
    for i in range(n):
        new = fresh[:, :, i] if state is None else fresh[:, :, i] - reads[:, :, i] @ state
        o = within[:, :, i] @ new
        out.append(o if state is None else o + q[:, :, i] @ state)
        if i + 1 < n:
            write = k[:, :, i].mT @ new
            state = write if state is None else state * keep[:, :, i] + write
    return torch.stack(out, 2).reshape(B, H, T, -1)


class TinyModel(torch.nn.Module):
    """Text model, MTP layer and vision tower over a dict of parameters with released names."""

    def __init__(self, cfg: dict, weights: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.cfg, self.t, self.dtype = cfg, cfg["text_config"], dtype
        self.w = {n: torch.nn.Parameter(x.float()) for n, x in weights.items()}
        self.params = torch.nn.ParameterList(self.w.values())
        self.eps = self.t["rms_norm_eps"]
        dims = self.t["linear_key_head_dim"], self.t["linear_value_head_dim"]
        self.lib = kernels.load(*dims) if dtype == torch.bfloat16 else None
        self.tower = Tower(cfg, self.w, dtype)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """The named RMS norm over the last dimension."""
        if self.lib:
            return kernels.Norm.apply(self.lib, x, self.w[name], self.eps)
        return rms_norm(x, self.w[name], self.eps)

    def mm(self, x: Tensor, *names: str) -> Tensor:
        """x times the named weights' transposes side by side."""
        w = self.w[names[0]] if len(names) == 1 else torch.cat([self.w[n] for n in names])
        return F.linear(x.to(self.dtype), w.to(self.dtype))

    def rope(self, T: int, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """cos and sin [1, T, Dr/2] of T text tokens, or [B, T, Dr/2] at positions [3, B, T], where
        the three axes take turns along the frequencies."""
        r = self.t["rope_parameters"]
        dim = int(self.t["head_dim"] * r["partial_rotary_factor"])
        freq = r["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float) / dim)
        if positions is None:
            angle = torch.arange(T, dtype=torch.float)[None, :, None] * freq
            return angle.cos(), angle.sin()
        axes = torch.zeros(dim // 2, dtype=torch.long)
        for axis in (1, 2):
            axes[axis : 3 * r["mrope_section"][axis] : 3] = axis
        angle = positions.permute(1, 2, 0)[..., axes] * freq
        return angle.cos(), angle.sin()

    def attention(self, p: str, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Gated attention with per-head q/k norms and partial rotary embedding. x [B, T, D]."""
        B, T, _ = x.shape
        Dh, Hq, Hkv = (
            self.t[n] for n in ("head_dim", "num_attention_heads", "num_key_value_heads")
        )
        y = self.mm(x, p + "q_proj.weight", p + "k_proj.weight", p + "v_proj.weight").float()
        qg, k, v = y.split([2 * Hq * Dh, Hkv * Dh, Hkv * Dh], -1)
        q, gate = qg.reshape(B, T, Hq, 2 * Dh).chunk(2, -1)
        q = rms_norm(q, self.w[p + "q_norm.weight"], self.eps).transpose(1, 2)
        k = rms_norm(k.reshape(B, T, Hkv, Dh), self.w[p + "k_norm.weight"], self.eps)
        q, k = rotate(q, rope), rotate(k.transpose(1, 2), rope)
        v = v.reshape(B, T, Hkv, Dh).transpose(1, 2)
        k, v = (t.repeat_interleave(Hq // Hkv, 1) for t in (k, v))
        q, k, v = (t.to(self.dtype) for t in (q, k, v))
        if T > 96:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # the fused kernel is slow where many short sequences meet
            mask = torch.ones(T, T, dtype=torch.bool).triu(1)
            scores = ((q * Dh**-0.5) @ k.mT).float().masked_fill(mask, -1e4)
            o = scores.softmax(-1).to(self.dtype) @ v
        o = o.transpose(1, 2).float() * gate.sigmoid()
        return self.mm(o.reshape(B, T, Hq * Dh), p + "o_proj.weight")

    def delta_net(self, p: str, x: Tensor) -> Tensor:
        """Gated DeltaNet mixer. x [B, T, D]."""
        B, T, _ = x.shape
        Hk, Hv = self.t["linear_num_key_heads"], self.t["linear_num_value_heads"]
        Dk, Dv = self.t["linear_key_head_dim"], self.t["linear_value_head_dim"]
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        y = self.mm(x, *(f"{p}{n}.weight" for n in names))
        if self.lib:
            own = (self.w[p + n] for n in ("conv1d.weight", "A_log", "dt_bias", "norm.weight"))
            o = kernels.Mixer.apply(self.lib, y, *own, self.eps, Hk)
            return self.mm(o, p + "out_proj.weight")
        qkv, z, b, a = y.split([2 * Hk * Dk + Hv * Dv, Hv * Dv, Hv, Hv], -1)
        qkv = conv_silu(qkv, self.w[p + "conv1d.weight"])
        q, k, v = qkv.split([Hk * Dk, Hk * Dk, Hv * Dv], -1)
        q, k = (l2_norm(t.reshape(B, T, Hk, Dk)).repeat_interleave(Hv // Hk, 2) for t in (q, k))
        v = v.reshape(B, T, Hv, Dv)
        g = -self.w[p + "A_log"].exp() * F.softplus(a.float() + self.w[p + "dt_bias"])
        q, k, v, g, beta = (t.transpose(1, 2) for t in (q, k, v, g, b.float().sigmoid()))
        o = delta_rule(q, k, v, g, beta).transpose(1, 2)
        o = gated_norm(o, z.reshape(B, T, Hv, Dv), self.w[p + "norm.weight"], self.eps)
        return self.mm(o.reshape(B, T, Hv * Dv), p + "out_proj.weight")

    def layer(self, p: str, kind: str, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """One residual block: mixer, then MLP."""
        h = self.norm(x, p + "input_layernorm.weight")
        if kind == "full_attention":
            x = x + self.attention(p + "self_attn.", h, rope)
        else:
            x = x + self.delta_net(p + "linear_attn.", h)
        h = self.norm(x, p + "post_attention_layernorm.weight")
        h = self.mm(h, p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight")
        h = kernels.SwiGLU.apply(self.lib, h) if self.lib else swiglu(h)
        return x + self.mm(h, p + "mlp.down_proj.weight")

    def embed(self, ids: Tensor, features: Tensor | None, sight: Sight | None) -> Tensor:
        """Embedded tokens [B, T, D] with the tower's features in place of the placeholders."""
        x = F.embedding(ids, self.w[ROOT + "embed_tokens.weight"])
        if sight is None:
            return x
        return x.masked_scatter(sight.pads[..., None], features)

    def see(self, sight: Sight) -> Tensor:
        """The tower's features [P / 4, D]."""
        return self.tower(sight.patches, sight.grids)

    def hidden(
        self, ids: Tensor, sight: Sight | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the final norm, what the head sees. ids [B, T] -> [B, T, D]; features
        are `see(sight)` where the caller has them already."""
        return self.trunk(ids, sight, features)[0]

    def trunk(
        self, ids: Tensor, sight: Sight | None = None, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`hidden`, and the residual stream after the first full attention [B, T, D]."""
        if sight is not None and features is None:
            features = self.see(sight)
        T, positions = ids.shape[1], sight.positions if sight else None
        x = self.embed(ids, features, sight)
        if not self.lib:
            more = -T % (CHUNK if T <= 256 else 2 * CHUNK)
            x = F.pad(x, (0, 0, 0, more))
            positions = F.pad(positions, (0, more)) if sight else None
        rope = self.rope(x.shape[1], positions)
        kinds = self.t["layer_types"]
        for i, kind in enumerate(kinds):
            x = self.layer(f"{ROOT}layers.{i}.", kind, x, rope)
            if i == kinds.index("full_attention"):
                early = x
        return self.norm(x, ROOT + "norm.weight")[:, :T], early[:, :T]

    def mtp_hidden(self, ids: Tensor, hidden: Tensor, sight: Sight | None = None) -> Tensor:
        """The MTP layer's states: position t holds hidden t and token t+1, predicts t+2. -> [B,
        T-1, D]. Placeholders are plain tokens to it."""
        e = self.embed(ids[:, 1:], None, None)
        e = self.norm(e, "mtp.pre_fc_norm_embedding.weight")
        h = self.norm(hidden[:, :-1].float(), "mtp.pre_fc_norm_hidden.weight")
        x = self.mm(torch.cat([e, h], -1), "mtp.fc.weight").float()
        rope = self.rope(x.shape[1], sight.positions[..., :-1] if sight else None)
        x = self.layer("mtp.layers.0.", "full_attention", x, rope)
        return self.norm(x, "mtp.norm.weight")

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, f32."""
        return self.mm(hidden, ROOT + "embed_tokens.weight").float()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first Dr dimensions of x [B, H, T, Dh], halves paired; rope [B or 1, T, Dr/2]."""
    cos, sin = (r[:, None] for r in rope)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The folder's model.safetensors as f32."""
    return {n: x.float() for n, x in load_file(folder / "model.safetensors").items()}


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Write model.safetensors in bf16, replacing the old file in one step."""
    held = {n: x.detach().to(torch.bfloat16).contiguous() for n, x in sorted(weights.items())}
    part = folder / "model.safetensors.part"
    save_file(held, part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, folder / "model.safetensors")


def load_config(folder: Path) -> dict:
    """The folder's config.json."""
    return json.loads((folder / "config.json").read_text())
