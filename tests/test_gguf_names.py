"""Oracle: literal loops over heads, literal names, and the way back of llama.cpp's converter as
benchmarks/write_gguf.py describes it, written out again here.
"""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf_writer import (
    SIZES,
    blocks,
    text_metadata,
    text_shapes,
    text_tensors,
    vision_metadata,
    vision_tensors,
    write_gguf,
)

from qwen35 import _core
from qwen35.checkpoint import mtp_tensors
from qwen35.config import Config
from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.gguf_config import read_config
from qwen35.gguf_file import GgufModel, open_gguf
from qwen35.gguf_names import (
    bind,
    expanded,
    released_head_order,
    released_name,
    released_shape,
    restored,
    source_of,
    stored_head_order,
    stored_names,
)

RNG = np.random.default_rng(3)
LAYER = "model.language_model.layers.0."
HEADS = [(1, 1), (2, 2), (2, 6), (3, 6), (4, 8), (16, 32), (16, 48)]


def opened(folder: Path, drafts: int = 0) -> tuple[GgufModel, Config]:
    """A tiny text model, with Hv = 3 Hk."""
    metadata = text_metadata(
        **{
            "qwen35.block_count": SIZES["layers"] + drafts,
            "qwen35.nextn_predict_layers": drafts or None,
        }
    )
    model = open_gguf(write_gguf(folder / "x.gguf", metadata, text_tensors(drafts)))
    return model, read_config(model)


def expected(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """Released names and shapes, as a checkpoint's are checked."""
    names = list(_core.expected_tensors(config.geometry(vision=False)))
    return names + list(
        mtp_tensors(config.text).items() if config.text.mtp_num_hidden_layers else ()
    )


def to_stored(x: np.ndarray, keys: int, values: int, width: int) -> np.ndarray:
    """Released rows -> stored rows, head by head: the j-th value head of key head k goes to place
    j * Hk + k.
    """
    each = values // keys
    out = np.empty_like(x)
    for k in range(keys):
        for j in range(each):
            h, t = k * each + j, j * keys + k
            out[t * width : (t + 1) * width] = x[h * width : (h + 1) * width]
    return out


@pytest.mark.parametrize(("keys", "values"), HEADS)
def test_head_orders(keys: int, values: int) -> None:
    released, stored = released_head_order(keys, values), stored_head_order(keys, values)
    for t in range(values):
        h = int(stored[t])
        assert released[h] == t
        assert h // (values // keys) == t % keys  # both say the same key head
    assert sorted(stored) == list(range(values))
    if keys == values:
        assert released.tolist() == list(range(values))


@pytest.mark.parametrize(("keys", "values"), HEADS)
def test_rows_go_back(keys: int, values: int) -> None:
    x = RNG.standard_normal((values * 5, 3))
    back = to_stored(x, keys, values, 5)[expanded(released_head_order(keys, values), 5)]
    np.testing.assert_array_equal(back, x)
    head = RNG.standard_normal((4, 3))  # rows that stay, in front
    both = np.concatenate([head, to_stored(x, keys, values, 5)])
    order = expanded(released_head_order(keys, values), 5, begin=4)
    np.testing.assert_array_equal(both[order], np.concatenate([head, x]))


def test_columns_as_an_order_of_activations() -> None:
    """What an engine does that keeps out_proj as stored: it feeds the heads in stored order."""
    keys, values, width = 2, 6, 4
    weight, x = RNG.standard_normal((7, values * width)), RNG.standard_normal(values * width)
    stored = to_stored(weight.T, keys, values, width).T
    fed = x.reshape(values, width)[stored_head_order(keys, values)].reshape(-1)
    np.testing.assert_allclose(stored @ fed, weight @ x, rtol=1e-12)


def test_seven_families(tmp_path: Path) -> None:
    """Each released tensor, its stored one made by a loop over heads, and back."""
    _, config = opened(tmp_path)
    text = config.text
    keys, values, dim = SIZES["key_heads"], SIZES["value_heads"], SIZES["linear_dim"]
    front = 2 * keys * dim
    f32 = np.float32

    def check(name: str, released: np.ndarray, stored: np.ndarray, rtol: float = 0) -> None:
        source = source_of(LAYER + "linear_attn." + name, text)
        assert source is not None
        found = restored(source, [stored], head_dim=dim)
        assert found.shape == released.shape == released_shape(source, [stored.shape])
        np.testing.assert_allclose(found.astype(f32), released.astype(f32), rtol=rtol)

    qkv = RNG.standard_normal((front + values * dim, 5)).astype(ml_dtypes.bfloat16)
    tail = to_stored(qkv[front:], keys, values, dim)
    check("in_proj_qkv.weight", qkv, np.concatenate([qkv[:front], tail]))
    conv = RNG.standard_normal((front + values * dim, 1, 4)).astype(f32)
    tail = to_stored(conv[front:, 0], keys, values, dim)
    check("conv1d.weight", conv, np.concatenate([conv[:front, 0], tail]))
    z = RNG.standard_normal((values * dim, 5)).astype(f32)
    check("in_proj_z.weight", z, to_stored(z, keys, values, dim))
    for name in ("in_proj_a.weight", "in_proj_b.weight"):
        x = RNG.standard_normal((values, 5)).astype(f32)
        check(name, x, to_stored(x, keys, values, 1))
    bias = RNG.standard_normal(values).astype(f32)
    check("dt_bias", bias, to_stored(bias, keys, values, 1))
    log = RNG.standard_normal(values).astype(f32)
    check("A_log", log, to_stored(-np.exp(log), keys, values, 1), rtol=1e-6)
    out = RNG.standard_normal((5, values * dim)).astype(f32)
    check("out_proj.weight", out, to_stored(out.T, keys, values, dim).T)
    norm = RNG.standard_normal(dim).astype(f32)
    check("norm.weight", norm, norm)


def test_as_many_value_heads_as_key_heads_move_nothing(tmp_path: Path) -> None:
    _, config = opened(tmp_path)
    text = dataclasses.replace(config.text, linear_num_value_heads=2)
    for name, _ in expected(config):
        source = source_of(name, text)
        assert source is not None and source.rows is None and source.column_heads is None


def test_rows_of_blocks_move_whole(tmp_path: Path) -> None:
    _, config = opened(tmp_path)
    keys, values, dim = SIZES["key_heads"], SIZES["value_heads"], SIZES["linear_dim"]
    rows = RNG.integers(0, 256, (values * dim, 34), dtype=np.uint8)
    source = source_of(LAYER + "linear_attn.in_proj_z.weight", config.text)
    found = restored(source, [to_stored(rows, keys, values, dim)], head_dim=dim)
    np.testing.assert_array_equal(found, rows)
    for name in ("out_proj.weight", "conv1d.weight", "A_log"):
        source = source_of(LAYER + "linear_attn." + name, config.text)
        with pytest.raises(UnsupportedModelError, match="stored in blocks"):
            restored(source, [rows], head_dim=dim)


def test_norms_lose_their_one(tmp_path: Path) -> None:
    _, config = opened(tmp_path, drafts=1)
    with_one = [
        "model.language_model.norm.weight",
        LAYER + "input_layernorm.weight",
        LAYER + "post_attention_layernorm.weight",
        "model.language_model.layers.3.self_attn.q_norm.weight",
        "model.language_model.layers.3.self_attn.k_norm.weight",
        "mtp.norm.weight",
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.pre_fc_norm_hidden.weight",
        "mtp.layers.0.input_layernorm.weight",
        "mtp.layers.0.self_attn.k_norm.weight",
    ]
    for name, _ in expected(config):
        is_norm = "norm" in name and "linear_attn" not in name
        assert (source_of(name, config.text).transform == "minus_one") == is_norm
    for name in with_one:
        source = source_of(name, config.text)
        weight = np.array([0.5, -0.25, 0.0], ml_dtypes.bfloat16)
        found = restored(source, [weight.astype(np.float32) + 1], head_dim=8)
        assert found.dtype == np.float32 and found.tolist() == [0.5, -0.25, 0]


def test_a_log_of_edge_values(tmp_path: Path) -> None:
    _, config = opened(tmp_path)
    source = source_of(LAYER + "linear_attn.A_log", config.text)
    source = dataclasses.replace(source, rows=None)
    found = restored(source, [np.array([-1, -0.0, np.nan], np.float32)], head_dim=8)
    assert found[0] == 0 and found[1] == -np.inf and np.isnan(found[2])
    with pytest.raises(ModelFormatError, match="never above 0"):
        restored(source, [np.array([-1, 0.5], np.float32)], head_dim=8)


NAMES = {
    "model.language_model.embed_tokens.weight": "token_embd.weight",
    "model.language_model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.language_model.layers.0.linear_attn.in_proj_qkv.weight": "blk.0.attn_qkv.weight",
    "model.language_model.layers.23.linear_attn.in_proj_z.weight": "blk.23.attn_gate.weight",
    "model.language_model.layers.1.linear_attn.A_log": "blk.1.ssm_a",
    "model.language_model.layers.1.linear_attn.dt_bias": "blk.1.ssm_dt.bias",
    "model.language_model.layers.1.linear_attn.in_proj_a.weight": "blk.1.ssm_alpha.weight",
    "model.language_model.layers.1.linear_attn.in_proj_b.weight": "blk.1.ssm_beta.weight",
    "model.language_model.layers.3.self_attn.o_proj.weight": "blk.3.attn_output.weight",
    "mtp.fc.weight": "blk.24.nextn.eh_proj.weight",
    "mtp.norm.weight": "blk.24.nextn.shared_head_norm.weight",
    "mtp.pre_fc_norm_embedding.weight": "blk.24.nextn.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "blk.24.nextn.hnorm.weight",
    "mtp.layers.0.mlp.down_proj.weight": "blk.24.ffn_down.weight",
    "mtp.layers.1.self_attn.q_proj.weight": "blk.25.attn_q.weight",
    "model.visual.patch_embed.proj.bias": "v.patch_embd.bias",
    "model.visual.pos_embed.weight": "v.position_embd.weight",
    "model.visual.blocks.11.attn.proj.bias": "v.blk.11.attn_out.bias",
    "model.visual.blocks.0.mlp.linear_fc1.weight": "v.blk.0.ffn_up.weight",
    "model.visual.blocks.0.norm2.weight": "v.blk.0.ln2.weight",
    "model.visual.merger.norm.bias": "v.post_ln.bias",
    "model.visual.merger.linear_fc1.weight": "mm.0.weight",
    "model.visual.merger.linear_fc2.bias": "mm.2.bias",
    "model.visual.deepstack_merger_list.1.norm.weight": "v.deepstack.8.norm.weight",
    "model.visual.deepstack_merger_list.0.linear_fc2.bias": "v.deepstack.5.fc2.bias",
}


@pytest.mark.parametrize(("name", "stored"), NAMES.items())
def test_names_both_ways(name: str, stored: str) -> None:
    assert stored_names(name, 24, deepstack=(5, 8)) == (stored,)
    assert released_name(stored, 24, deepstack=(5, 8)) == name


def test_patch_convolution_is_stored_in_two() -> None:
    name = "model.visual.patch_embed.proj.weight"
    halves = ("v.patch_embd.weight", "v.patch_embd.weight.1")
    assert stored_names(name, 24) == halves
    assert [released_name(half, 24) for half in halves] == [name, name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "mtp.",
        "mtp.layers.x.input_layernorm.weight",
        "model.language_model.layers.0.bias",
        "model.language_model.layers.-1.mlp.up_proj.weight",
        "model.language_model.layers.²3.mlp.up_proj.weight",
        "model.visual.blocks.0.norm3.weight",
        "model.visual.deepstack_merger_list.2.norm.weight",
        "model.visual.merger.norm",
    ],
)
def test_unknown_released_names(name: str) -> None:
    assert stored_names(name, 24, deepstack=(5, 8)) == ()


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "blk.",
        "blk.0",
        "blk.x.attn_q.weight",
        "blk.99999.attn_q.weight",
        "blk.0.attn_q",
        "blk.0.nextn.eh_proj.weight",
        "blk.25.nextn.eh_proj.weight",
        "blk.24.nextn.embed_tokens.weight",
        "v.patch_embd.weight.2",
        "v.deepstack.6.norm.weight",
        "mm.1.weight",
        "rope_freqs.weight",
    ],
)
def test_unknown_stored_names(stored: str) -> None:
    assert released_name(stored, 24, deepstack=(5, 8)) is None


@pytest.mark.parametrize("drafts", [0, 1])
def test_every_tensor_of_a_text_model(tmp_path: Path, drafts: int) -> None:
    model, config = opened(tmp_path, drafts)
    wanted = expected(config)
    sources = bind(wanted, model.spans, config.text, where="x")
    assert list(sources) == [name for name, _ in wanted]
    used = [stored for source in sources.values() for stored in source.stored]
    assert sorted(used) == sorted(text_shapes(drafts)) == sorted(model)
    for name, shape in wanted:
        arrays = [model[stored] for stored in sources[name].stored]
        assert restored(sources[name], arrays, head_dim=SIZES["linear_dim"]).shape == shape
        assert [released_name(stored, SIZES["layers"]) for stored in sources[name].stored] == [name]


def test_drafts_may_be_left_over(tmp_path: Path) -> None:
    model, config = opened(tmp_path, drafts=1)
    wanted = _core.expected_tensors(config.geometry(vision=False))
    assert len(bind(wanted, model.spans, config.text, where="x")) == len(wanted)


@pytest.mark.parametrize("deepstack", [(), (0, 2)])
def test_every_tensor_of_a_vision_file(tmp_path: Path, deepstack: tuple[int, ...]) -> None:
    text = open_gguf(write_gguf(tmp_path / "x.gguf", text_metadata(), text_tensors()))
    flags = [i in deepstack for i in range(3)]
    written = vision_tensors(deepstack)
    model = open_gguf(
        write_gguf(
            tmp_path / "v.gguf",
            vision_metadata(**{"clip.vision.is_deepstack_layers": flags}),
            written,
        )
    )
    config = read_config(text, model)
    wanted = [
        entry
        for entry in _core.expected_tensors(config.geometry())
        if entry[0].startswith("model.visual.")
    ]
    sources = bind(wanted, model.spans, config.text, deepstack=deepstack, where="v")
    used = [stored for source in sources.values() for stored in source.stored]
    assert sorted(used) == sorted(written)
    patch = sources["model.visual.patch_embed.proj.weight"]
    halves = [model[stored] for stored in patch.stored]
    whole = restored(patch, halves, head_dim=8)
    assert whole.shape == dict(wanted)[patch.name]
    for frame in range(2):
        np.testing.assert_array_equal(whole[:, :, frame], halves[frame])


def test_28_missing_extra_and_wrong(tmp_path: Path) -> None:
    model, config = opened(tmp_path)
    wanted, spans = expected(config), dict(model.spans)
    moved = spans.pop("blk.0.ffn_up.weight")
    with pytest.raises(ModelFormatError, match="1 missing: 'blk.0.ffn_up.weight'"):
        bind(wanted, spans, config.text, where="x")
    spans |= {"blk.0.ffn_up.weight": moved, "rope_freqs.weight": moved}
    with pytest.raises(ModelFormatError, match="1 unexpected: 'rope_freqs.weight'"):
        bind(wanted, spans, config.text, where="x")
    del spans["rope_freqs.weight"]
    spans["blk.0.ffn_up.weight"] = dataclasses.replace(moved, shape=moved.shape[::-1])
    with pytest.raises(ModelFormatError, match=r"of the wrong shape: .*\[32, 40\]"):
        bind(wanted, spans, config.text, where="x")


def test_vectors_in_blocks(tmp_path: Path) -> None:
    tensors = text_tensors() | {"blk.1.attn_norm.weight": blocks("Q8_0", (32,), bytes(34))}
    model = open_gguf(write_gguf(tmp_path / "x.gguf", text_metadata(), tensors))
    config = read_config(model)
    with pytest.raises(UnsupportedModelError, match="'blk.1.attn_norm.weight' is Q8_0"):
        bind(expected(config), model.spans, config.text, where="x")
