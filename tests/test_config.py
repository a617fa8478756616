"""Oracle: literals, and transformers' own rotary embedding for the frequencies.

The numbers in the test names are items of the list of hostile inputs the project keeps: 1-4 files
that are no JSON, 5-16 JSON that is no model.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of

from qwen35.config import config_from, read_config
from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.json_file import parse_json

Change = Callable[[dict[str, Any]], object]


def changed(**text: Any) -> dict[str, Any]:
    """A good config with these text fields replaced, whatever they are."""
    raw = copy.deepcopy(config_of())
    raw["text_config"].update(text)
    return raw


def refusal(raw: dict[str, Any], error: type[Exception] = ModelFormatError) -> str:
    """The message that refuses this config.json."""
    raw = json.loads(json.dumps(raw))
    with pytest.raises(error) as caught:
        config_from(raw, where="config.json")
    message = str(caught.value)
    assert message.startswith("config.json: ")
    return message


def test_reads_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(eos_token_id=[3, 5], rms_norm_eps=1e-5)))
    config = read_config(path)
    assert (config.text.hidden_size, config.text.num_key_value_heads) == (72, 2)
    assert config.text.layer_types == ("linear_attention",) * 3 + ("full_attention",)
    assert config.text.eos_token_id == (3, 5)
    assert config.text.rms_norm_eps == 1e-5
    assert config.text.mrope_section == (2, 2, 1)
    assert config.vision is not None and config.vision.depth == 2
    geometry = config.geometry()
    assert geometry["tie_word_embeddings"] is True
    assert geometry["layer_types"][3] == "full_attention"
    assert geometry["inv_freq"].dtype == np.float32 and geometry["inv_freq"].shape == (5,)


def test_text_only_layout() -> None:
    config = config_from(config_of()["text_config"], where="config.json")
    assert config.vision is None and config.text.hidden_size == 72


def test_outer_tie_decides() -> None:
    raw = changed(tie_word_embeddings=True)
    raw["tie_word_embeddings"] = False
    assert config_from(raw, where="x").text.tie_word_embeddings is False
    del raw["tie_word_embeddings"]
    assert config_from(raw, where="x").text.tie_word_embeddings is True


# 1-4: files


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "loop", "missing"])
def test_01_not_a_regular_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    wanted = FileNotFoundError if kind == "missing" else ModelFormatError
    with pytest.raises(wanted, match="No such file" if kind == "missing" else "regular file"):
        read_config(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1 col 1: file is empty"),
        (b"  \n ", "file is empty"),
        (b'\xef\xbb\xbf{"a": 1}', "line 1 col 1: starts with a UTF-8 byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16 byte order mark"),
        (b'{"a":\n "\xff"}', "line 2 col 3: byte 0xff is not UTF-8"),
        (b'{"a": 1,\n "b": NaN}', "line 2 col 7: NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1,\n}', "line [12] col [0-9]+: "),
        (b'{"a": 1', "line 1 col [0-9]+: "),
        (b'{"a": "never ends', "line 1 col 7: "),
        (b'{"a": 1} {"b": 2}', "line 1 col 10: Extra data"),
        (b"[1, 2]", "expected a JSON object, found a list"),
        (b"17", "expected a JSON object, found 17"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1 col 7: a number of more than 64 digits"),
    ],
)
def test_02_broken_json(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_03_too_large(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    os.truncate(path, 1 << 30)  # sparse: takes no room on the disk
    with pytest.raises(ModelFormatError, match="larger than 16 MiB"):
        read_config(path)


@pytest.mark.parametrize("bomb", [b'{"a":' * 100_000, b"[" * 100_000, b'{"a":' + b"[" * 70])
def test_03_too_deep(bomb: bytes) -> None:
    with pytest.raises(ModelFormatError, match="line 1 col [0-9]+: nested deeper than 64"):
        parse_json(bomb, where="config.json")


def test_03_depth_64_and_brackets_in_strings_pass() -> None:
    inner = "[" * 63 + "]" * 63
    assert parse_json(('{"a":' + inner + ', "[[\\"": "' + "{[" * 99 + '"}').encode(), where="x")


def test_03_too_many_keys() -> None:
    data = b"{" + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}"
    with pytest.raises(ModelFormatError, match="more than 1000000 strings, numbers and brackets"):
        parse_json(data, where="config.json")


def test_03_scan_is_linear() -> None:
    """Quotes that never close would make a careless pattern quadratic: hours, not a blink."""
    with pytest.raises(ModelFormatError):
        parse_json(b'{"' + b'\\"' * 4_000_000, where="config.json")
    with pytest.raises(ModelFormatError):
        parse_json(b'{"a"' + b" " * 8_000_000 + b'"', where="config.json")


def test_04_duplicate_key() -> None:
    with pytest.raises(ModelFormatError, match="key 'hidden_size' appears twice"):
        parse_json(b'{"text_config": {"hidden_size": 64, "hidden_size": 128}}', where="config.json")


# 5-16: contents


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_5_moe", "llama", "qwen3_5_moe_text"])
def test_05_other_architecture(kind: str) -> None:
    raw = config_of() | {"model_type": kind}
    assert "supported: " in refusal(raw, UnsupportedModelError)
    assert "'qwen3_5'" in refusal(raw, UnsupportedModelError)


def test_05_other_text_model() -> None:
    message = refusal(changed(model_type="qwen3_5_moe_text"), UnsupportedModelError)
    assert "text_config.model_type='qwen3_5_moe_text'" in message


@pytest.mark.parametrize("kind", [None, 3, ["qwen3_5"]])
def test_05_no_model_type(kind: Any) -> None:
    assert "model_type=" in refusal(config_of() | {"model_type": kind})


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (0, "0"),
        (-1, "-1"),
        (1024.5, "1024.5"),
        ("1024", "'1024'"),
        (True, "true"),
        (None, "null"),
        (2**31, "2147483648"),
        (2**63, "9223372036854775808"),
        ([72], "[72]"),
    ],
)
def test_06_sizes(value: Any, spelled: str) -> None:
    message = refusal(changed(hidden_size=value))
    assert f"text_config.hidden_size={spelled}: expected integer in [1, 65536]" in message


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_key_value_heads", "intermediate_size"])
def test_06_true_is_not_one(name: str) -> None:
    assert f"{name}=true: expected integer" in refusal(changed(**{name: True}))


def test_06_missing() -> None:
    raw = config_of()
    del raw["text_config"]["hidden_size"]
    message = refusal(raw)
    assert "text_config.hidden_size is missing: expected integer in [1, 65536]" in message


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"num_key_value_heads": 4}, ["num_attention_heads=6", "num_key_value_heads=4"]),
        ({"head_dim": 0}, ["head_dim=0"]),
        (
            {"linear_num_value_heads": 3},
            ["linear_num_value_heads=3", "linear_num_key_heads=2"],
        ),
        ({"linear_conv_kernel_dim": 0}, ["linear_conv_kernel_dim=0"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads=0"]),
        ({"linear_num_key_heads": 0}, ["linear_num_key_heads=0"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers=0"]),
    ],
)
def test_07_heads(fields: dict[str, Any], parts: list[str]) -> None:
    message = refusal(changed(**fields))
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"layer_types": ["full_attention"] * 3}, ["3 entries", "num_hidden_layers=4"]),
        ({"layer_types": ["full_attention"] * 5}, ["5 entries", "num_hidden_layers=4"]),
        ({"layer_types": ["sliding"] * 4}, ["layer_types[0]='sliding'", "'linear_attention'"]),
        ({"layer_types": [None] * 4}, ["layer_types[0]=null"]),
        ({"layer_types": [["full_attention"]] * 4}, ["layer_types[0]="]),
        ({"layer_types": "full_attention"}, ["layer_types='full_attention'"]),
        ({"full_attention_interval": 0}, ["full_attention_interval=0"]),
        ({"layer_types": None, "full_attention_interval": 0}, ["full_attention_interval=0"]),
    ],
)
def test_08_layer_types(fields: dict[str, Any], parts: list[str]) -> None:
    message = refusal(changed(**fields))
    assert all(part in message for part in parts)


def test_08_layer_types_from_the_interval() -> None:
    raw = changed(layer_types=None, full_attention_interval=2)
    kinds = config_from(raw, where="x").text.layer_types
    assert kinds == ("linear_attention", "full_attention") * 2


ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("rope", "part"),
    [
        (ROPE | {"rope_theta": 0}, "rope_theta=0: expected number"),
        (ROPE | {"rope_theta": float("nan")}, "rope_theta=nan"),
        (ROPE | {"rope_theta": float("inf")}, "rope_theta=inf"),
        (ROPE | {"rope_theta": "1e7"}, "rope_theta='1e7'"),
        (ROPE | {"partial_rotary_factor": 2}, "partial_rotary_factor=2"),
        (ROPE | {"partial_rotary_factor": 0}, "partial_rotary_factor=0"),
        (ROPE | {"partial_rotary_factor": 0.13}, "gives 5 rotary dims"),
        (ROPE | {"mrope_section": [11, 11, 10]}, "mrope_section=[11, 11, 10]"),
        (ROPE | {"mrope_section": [3, 3, -1]}, "expected three integers that sum to 5"),
        (ROPE | {"mrope_section": [5]}, "mrope_section=[5]"),
        (ROPE | {"mrope_section": "5"}, "mrope_section='5'"),
        (YARN | {"factor": 0}, "factor=0: expected number in [1.0, 1024.0]"),
        (YARN | {"factor": -1}, "factor=-1"),
        (YARN | {"factor": float("inf")}, "factor=inf"),
        (YARN | {"factor": 1e9}, "factor=1000000000.0"),
        (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings=0"),
        (YARN | {"beta_fast": 1, "beta_slow": 32}, "beta_fast=1.0 is below beta_slow=32.0"),
        ([1], "rope_parameters=[1]: expected an object"),
    ],
)
def test_09_rope(rope: Any, part: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        config_from(changed(rope_parameters=rope), where="config.json")
    assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope", "x", None, 4])
def test_09_unknown_rope_type(kind: Any) -> None:
    raw = changed(rope_parameters=ROPE | {"rope_type": kind})
    message = refusal(raw, UnsupportedModelError)
    assert "rope_type=" in message and "'default' and 'yarn'" in message


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"rope_type": "yarn", "factor": 0}, ValueError),
        ({"rope_type": "yarn", "factor": -1}, ValueError),
        ({"rope_type": "yarn", "factor": float("inf")}, ValueError),
        ({"rope_type": "yarn", "factor": 1e9}, ValueError),
        ({"rope_type": "yarn"}, ValueError),
        ({"factor": 4.0}, ValueError),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
            ValueError,
        ),
        ({"rope_type": "linear", "factor": 2.0}, UnsupportedModelError),
        ({"rope_type": "yarn", "factr": 4.0}, ValueError),
        ([("factor", 4.0)], TypeError),
    ],
)
def test_09_rope_argument(given: Any, error: type[Exception]) -> None:
    config = config_from(config_of(), where="x")
    with pytest.raises(error, match="rope_scaling") as caught:
        config.with_rope_scaling(given)
    assert not isinstance(caught.value, ModelFormatError)


@pytest.mark.parametrize("value", [0, -1, float("nan"), "1e-6", None])
def test_10_eps(value: Any) -> None:
    assert "rms_norm_eps=" in refusal(changed(rms_norm_eps=value))


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("patch_size", 0, "vision_config.patch_size=0"),
        ("spatial_merge_size", 0, "vision_config.spatial_merge_size=0"),
        ("num_position_embeddings", 17, "num_position_embeddings=17: expected a square number"),
        ("out_hidden_size", 73, "out_hidden_size=73 differs from text_config.hidden_size=72"),
        ("num_heads", 5, "hidden_size=24 is not a multiple of num_heads=5"),
        ("deepstack_visual_indexes", [2], "deepstack_visual_indexes=[2]"),
        ("deepstack_visual_indexes", {"0": 1}, "deepstack_visual_indexes="),
        ("depth", None, "depth=null"),
    ],
)
def test_12_vision(field: str, value: Any, part: str) -> None:
    raw = config_of()
    raw["vision_config"][field] = value
    assert part in refusal(raw)


@pytest.mark.parametrize("method", ["fp8", "awq", "gptq", "bitsandbytes", "mine"])
@pytest.mark.parametrize("inside", [False, True])
def test_14_quantized(method: str, inside: bool) -> None:
    raw = config_of()
    (raw["text_config"] if inside else raw)["quantization_config"] = {"quant_method": method}
    message = refusal(raw, UnsupportedModelError)
    assert f"quant_method='{method}'" in message and "qwen35 quantize" in message


@pytest.mark.parametrize("settings", ["fp8", ["x"], {}])
def test_14_quantized_oddly(settings: Any) -> None:
    refusal(config_of() | {"quantization_config": settings}, UnsupportedModelError)


def test_15_code_is_ignored() -> None:
    raw = config_of() | {"auto_map": {"AutoConfig": "evil.Config"}, "trust_remote_code": True}
    assert config_from(raw, where="x") == config_from(config_of(), where="x")


def test_16_endless_context() -> None:
    config = config_from(changed(max_position_embeddings=10**18), where="x")
    assert config.context_limit == 10**18
    assert config.geometry()["inv_freq"].nbytes == 20


@pytest.mark.parametrize("name", ["text_config", "vision_config"])
def test_sections_must_be_objects(name: str) -> None:
    assert f"{name}=[1]: expected an object" in refusal(config_of() | {name: [1]})


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "gelu"), ("attention_bias", True), ("attn_output_gate", False)],
)
def test_other_mathematics_is_refused(field: str, value: Any) -> None:
    assert f"{field}=" in refusal(changed(**{field: value}), UnsupportedModelError)


@pytest.mark.parametrize("value", ["x", -1, 2.0, True, [1, None]])
def test_eos(value: Any) -> None:
    assert "eos_token_id=" in refusal(changed(eos_token_id=value))


# Rope


def test_frequencies_by_hand() -> None:
    """1e7 ** (-i / 32) for 64 rotary dims; float32 keeps 24 bits."""
    raw = changed(head_dim=256, rope_parameters=ROPE | {"mrope_section": [11, 11, 10]})
    geometry = config_from(raw, where="x").geometry()
    exact = [1e7 ** (-i / 32) for i in range(32)]
    np.testing.assert_allclose(geometry["inv_freq"], exact, rtol=2**-22)
    assert geometry["rope_attention_scaling"] == 1.0
    assert geometry["mrope_section"] == (11, 11, 10)


def test_yarn_ends_by_hand() -> None:
    """YaRN keeps the fastest pair, divides the slowest by the factor, scales by 0.1 ln 4 + 1."""
    raw = changed(head_dim=256)
    del raw["text_config"]["rope_parameters"]["mrope_section"]
    base = config_from(raw, where="x")
    yarn = base.with_rope_scaling(YARN | {"original_max_position_embeddings": 262144})
    plain, scaled = base.geometry(), yarn.geometry()
    assert scaled["inv_freq"][0] == plain["inv_freq"][0]
    np.testing.assert_allclose(scaled["inv_freq"][-1], plain["inv_freq"][-1] / 4, rtol=2**-22)
    assert scaled["rope_attention_scaling"] == pytest.approx(1.138629436111989, rel=1e-15)
    assert yarn.context_limit == 1_048_576
    assert base.context_limit == 4096


def test_yarn_ramp_by_hand() -> None:
    """Pairs turning more than 32 times in 262,144 tokens stay, fewer than once are divided by 4.

    Those are pairs 14.2 and 21.1 of 32, rounded outwards to 14 and 22: eighths lie between.
    """
    raw = changed(head_dim=256)
    del raw["text_config"]["rope_parameters"]["mrope_section"]
    base = config_from(raw, where="x")
    yarn = base.with_rope_scaling(YARN | {"original_max_position_embeddings": 262144})
    ratio = yarn.geometry()["inv_freq"] / base.geometry()["inv_freq"]
    ramp = np.clip((np.arange(32) - 14) / 8, 0, 1)
    np.testing.assert_allclose(ratio, 1 - 0.75 * ramp, rtol=2**-22)  # three float32 roundings


def test_rope_argument_spellings() -> None:
    config = config_from(config_of(), where="x")
    new = config.with_rope_scaling({"rope_type": "yarn", "factor": 4.0})
    old = config.with_rope_scaling({"type": "yarn", "factor": 4})
    assert new.text.rope_scaling == old.text.rope_scaling
    assert new.text.rope_scaling is not None
    assert new.text.rope_scaling["original_max_position_embeddings"] == 4096
    assert new.with_rope_scaling({"rope_type": "default"}) == config


def test_older_spelling_beside_the_fields() -> None:
    raw = changed(rope_theta=5e5, partial_rotary_factor=0.5)
    del raw["text_config"]["rope_parameters"]
    text = config_from(raw, where="x").text
    assert (text.rope_theta, text.partial_rotary_factor, text.rope_scaling) == (5e5, 0.5, None)
    raw["text_config"]["rope_scaling"] = {"type": "yarn", "factor": 2.0}
    config = config_from(raw, where="x")
    assert config.text.rope_theta == 5e5
    assert config.context_limit == 8192


ROPES: list[dict[str, Any]] = [
    {},
    {"rope_theta": 1e7},
    {"rope_theta": 10_000_000, "rope_type": "yarn", "factor": 4.0},
    {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.5, "truncate": False, "beta_fast": 20},
    {"rope_theta": 1e6, "type": "yarn", "factor": 8, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_theta": 1e6, "rope_type": "yarn", "factor": 8, "attention_factor": 1.25},
    {
        "rope_theta": 5e5,
        "rope_type": "yarn",
        "factor": None,
        "original_max_position_embeddings": 1024,
    },
]


@pytest.mark.parametrize("head_dim", [24, 40, 128, 256])
@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_are_those_of_transformers(head_dim: int, rope: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

    fields = config_of()["text_config"] | {"head_dim": head_dim, "rope_parameters": dict(rope)}
    geometry = config_from(copy.deepcopy(fields), where="x").geometry()
    del fields["model_type"]
    wanted = Qwen3_5TextRotaryEmbedding(Qwen3_5TextConfig(**copy.deepcopy(fields)))
    # One rounding of the last bit, in the power, is all that may differ.
    np.testing.assert_allclose(geometry["inv_freq"], wanted.inv_freq.numpy(), rtol=2**-23)
    assert geometry["rope_attention_scaling"] == pytest.approx(wanted.attention_scaling, rel=1e-15)
