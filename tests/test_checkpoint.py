"""Oracle: literals, and the arrays the test wrote into the checkpoint.

The numbers in the test names are items of the list of hostile inputs the project keeps: 11, 13, 15
and 26-30, tensors against config.json.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    TEMPLATE,
    config_of,
    make_tensors,
    raw_safetensors,
    refusal,
    text_shapes,
    vision_shapes,
    write_checkpoint,
    write_json,
    write_safetensors,
)

import qwen35
from qwen35.checkpoint import open_checkpoint
from qwen35.errors import ModelFormatError, UnsupportedModelError

EMBEDDING = "model.language_model.embed_tokens.weight"
Z_PROJ = "model.language_model.layers.0.linear_attn.in_proj_z.weight"


def edit_config(folder: Path, **text: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["text_config"].update(text)
    write_json(path, raw)


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Write the checkpoint's file again with these tensors replaced, added or (None) left out."""
    tensors = make_tensors(json.loads((folder / "config.json").read_text())) | changes
    kept = {name: array for name, array in tensors.items() if array is not None}
    write_safetensors(folder / "model.safetensors", kept)


# What opens


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("layout", ["one", "shards", "misaligned", "text_only"])
@pytest.mark.parametrize("tied", [True, False])
def test_26_tensors_are_those_written(tmp_path: Path, dtype: str, layout: str, tied: bool) -> None:
    settings: dict[str, Any] = {
        "one": {},
        "shards": {"shards": 4},
        "misaligned": {"misaligned": True, "shards": 2},
        "text_only": {"text_only": True},
    }[layout]
    write_checkpoint(tmp_path, dtype=dtype, tie_word_embeddings=tied, tokenizer=False, **settings)
    checkpoint = open_checkpoint(tmp_path)
    fields = config_of(tie_word_embeddings=tied, vision=layout != "text_only")
    wanted = make_tensors(fields, dtype=dtype, mtp=layout != "text_only")
    assert list(checkpoint.tensors) == list(wanted)
    for name, array in wanted.items():
        found = checkpoint.tensors[name]
        assert found.dtype == array.dtype and found.shape == array.shape
        assert found.tobytes() == array.tobytes()
        assert not found.flags.writeable
    assert checkpoint.has_mtp == checkpoint.has_vision == (layout != "text_only")


@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (2, 4), (2, 6), (3, 3)])
def test_table_of_the_core(tmp_path: Path, heads: tuple[int, int]) -> None:
    """The core's table is that of the factory, which transformers loads without a missing key."""
    core = pytest.importorskip("qwen35._core")
    text = {"linear_num_key_heads": heads[0], "linear_num_value_heads": heads[1]}
    for tied in (True, False):
        fields = config_of(tie_word_embeddings=tied, **text)
        geometry = qwen35.config.config_from(fields, where="x").geometry()
        wanted = text_shapes(fields["text_config"]) | vision_shapes(fields["vision_config"])
        assert dict(core.expected_tensors(geometry)) == wanted


def test_names_and_files(small: Path) -> None:
    checkpoint = open_checkpoint(str(small))
    assert checkpoint.name == "small"
    assert checkpoint.chat_template == TEMPLATE
    assert checkpoint.tokenizer_file == small / "tokenizer.json"
    assert checkpoint.generation_config == {}
    assert checkpoint.revision is None


def test_generation_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tokenizer=False, generation_config={"temperature": 0.6})
    assert open_checkpoint(tmp_path).generation_config == {"temperature": 0.6}
    (tmp_path / "generation_config.json").write_text("{")
    assert "generation_config.json: line 1" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ 1 }}", "{{ 1 }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], None),
        (None, None),
    ],
)
def test_template_in_tokenizer_config(tmp_path: Path, template: Any, wanted: str | None) -> None:
    write_checkpoint(tmp_path, tokenizer=False, template=None)
    assert open_checkpoint(tmp_path).chat_template is None
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": template})
    assert open_checkpoint(tmp_path).chat_template == wanted
    (tmp_path / "chat_template.jinja").write_text("own")
    assert open_checkpoint(tmp_path).chat_template == "own"


def test_template_that_is_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tokenizer=False, template=None)
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": {"a": 1}})
    assert "chat_template=" in refusal(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja: line 1 col 1" in refusal(tmp_path)


# 11, 13, 15, 27-30: tensors against config.json


def test_11_vocabulary(folder: Path) -> None:
    edit_config(folder, vocab_size=308)
    message = refusal(folder)
    assert "vocab_size=308" in message and "has 307 rows" in message


def test_11_tied_but_a_head(folder: Path) -> None:
    head = np.zeros((307, 72), ml_dtypes.bfloat16)
    edit_tensors(folder, **{"lm_head.weight": head})
    message = refusal(folder)
    assert "tie_word_embeddings=true" in message and "lm_head.weight is there" in message


def test_11_untied_but_no_head(folder: Path) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | {"tie_word_embeddings": False})
    message = refusal(folder)
    assert "tie_word_embeddings=false" in message and "lm_head.weight is missing" in message


def test_12_vision_weights_without_a_config(folder: Path) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    del raw["vision_config"]
    write_json(path, raw)
    message = refusal(folder)
    assert "vision tensors ('model.visual." in message and "no vision_config" in message


def test_13_mtp_declared_but_absent(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, mtp=False)
    assert not open_checkpoint(tmp_path).has_mtp
    with pytest.raises(ModelFormatError, match="declares 1 MTP layers .* no mtp"):
        qwen35.load(tmp_path, mtp=True)
    pytest.importorskip("qwen35._core")
    with pytest.warns(UserWarning, match="loading without them") as seen:
        qwen35.load(tmp_path).close()
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qwen35.load(tmp_path, mtp=False).close()


def test_13_half_an_mtp_layer(folder: Path) -> None:
    edit_tensors(folder, **{"mtp.fc.weight": None, "mtp.layers.0.mlp.up_proj.weight": None})
    message = refusal(folder)
    assert "2 missing: 'mtp.fc.weight', 'mtp.layers.0.mlp.up_proj.weight'" in message


def test_13_mtp_of_the_wrong_shape(folder: Path) -> None:
    edit_tensors(folder, **{"mtp.fc.weight": np.zeros((72, 72), np.float32)})
    assert "'mtp.fc.weight' is [72, 72], expected [72, 144]" in refusal(folder)


EVIL = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
class Config: pass
class Model: pass
class Tokenizer: pass
"""


def test_15_nothing_is_executed(tmp_path: Path) -> None:
    """auto_map, code beside the weights, and a template that would act if it were rendered."""
    pytest.importorskip("qwen35._core")
    mark = tmp_path / "mark"
    folder = write_checkpoint(
        tmp_path / "model",
        config={
            "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
            "trust_remote_code": True,
        },
        template="{{ ''.__class__.__mro__[1].__subclasses__() }}{{ 1 / 0 }}",
    )
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer_config |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    for name in ("evil", "config", "modeling_qwen3_5", "__init__", "sitecustomize", "conftest"):
        (folder / f"{name}.py").write_text(EVIL.format(mark=str(mark)))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    modules = set(sys.modules)
    with qwen35.load(folder) as model:
        model.logits([1, 2, 3])
    assert not mark.exists()
    assert not {name for name in set(sys.modules) - modules if "evil" in name}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_trust_remote_code_is_no_keyword(folder: Path) -> None:
    with pytest.raises(TypeError, match="trust_remote_code"):
        qwen35.load(folder, trust_remote_code=True)


def test_22_dtype_of_a_needed_tensor(folder: Path) -> None:
    header = {EMBEDDING: {"dtype": "F8_E4M3", "shape": [307, 72], "data_offsets": [0, 307 * 72]}}
    (folder / "model.safetensors").write_bytes(raw_safetensors(header, bytes(307 * 72)))
    message = refusal(folder, UnsupportedModelError)
    assert EMBEDDING in message and "F8_E4M3" in message


@pytest.mark.parametrize("shape", [(), (0,), (0, 72), (80, 0), (1, 80, 72)])
def test_27_rank_0_and_size_0(folder: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(folder, **{Z_PROJ: np.zeros(shape, np.float32)})
    assert f"'{Z_PROJ}' is {list(shape)}, expected [80, 72]" in refusal(folder)


def test_28_missing(folder: Path) -> None:
    names = [f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    names += [f"model.language_model.layers.{i}.input_layernorm.weight" for i in range(4)]
    edit_tensors(folder, **dict.fromkeys(names))
    message = refusal(folder)
    assert "8 missing: " in message and message.count("model.language_model.layers") == 5
    assert message.endswith(", ...")


def test_28_unexpected(folder: Path) -> None:
    extra = {f"model.language_model.layers.9.x{i}": np.zeros(1, np.float32) for i in range(3)}
    edit_tensors(folder, **extra)
    assert "3 unexpected: 'model.language_model.layers.9.x0'" in refusal(folder)


def test_28_transposed(folder: Path) -> None:
    edit_tensors(folder, **{Z_PROJ: np.zeros((72, 80), np.float32)})
    assert f"1 of the wrong shape: '{Z_PROJ}' is [72, 80], expected [80, 72]" in refusal(folder)


def test_28_renamed(folder: Path) -> None:
    array = np.zeros((80, 72), np.float32)
    edit_tensors(folder, **{Z_PROJ: None, Z_PROJ.replace("_z", "_gate"): array})
    message = refusal(folder)
    assert f"1 missing: '{Z_PROJ}'; 1 unexpected: " in message


def test_28_both_spellings_of_a_name(folder: Path) -> None:
    short = Z_PROJ.replace("language_model.", "")
    edit_tensors(folder, **{short: np.zeros((80, 72), np.float32)})
    assert "expected it once" in refusal(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_29_not_finite(folder: Path, bad: float, dtype: str) -> None:
    array = np.zeros((80, 72), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    array[17, 3] = bad
    edit_tensors(folder, **{Z_PROJ: array})
    checkpoint = open_checkpoint(folder)  # loads all the same
    with pytest.raises(ModelFormatError, match="in_proj_z.weight' holds NaN or infinity"):
        checkpoint.check_finite()
    with pytest.raises(ModelFormatError, match="in_proj_z"):
        qwen35.load(folder, check=True)


def test_29_finite_passes(small: Path) -> None:
    open_checkpoint(small).check_finite()


def test_30_names_are_escaped(folder: Path) -> None:
    edit_tensors(folder, **{"model.evil\x1b[31m\n": np.zeros(1, np.float32)})
    message = refusal(folder)
    assert "'model.evil\\x1b[31m\\n'" in message and "\x1b" not in message
