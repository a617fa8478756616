"""Oracle: the NumPy reference in float64, one mixer at a time, on geometries at the edges of what a
config may say.

Float32 against float64 through one or two layers: 2e-5 of the largest logit is some hundred
roundings, and 20 times below what float16 or bfloat16 anywhere in between would cost. The exception
is DeltaNet's output norm: a head whose output is small by chance is divided by a small number,
error and all.
"""

from __future__ import annotations

from typing import Any

import core_models
import numpy as np
import pytest
from golden import blocks

from qwen35 import ModelFormatError, _core

FLOAT32 = 2e-5
LINEAR: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"linear_num_key_heads": 1, "linear_num_value_heads": 1},
    "3 value heads a key head": {"linear_num_value_heads": 6},
    "tiny heads": {"linear_key_head_dim": 1, "linear_value_head_dim": 3},
    "a column block": {"linear_value_head_dim": 32, "linear_key_head_dim": 33},
    "a block and one": {"linear_value_head_dim": 33, "linear_key_head_dim": 31},
    "released heads": {"linear_value_head_dim": 128, "linear_key_head_dim": 128},
    "wide heads": {"linear_value_head_dim": 200, "linear_key_head_dim": 150},
    "no convolution": {"linear_conv_kernel_dim": 1},
    "2 taps": {"linear_conv_kernel_dim": 2},
    "9 taps": {"linear_conv_kernel_dim": 9},
}
FULL: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "no groups": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "one kv head of 7": {"num_attention_heads": 7, "num_key_value_heads": 1},
    "one kv head of 40": {"num_attention_heads": 40, "num_key_value_heads": 1, "head_dim": 12},
    "released heads": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 256},
    "odd heads": {"head_dim": 37},
}
LENGTHS = (1, 2, 7, 64, 65, 150)


def check(text: dict[str, Any], T: int, *, kinds: list[str], **options: Any) -> None:
    core, reference = core_models.both(
        seed=T, num_hidden_layers=len(kinds), layer_types=kinds, **options, **text
    )
    ids = core_models.tokens(T, T)
    got = core.session(T).logits_all(ids)
    assert core_models.relative_error(got, reference.logits(ids)) <= FLOAT32


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("case", LINEAR)
def test_gated_delta_net(case: str, T: int) -> None:
    check(LINEAR[case], T, kinds=["linear_attention"])


@pytest.mark.parametrize("Hv", [2, 4, 6])
def test_tiled_value_heads(Hv: int) -> None:
    """GGUF's order, value head r of key head k at r Hk + k, in all seven tensors that have it."""
    fields = core_models.config(
        num_hidden_layers=1, layer_types=["linear_attention"], linear_num_value_heads=Hv
    )
    tensors = core_models.checkpoints.make_tensors(fields, seed=3, dtype="float32", mtp=False)
    t = fields["text_config"]
    Hk, Dk, Dv = (t[f"linear_{n}"] for n in ("num_key_heads", "key_head_dim", "value_head_dim"))
    heads = [k * (Hv // Hk) + r for r in range(Hv // Hk) for k in range(Hk)]
    columns = [h * Dv + i for h in heads for i in range(Dv)]
    convolved = [*range(2 * Hk * Dk), *(2 * Hk * Dk + c for c in columns)]
    orders = {"in_proj_qkv.weight": convolved, "conv1d.weight": convolved}
    orders |= {f"in_proj_{n}.weight": heads for n in "ab"} | {"in_proj_z.weight": columns}
    orders |= {"A_log": heads, "dt_bias": heads}
    tiled = dict(tensors)
    for name, order in orders.items():
        name = f"model.language_model.layers.0.linear_attn.{name}"
        tiled[name] = tensors[name][order].copy()
    out = "model.language_model.layers.0.linear_attn.out_proj.weight"
    tiled[out] = tensors[out][:, columns].copy()
    geometry = core_models.geometry(fields) | {"tiled_value_heads": True}
    ids = core_models.tokens(3, 20)
    got = _core.Model(geometry, tiled).session(20).logits_all(ids)
    want = core_models.Reference(fields, tensors).logits(ids)
    assert core_models.relative_error(got, want) <= FLOAT32


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("case", FULL)
def test_gated_attention(case: str, T: int) -> None:
    check(FULL[case], T, kinds=["full_attention"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_weight_types(dtype: str, tied: bool) -> None:
    check(
        {"tie_word_embeddings": tied}, 40, kinds=["linear_attention", "full_attention"], dtype=dtype
    )


@pytest.mark.parametrize("width", [64, 65, 79, 81, 97])
def test_widths(width: int) -> None:
    """Hidden and MLP sizes around the vector widths."""
    check(
        {"hidden_size": width, "intermediate_size": width - 30},
        20,
        kinds=["linear_attention", "full_attention"],
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads: int) -> None:
    check({}, 70, kinds=["linear_attention", "full_attention"], threads=threads)


def test_thread_count_changes_no_bit() -> None:
    ids = core_models.tokens(1, 90)
    one, three = (core_models.both(threads=n)[0].session(90).logits_all(ids) for n in (1, 3))
    assert np.array_equal(one, three)


@pytest.mark.parametrize("seed", range(3))
def test_three_position_rows(seed: int) -> None:
    """Positions as images make them, fewer than tokens; then text goes on after the largest."""
    core, reference = core_models.both(
        seed=seed, layer_types=["full_attention"] * 2, num_hidden_layers=2
    )
    ids = core_models.tokens(seed, 60)
    rng = np.random.default_rng(seed)
    rows = [np.arange(40) // 9, rng.integers(0, 8, 40), rng.integers(0, 12, 40)]
    at = np.stack(rows).astype(np.int32)
    session, state = core.session(60), reference.state()
    first = session.logits_all(ids[:40], position_ids=at)
    assert core_models.relative_error(first, reference.logits(ids[:40], state, at)) <= FLOAT32
    then = session.logits_all(ids[40:])
    assert core_models.relative_error(then, reference.logits(ids[40:], state)) <= FLOAT32


def test_far_positions() -> None:
    """At position 250,000 a float32 angle is off by 0.01: both have to be off by the same."""
    core, reference = core_models.both(seed=4, layer_types=["full_attention"], num_hidden_layers=1)
    ids = core_models.tokens(4, 30)
    at = np.broadcast_to(np.arange(250_000, 250_030), (3, 30)).astype(np.int32)
    got = core.session(30).logits_all(ids, position_ids=at)
    assert core_models.relative_error(got, reference.logits(ids, position_ids=at)) <= FLOAT32


def test_yarn() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1000.0, "partial_rotary_factor": 0.5, "factor": 8.0,
            "original_max_position_embeddings": 32, "mrope_section": [4, 3, 3]}  # fmt: skip
    check({"rope_parameters": rope, "max_position_embeddings": 256}, 200, kinds=["full_attention"])


@pytest.mark.parametrize(
    ("kv", "bound"),
    [
        ("int16", 2e-3),
        ("float32", FLOAT32),
        ("float16", 2e-3),
        ("bfloat16", 1.6e-2),
        ("q8_0", 1.6e-2),
    ],
)
def test_kv_types(kv: str, bound: float) -> None:
    """Keys and values rounded to 11 or 8 bits: a share of 2^-11 or 2^-8 each, times 4. int16 keeps
    a vector to 1e-4 of its norm, as 11 bits of each number do.
    """
    core, reference = core_models.both(
        seed=5, kv=kv, layer_types=["full_attention"] * 2, num_hidden_layers=2, head_dim=64
    )
    ids = core_models.tokens(5, 100)
    error = core_models.relative_error(core.session(100).logits_all(ids), reference.logits(ids))
    assert error <= bound
    assert kv == "float32" or error > FLOAT32, "the K/V type is not in use"


@pytest.mark.parametrize("head_dim", [12, 37, 80])
def test_integer_keys_of_any_head(head_dim: int) -> None:
    """Pairs and vectors that the head does not fill; bound as above."""
    core, reference = core_models.both(
        seed=6, kv="int16", layer_types=["full_attention"], num_hidden_layers=1, head_dim=head_dim
    )
    ids = core_models.tokens(6, 150)
    error = core_models.relative_error(core.session(150).logits_all(ids), reference.logits(ids))
    assert error <= 2e-3


@pytest.mark.parametrize("kv", ["float32", "float16", "int16", "q8_0"])
def test_work_split_over_threads(kv: str) -> None:
    """2,300 positions are three segments. Read at once, whoever adds them up, and token by token
    with the segments as tasks: the same bits, and the reference's logits. So with DeltaNet's two
    column blocks, which are one task or two. Bounds as in test_kv_types.
    """
    shape: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    shape |= {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
    shape |= {"linear_value_head_dim": 40}
    ids = core_models.tokens(7, 2300)
    one, reference = core_models.both(seed=7, kv=kv, threads=1, **shape)
    whole = one.session(2300).logits_all(ids)
    bound = {"float32": FLOAT32, "q8_0": 1.6e-2}.get(kv, 2e-3)
    assert core_models.relative_error(whole[-100:], reference.logits(ids)[-100:]) <= bound
    for threads in (1, 2, 8):
        session = core_models.both(seed=7, kv=kv, threads=threads, **shape)[0].session(2300)
        session.prefill(ids[:1000])
        session.prefill(ids[1000:2280])
        for first, last in ((2280, 2281), (2281, 2284), (2284, 2300)):
            session.prefill(ids[first:last])
            if _core.cpu()["isa"] == "c":  # long products are OpenBLAS's there
                assert core_models.relative_error(session.logits, whole[last - 1]) <= 1e-5
            else:
                assert np.array_equal(session.logits, whole[last - 1])


def test_kv_blocks_need_whole_heads() -> None:
    with pytest.raises(ValueError, match="kv_dtype q8_0: heads of 37 are no multiple"):
        core_models.both(kv="q8_0", head_dim=37)


@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize("kind", blocks.FIELDS)
def test_matrices_in_blocks(kind: str, T: int) -> None:
    """Every block type as it lies in a file, against the reference on its decoded numbers, scaled
    to the size of weights; the odd vectors between stay float32.
    """
    fields = core_models.config(
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        hidden_size=256,
        intermediate_size=512,
        linear_value_head_dim=64,
        linear_num_value_heads=4,
        num_attention_heads=4,
        head_dim=64,
    )
    tensors = core_models.checkpoints.make_tensors(fields, seed=1, dtype="float32", mtp=False)
    given: dict[str, Any] = {}
    for name, x in tensors.items():
        given[name] = x
        if x.ndim != 2 or x.shape[1] % 256:
            continue
        encodable = _core.formats()[kind][3]
        encoded = _core.encode_blocks(kind, x) if encodable else None
        raw = blocks.weights(kind, x.shape, len(given)) if encoded is None else encoded
        given[name] = (kind, raw)
        tensors[name] = _core.decode_blocks(kind, raw, x.size).reshape(x.shape)
    assert sum(isinstance(x, tuple) for x in given.values()) > 10
    ids = core_models.tokens(T, T)
    got = _core.Model(core_models.geometry(fields), given, kv_dtype="float32").session(T)
    want = core_models.Reference(fields, tensors).logits(ids)
    assert core_models.relative_error(got.logits_all(ids), want) <= FLOAT32


def test_many_layers() -> None:
    """The whole model: 12 layers magnify rounding; the project's own bound against transformers is
    2e-4.
    """
    core, reference = core_models.both(seed=6, num_hidden_layers=12)
    ids = core_models.tokens(6, 130)
    assert (
        core_models.relative_error(core.session(130).logits_all(ids), reference.logits(ids)) <= 1e-4
    )


def test_long_prefill_crosses_chunks() -> None:
    """Over 512 tokens: several forward calls inside one append, and pages of K/V."""
    core, reference = core_models.both(seed=7)
    ids = core_models.tokens(7, 1100)
    session = core.session(1100)
    session.prefill(ids)
    want = reference.logits(ids)[-1]
    assert core_models.relative_error(session.logits, want) <= 1e-4


def test_score_is_log_softmax_of_the_rows_before() -> None:
    core, reference = core_models.both(seed=8)
    ids = core_models.tokens(8, 50)
    rows = reference.logits(ids)
    rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    session = core.session(50)
    session.prefill(ids[:20])
    logprobs, likely = session.score(ids[20:])
    assert logprobs == pytest.approx([rows[t - 1, ids[t]] for t in range(20, 50)], abs=1e-3)
    assert likely.tolist() == rows[19:49].argmax(axis=1).tolist()


# ---- weights -------------------------------------------------------------------------------------


def test_expected_tensors_are_the_checkpoints() -> None:
    import checkpoints

    for text in (
        {},
        {"tie_word_embeddings": False},
        {"linear_num_value_heads": 6, "num_hidden_layers": 9},
    ):
        fields = core_models.config(**text)
        inner = fields["text_config"] | {"tie_word_embeddings": fields["tie_word_embeddings"]}
        assert dict(
            _core.expected_tensors(core_models.geometry(fields))
        ) == checkpoints.text_shapes(inner)


@pytest.mark.parametrize(
    "name", ["model.language_model.layers.1.linear_attn.A_log", "model.language_model.norm.weight"]
)
def test_missing_tensor_is_named(name: str) -> None:
    import checkpoints

    fields = core_models.config()
    tensors = checkpoints.make_tensors(fields, mtp=False)
    del tensors[name]
    with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")):
        core_models.core_model(fields, tensors)


def test_misshapen_tensor_is_named() -> None:
    import checkpoints

    fields, name = core_models.config(), "model.language_model.layers.0.mlp.up_proj.weight"
    tensors = checkpoints.make_tensors(fields, mtp=False)
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    with pytest.raises(ModelFormatError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        core_models.core_model(fields, tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"num_attention_heads": 5},
        {"linear_num_value_heads": 3},
        {"linear_conv_kernel_dim": 64},
        {"layer_types": ["full"]},
    ],
)
def test_impossible_geometry_is_an_error(change: dict[str, Any]) -> None:
    """The core defends itself, whatever the config reader has let through."""
    import checkpoints

    fields = core_models.config()
    geometry = core_models.geometry(fields) | change
    with pytest.raises((ValueError, ModelFormatError)):
        _core.Model(geometry, checkpoints.make_tensors(fields, dtype="float32", mtp=False))


def test_tensors_are_kept_alive() -> None:
    """The model reads the arrays it was given; dropping the last other reference must not free
    them.
    """
    import gc

    core, reference = core_models.both(seed=9, dtype="float32")
    gc.collect()
    _ = [np.full(100_000, np.nan, np.float32) for _ in range(50)]
    ids = core_models.tokens(9, 10)
    assert (
        core_models.relative_error(core.session(10).logits_all(ids), reference.logits(ids)) <= 1e-4
    )
