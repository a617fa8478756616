"""The text model in NumPy: the twin of csrc/MODEL.md, section by section, with the same letters.

    ids [T] -> embed -> L x (norm, mixer, +, norm, mlp, +) -> norm -> head -> logits [T, V]

Written to be read, not to be fast: one sequence, no batch, a plain loop over tokens where the model
has a recurrence. Every function takes and returns arrays of one float type, float64 (the witness
for kernels) or float32 (the witness for rounding). It does not read files: tensors come as a
mapping of checkpoint names to arrays. The drafting layer (MTP) is at the end.

Letters: T tokens in this call, S cached positions, L layers, D hidden, F MLP width, V vocabulary,
Hq Hkv Dh Dr query heads, kv heads, head dim, rotary dims, Hk Hv Dk Dv linear heads and dims, K conv
taps, C = 2 Hk Dk + Hv Dv conv channels.

Sources: Gated Delta Networks (arXiv:2412.06464), RoPE (arXiv:2104.09864), YaRN (arXiv:2309.00071),
transformers 5.23 models/qwen3_5/modeling_qwen3_5.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
ROOT = "model.language_model."


# ---- dimensions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dims:
    """The letters of one checkpoint, and what else its config decides."""

    D: int
    F: int
    V: int
    Hq: int
    Hkv: int
    Dh: int
    Dr: int
    Hk: int
    Hv: int
    Dk: int
    Dv: int
    K: int
    eps: float
    tied: bool
    layer_types: tuple[str, ...]
    mrope_section: tuple[int, int, int]
    inv_freq: NDArray[np.float32]  # [Dr / 2]
    rope_gain: float  # multiplies cos and sin; 1 without YaRN

    @property
    def C(self) -> int:
        """Channels of the causal convolution: q, k and v side by side."""
        return 2 * self.Hk * self.Dk + self.Hv * self.Dv

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Dims:
        """From a config.json as a dict, or from its text_config alone."""
        t = config.get("text_config", config)
        rope = t["rope_parameters"]
        Dr = int(t["head_dim"] * rope.get("partial_rotary_factor", 0.25))
        inv_freq, gain = rope_frequencies(rope, Dr)
        return cls(
            D=t["hidden_size"],
            F=t["intermediate_size"],
            V=t["vocab_size"],
            Hq=t["num_attention_heads"],
            Hkv=t["num_key_value_heads"],
            Dh=t["head_dim"],
            Dr=Dr,
            Hk=t["linear_num_key_heads"],
            Hv=t["linear_num_value_heads"],
            Dk=t["linear_key_head_dim"],
            Dv=t["linear_value_head_dim"],
            K=t["linear_conv_kernel_dim"],
            eps=t["rms_norm_eps"],
            tied=config.get("tie_word_embeddings", t.get("tie_word_embeddings", False)),
            layer_types=tuple(t["layer_types"]),
            mrope_section=tuple(rope.get("mrope_section", (11, 11, 10))),
            inv_freq=inv_freq,
            rope_gain=gain,
        )


# ---- rotary positions ----------------------------------------------------------------------------


def rope_frequencies(rope: Mapping[str, Any], Dr: int) -> tuple[NDArray[np.float32], float]:
    """Angle per position of each of the Dr / 2 pairs, and the gain of cos and sin.

    default: theta ^ (-2 i / Dr). yarn: pairs that turn often within the trained context keep their
    frequency, pairs that turn less than once are slowed by `factor`, with a linear ramp between;
    the gain is 0.1 ln(factor) + 1.
    """
    theta = rope["rope_theta"]
    plain = 1.0 / theta ** (np.arange(0, Dr, 2, dtype=np.float64) / Dr)
    if rope.get("rope_type", "default") == "default":
        return plain.astype(np.float32), 1.0
    factor, trained = rope["factor"], rope["original_max_position_embeddings"]

    def pair_turning(times: float) -> float:
        """The (fractional) pair index that turns `times` times within the trained context."""
        return Dr * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(pair_turning(rope.get("beta_slow") or 1)), Dr - 1)
    span = high - low if high != low else 0.001
    slowed = np.clip((np.arange(Dr // 2) - low) / span, 0, 1)  # 0: keep, 1: divide by factor
    gain = rope.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return (plain / factor * slowed + plain * (1 - slowed)).astype(np.float32), float(gain)


def mrope_axis(d: Dims) -> NDArray[np.int64]:
    """The position row (0 time, 1 height, 2 width) of each pair, [Dr / 2]: 0 1 2 0 1 2 ..."""
    axis = np.zeros(d.Dr // 2, dtype=np.int64)
    for row in (1, 2):
        axis[row : 3 * d.mrope_section[row] : 3] = row
    return axis


def rope_cos_sin(d: Dims, position_ids: Array) -> tuple[Array, Array]:
    """cos and sin, [T, Dr / 2] float64, of position_ids [3, T].

    The angle is a float32 product, as in transformers: at position 200,000 its rounding is 0.01
    rad, so it is part of the definition and float64 would be a different model.
    """
    chosen = position_ids[mrope_axis(d)].T  # [T, Dr / 2]
    angle = (chosen.astype(np.float32) * d.inv_freq).astype(np.float64)
    return np.cos(angle) * d.rope_gain, np.sin(angle) * d.rope_gain


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Turn the first Dr of Dh in x [T, H, Dh]; pair i is (x[i], x[i + Dr / 2]), the rest passes."""
    half = cos.shape[-1]
    cos, sin = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin, rest), axis=-1)


# ---- small pieces --------------------------------------------------------------------------------


def linear(x: Array, w: Array) -> Array:
    """x W^T for w [out, in], as all weights are stored."""
    return x @ w.T


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    """ln(1 + e^x), and x itself above 20."""
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def rms_norm(x: Array, w: Array, eps: float) -> Array:
    """x / rms(x) * (1 + w) over the last axis: all norms but the DeltaNet's own."""
    return unit_rms(x, eps) * (1 + w)


def unit_rms(x: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))


def unit_l2(x: Array) -> Array:
    """x / sqrt(sum x^2 + 1e-6) over the last axis: q and k of DeltaNet."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + x.dtype.type(1e-6))


# ---- state ---------------------------------------------------------------------------------------


@dataclass
class State:
    """What the model remembers between calls, by layer: conv and delta, or k and v."""

    conv: dict[int, Array] = field(default_factory=dict)  # [K - 1, C] last inputs of the conv
    delta: dict[int, Array] = field(default_factory=dict)  # [Hv, Dk, Dv] the recurrent matrix
    k: dict[int, Array] = field(default_factory=dict)  # [S, Hkv, Dh] normed and turned
    v: dict[int, Array] = field(default_factory=dict)  # [S, Hkv, Dh]
    next_position: int = 0  # 1 + the largest so far: the number of tokens where all is text

    def copy(self) -> State:
        """An independent state: the arrays are replaced by the functions below, never written."""
        parts = (dict(x) for x in (self.conv, self.delta, self.k, self.v))
        return State(*parts, next_position=self.next_position)


def positions(state: State, T: int, given: ArrayLike | None) -> NDArray[np.int64]:
    """[3, T] as given, or text that continues: three equal rows. Moves state.next_position."""
    first = state.next_position
    text = np.broadcast_to(np.arange(first, first + T), (3, T))
    at = text if given is None else np.asarray(given)
    state.next_position = max(first, int(at.max()) + 1)
    return at


# ---- mixers --------------------------------------------------------------------------------------


def causal_conv(x: Array, tail: Array, w: Array) -> tuple[Array, Array]:
    """SiLU of a convolution per channel over this and the K - 1 tokens before it.

    x [T, C], tail [K - 1, C], w [C, K]; with all = tail, x:
    y[t, c] = silu(sum_j w[c, j] all[t + j, c]). Returns y and the new tail.
    """
    T, K = len(x), w.shape[1]
    all_ = np.concatenate((tail, x))  # [K - 1 + T, C]
    y = sum(w[:, j] * all_[j : j + T] for j in range(K))
    return silu(y), all_[T:]


def delta_rule(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array
) -> tuple[Array, Array]:
    """The gated delta rule for one value head. Returns out [T, Dv] and the new state.

    q, k [T, Dk], v [T, Dv], decay, beta [T], state M [Dk, Dv]; token after token
    M <- decay M;  M <- M + k (beta (v - k M));  out = q M.
    """
    out = np.empty_like(v)
    M = state
    for t in range(len(v)):
        M = decay[t] * M
        M = M + np.outer(k[t], beta[t] * (v[t] - k[t] @ M))
        out[t] = q[t] @ M
    return out, M


def delta_net(
    d: Dims, w: Mapping[str, Array], x: Array, conv: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Gated DeltaNet of x [T, D] by one layer's `linear_attn.` tensors; also its two new states."""
    T, group = len(x), d.Hv // d.Hk
    mixed, conv = causal_conv(linear(x, w["in_proj_qkv.weight"]), conv, w["conv1d.weight"][:, 0])
    q, k, v = np.split(mixed, (d.Hk * d.Dk, 2 * d.Hk * d.Dk), axis=1)
    q = unit_l2(q.reshape(T, d.Hk, d.Dk)) / x.dtype.type(math.sqrt(d.Dk))
    k = unit_l2(k.reshape(T, d.Hk, d.Dk))
    v = v.reshape(T, d.Hv, d.Dv)
    z = linear(x, w["in_proj_z.weight"]).reshape(T, d.Hv, d.Dv)
    beta = sigmoid(linear(x, w["in_proj_b.weight"]))  # [T, Hv]
    decay = np.exp(-np.exp(w["A_log"]) * softplus(linear(x, w["in_proj_a.weight"]) + w["dt_bias"]))
    heads = [
        delta_rule(q[:, h // group], k[:, h // group], v[:, h], decay[:, h], beta[:, h], delta[h])
        for h in range(d.Hv)
    ]
    out = np.stack([o for o, _ in heads], axis=1)  # [T, Hv, Dv]
    out = unit_rms(out, d.eps) * w["norm.weight"] * silu(z)  # here the weight has no 1 added
    return linear(out.reshape(T, -1), w["out_proj.weight"]), conv, np.stack([M for _, M in heads])


def gated_attention(
    d: Dims, w: Mapping[str, Array], x: Array, position_ids: Array, k_cache: Array, v_cache: Array
) -> tuple[Array, Array, Array]:
    """Attention of x [T, D] by one layer's `self_attn.` tensors; also the two grown caches."""
    T, group = len(x), d.Hq // d.Hkv
    q, gate = np.split(linear(x, w["q_proj.weight"]).reshape(T, d.Hq, 2 * d.Dh), 2, axis=-1)
    k = linear(x, w["k_proj.weight"]).reshape(T, d.Hkv, d.Dh)
    v = linear(x, w["v_proj.weight"]).reshape(T, d.Hkv, d.Dh)
    cos, sin = rope_cos_sin(d, position_ids)
    q = rope(rms_norm(q, w["q_norm.weight"], d.eps), cos, sin)
    k = rope(rms_norm(k, w["k_norm.weight"], d.eps), cos, sin)
    k, v = np.concatenate((k_cache, k)), np.concatenate((v_cache, v))  # [S + T, Hkv, Dh]
    S = len(k) - T
    later = np.arange(S + T) > S + np.arange(T)[:, None]  # [T, S + T] True: not yet there
    out = np.empty_like(q)
    for h in range(d.Hq):
        p = q[:, h] @ k[:, h // group].T / x.dtype.type(math.sqrt(d.Dh))
        p = np.where(later, -np.inf, p)
        p = np.exp(p - p.max(axis=1, keepdims=True))
        out[:, h] = p / p.sum(axis=1, keepdims=True) @ v[:, h // group]
    return linear((out * sigmoid(gate)).reshape(T, -1), w["o_proj.weight"]), k, v


def mlp(w: Mapping[str, Array], x: Array) -> Array:
    """SwiGLU: down(silu(gate x) * up x)."""
    gated = silu(linear(x, w["gate_proj.weight"])) * linear(x, w["up_proj.weight"])
    return linear(gated, w["down_proj.weight"])


# ---- the model -----------------------------------------------------------------------------------


class Reference:
    """A checkpoint's text model, its tensors converted to `dtype`: for small models."""

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Array], *, dtype: type = np.float64
    ) -> None:
        self.dims, self.dtype = Dims.from_config(config), np.dtype(dtype)
        wanted = (ROOT, "lm_head.", "mtp.")
        self.w = {
            n: np.asarray(x).astype(dtype) for n, x in tensors.items() if n.startswith(wanted)
        }

    def state(self) -> State:
        """The state before the first token: zeros and empty caches."""
        d, state = self.dims, State()
        for i, kind in enumerate(d.layer_types):
            if kind == "linear_attention":
                state.conv[i] = np.zeros((d.K - 1, d.C), self.dtype)
                state.delta[i] = np.zeros((d.Hv, d.Dk, d.Dv), self.dtype)
            else:
                state.k[i] = state.v[i] = np.zeros((0, d.Hkv, d.Dh), self.dtype)
        return state

    def part(self, prefix: str) -> dict[str, Array]:
        """The tensors under a prefix, the prefix cut off."""
        return {n[len(prefix) :]: x for n, x in self.w.items() if n.startswith(prefix)}

    def layer(self, i: int, x: Array, state: State, position_ids: Array) -> Array:
        """One layer, x [T, D] -> [T, D]; advances its state."""
        d, w = self.dims, self.part(f"{ROOT}layers.{i}.")
        h = rms_norm(x, w["input_layernorm.weight"], d.eps)
        if d.layer_types[i] == "linear_attention":
            a = self.part(f"{ROOT}layers.{i}.linear_attn.")
            h, state.conv[i], state.delta[i] = delta_net(d, a, h, state.conv[i], state.delta[i])
        else:
            a = self.part(f"{ROOT}layers.{i}.self_attn.")
            h, state.k[i], state.v[i] = gated_attention(
                d, a, h, position_ids, state.k[i], state.v[i]
            )
        x = x + h
        h = rms_norm(x, w["post_attention_layernorm.weight"], d.eps)
        return x + mlp(self.part(f"{ROOT}layers.{i}.mlp."), h)

    def hidden(self, ids: ArrayLike, state: State, position_ids: ArrayLike | None = None) -> Array:
        """After the final norm, [T, D]; the state moves T tokens on."""
        ids = np.asarray(ids)
        at = positions(state, len(ids), position_ids)
        x = self.w[ROOT + "embed_tokens.weight"][ids]
        for i in range(len(self.dims.layer_types)):
            x = self.layer(i, x, state, at)
        return rms_norm(x, self.w[ROOT + "norm.weight"], self.dims.eps)

    def head(self, hidden: Array) -> Array:
        """Logits [T, V] of hidden states after the final norm."""
        name = ROOT + "embed_tokens.weight" if self.dims.tied else "lm_head.weight"
        return linear(hidden, self.w[name])

    def logits(
        self, ids: ArrayLike, state: State | None = None, position_ids: ArrayLike | None = None
    ) -> Array:
        """Logits after each token, [T, V]; a fresh state unless one is given to carry on."""
        return self.head(self.hidden(ids, state or self.state(), position_ids))

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """The n most likely next tokens, one by one."""
        state, out = self.state(), []
        fed: Sequence[int] = ids
        for _ in range(n):
            out.append(int(self.logits(fed, state)[-1].argmax()))
            fed = out[-1:]
        return out

    def mtp_hidden(
        self,
        next_ids: ArrayLike,
        hidden: Array,
        state: State,
        position_ids: ArrayLike | None = None,
    ) -> Array:
        """The drafting layer: [T, D] hidden whose head() guesses the token after next_ids.

        hidden [T, D] is what hidden() returned at the token before each of next_ids, or, for
        further drafts, what this returned. `state` is this layer's own, see mtp_state().
        """
        d, w = self.dims, self.part("mtp.")
        ids = np.asarray(next_ids)
        at = positions(state, len(ids), position_ids)
        e = rms_norm(
            self.w[ROOT + "embed_tokens.weight"][ids], w["pre_fc_norm_embedding.weight"], d.eps
        )
        h = rms_norm(hidden, w["pre_fc_norm_hidden.weight"], d.eps)
        x = linear(np.concatenate((e, h), axis=1), w["fc.weight"])
        h = rms_norm(x, w["layers.0.input_layernorm.weight"], d.eps)
        a = self.part("mtp.layers.0.self_attn.")
        h, state.k[0], state.v[0] = gated_attention(d, a, h, at, state.k[0], state.v[0])
        x = x + h
        h = rms_norm(x, w["layers.0.post_attention_layernorm.weight"], d.eps)
        x = x + mlp(self.part("mtp.layers.0.mlp."), h)
        return rms_norm(x, w["norm.weight"], d.eps)

    def mtp_state(self) -> State:
        """The drafting layer's state before its first token, which is the prompt's second."""
        empty = np.zeros((0, self.dims.Hkv, self.dims.Dh), self.dtype)
        return State(k={0: empty}, v={0: empty}, next_position=1)
