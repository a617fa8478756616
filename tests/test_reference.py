"""Oracle: literals worked by hand, and properties that hold whatever the weights. (parity/ asks
transformers.)

The NumPy reference is the witness of all other tests, so it gets the smallest checks: one number at
a time.
"""

import math

import numpy as np
import pytest
import reference as ref

SMALL = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "vocab_size": 53,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 1],
    },
}


def shapes(d: ref.Dims) -> dict[str, tuple[int, ...]]:
    """Every text tensor of a checkpoint, MTP included, by the table of MODEL.md."""
    block = {
        "input_layernorm.weight": (d.D,),
        "post_attention_layernorm.weight": (d.D,),
        "mlp.gate_proj.weight": (d.F, d.D),
        "mlp.up_proj.weight": (d.F, d.D),
        "mlp.down_proj.weight": (d.D, d.F),
    }
    full = {
        "self_attn.q_proj.weight": (2 * d.Hq * d.Dh, d.D),
        "self_attn.k_proj.weight": (d.Hkv * d.Dh, d.D),
        "self_attn.v_proj.weight": (d.Hkv * d.Dh, d.D),
        "self_attn.o_proj.weight": (d.D, d.Hq * d.Dh),
        "self_attn.q_norm.weight": (d.Dh,),
        "self_attn.k_norm.weight": (d.Dh,),
    }
    linear = {
        "linear_attn.in_proj_qkv.weight": (d.C, d.D),
        "linear_attn.in_proj_z.weight": (d.Hv * d.Dv, d.D),
        "linear_attn.in_proj_b.weight": (d.Hv, d.D),
        "linear_attn.in_proj_a.weight": (d.Hv, d.D),
        "linear_attn.conv1d.weight": (d.C, 1, d.K),
        "linear_attn.A_log": (d.Hv,),
        "linear_attn.dt_bias": (d.Hv,),
        "linear_attn.norm.weight": (d.Dv,),
        "linear_attn.out_proj.weight": (d.D, d.Hv * d.Dv),
    }
    out: dict[str, tuple[int, ...]] = {
        ref.ROOT + "embed_tokens.weight": (d.V, d.D),
        ref.ROOT + "norm.weight": (d.D,),
    }
    if not d.tied:
        out["lm_head.weight"] = (d.V, d.D)
    for i, kind in enumerate(d.layer_types):
        mixer = linear if kind == "linear_attention" else full
        out |= {f"{ref.ROOT}layers.{i}.{n}": s for n, s in (block | mixer).items()}
    out |= {"mtp.fc.weight": (d.D, 2 * d.D)}
    out |= {
        f"mtp.{n}.weight": (d.D,) for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    }
    return out | {f"mtp.layers.0.{n}": s for n, s in (block | full).items()}


@pytest.fixture(scope="module")
def model() -> ref.Reference:
    rng = np.random.default_rng(5)
    table = shapes(ref.Dims.from_config(SMALL))
    tensors = {n: rng.normal(0, 0.8 / math.sqrt(s[-1]), s) for n, s in table.items()}
    return ref.Reference(SMALL, tensors)


def test_norms_by_hand() -> None:
    x = np.array([3.0, 4.0])  # mean square 12.5
    assert ref.rms_norm(x, np.array([0.0, 1.0]), 0.0) == pytest.approx(
        [3 / 12.5**0.5, 2 * 4 / 12.5**0.5]
    )
    assert ref.unit_l2(x) == pytest.approx([0.6, 0.8], rel=1e-7)
    assert ref.unit_l2(np.array([1e-3, 0.0]))[0] == pytest.approx(
        2**-0.5
    )  # 1e-6 joins the square, not the root


def test_softplus_is_linear_above_20() -> None:
    assert ref.softplus(np.array([0.0, 20.5, 1000.0])).tolist() == [math.log(2), 20.5, 1000.0]


def test_conv_by_hand() -> None:
    """One channel, taps 10, 1: y[t] = 10 x[t-1] + x[t] before SiLU; the tail is the last input."""
    y, tail = ref.causal_conv(np.array([[2.0], [3.0]]), np.array([[1.0]]), np.array([[10.0, 1.0]]))
    assert y[:, 0] == pytest.approx([12 / (1 + math.exp(-12)), 23 / (1 + math.exp(-23))])
    assert tail.tolist() == [[3.0]]


def test_conv_tail_longer_than_the_call() -> None:
    _, tail = ref.causal_conv(np.array([[4.0]]), np.array([[1.0], [2.0], [3.0]]), np.ones((1, 4)))
    assert tail[:, 0].tolist() == [2.0, 3.0, 4.0]


def test_delta_rule_by_hand() -> None:
    """State [[1], [0]], decay 1/2; then k = e2, v = 5, beta = 1/2 writes 2.5 to row 2; q reads both
    rows.
    """
    out, M = ref.delta_rule(
        q=np.array([[2.0, 4.0]]),
        k=np.array([[0.0, 1.0]]),
        v=np.array([[5.0]]),
        decay=np.array([0.5]),
        beta=np.array([0.5]),
        state=np.array([[1.0], [0.0]]),
    )
    assert M.tolist() == [[0.5], [2.5]]
    assert out.tolist() == [[11.0]]


def test_delta_rule_overwrites_what_a_key_held() -> None:
    """beta = 1 and a unit key: what the key reads is the new value, whatever was there, and other
    keys keep theirs.
    """
    k = np.array([0.6, 0.8])
    _, M = ref.delta_rule(
        k[None], k[None], np.array([[7.0]]), np.ones(1), np.ones(1), np.array([[3.0], [-2.0]])
    )
    across = np.array([0.8, -0.6])
    assert k @ M == pytest.approx([7.0])
    assert across @ M == pytest.approx(across @ np.array([[3.0], [-2.0]]))


def test_mrope_rows_interleave() -> None:
    d = ref.Dims.from_config(
        SMALL
        | {"head_dim": 256, "rope_parameters": {"rope_theta": 1e7, "mrope_section": [11, 11, 10]}}
    )
    assert ref.mrope_axis(d).tolist() == [0, 1, 2] * 10 + [0, 1]
    assert d.Dr == 64


def test_rope_turns_pairs_half_a_head_apart() -> None:
    x = np.array([[[1.0, 0.0, 0.0, 2.0, 9.0]]])  # pairs (0, 2) and (1, 3); the fifth passes
    angle = np.array([[math.pi / 2, math.pi]])
    turned = ref.rope(x, np.cos(angle), np.sin(angle))[0, 0]
    assert turned == pytest.approx([0.0, 0.0, 1.0, -2.0, 9.0], abs=1e-15)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e7,
        "factor": 4.0,
        "original_max_position_embeddings": 262144,
    }
    plain, one = ref.rope_frequencies({"rope_theta": 1e7}, 64)
    slowed, gain = ref.rope_frequencies(rope, 64)
    assert one == 1.0
    assert gain == pytest.approx(0.1 * math.log(4) + 1)
    ratio = slowed / plain
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.25
    assert (np.diff(ratio) <= 0).all()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 17, 18])
def test_carried_state_equals_one_piece(model: ref.Reference, cut: int) -> None:
    """float64: only the order of sums in matrix products can differ."""
    ids = np.random.default_rng(cut).integers(0, 53, 19)
    whole, state = model.logits(ids), model.state()
    parts = np.concatenate((model.logits(ids[:cut], state), model.logits(ids[cut:], state)))
    assert parts == pytest.approx(whole, rel=1e-10, abs=1e-12)
    assert state.next_position == 19


def test_copied_state_is_independent(model: ref.Reference) -> None:
    state = model.state()
    model.logits([1, 2, 3], state)
    other = state.copy()
    model.logits([9, 9], other)
    assert model.logits([4], state)[0] == pytest.approx(model.logits([1, 2, 3, 4])[-1], rel=1e-10)


def test_no_token_sees_a_later_one(model: ref.Reference) -> None:
    a, b = np.arange(12), np.arange(12)
    b[7:] = 40
    assert model.logits(a)[:7] == pytest.approx(model.logits(b)[:7], rel=1e-10)
    assert abs(model.logits(a)[7:] - model.logits(b)[7:]).max() > 1e-3


def test_mtp_drafts_carry_state(model: ref.Reference) -> None:
    ids = np.random.default_rng(3).integers(0, 53, 11)
    hidden = model.hidden(ids, model.state())
    whole = model.mtp_hidden(ids[1:], hidden[:-1], model.mtp_state())
    state = model.mtp_state()
    first = model.mtp_hidden(ids[1:5], hidden[:4], state)
    second = model.mtp_hidden(ids[5:], hidden[4:-1], state)
    assert np.concatenate((first, second)) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_float32_stays_float32(model: ref.Reference) -> None:
    small = ref.Reference(SMALL, model.w, dtype=np.float32)
    got = small.logits([5, 6, 7])
    assert got.dtype == np.float32
    assert got == pytest.approx(model.logits([5, 6, 7]), abs=1e-5)
