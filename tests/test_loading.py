"""Oracle: literals, and the arrays the test wrote into the checkpoint.

The numbers in the test names are items of the list of hostile inputs the project keeps: 11, 13, 15
and 27-30 tensors against config.json, 32-37 the index of shards.
"""

import inspect
import json
import os
import subprocess
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
    text_shapes,
    write_checkpoint,
    write_json,
    write_safetensors,
    write_shards,
)

import qwen35
from qwen35 import loading
from qwen35.checkpoint import open_checkpoint
from qwen35.errors import ModelFormatError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
EMBEDDING = "model.language_model.embed_tokens.weight"
Z_PROJ = "model.language_model.layers.0.linear_attn.in_proj_z.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint of one file, to be spoilt."""
    return write_checkpoint(tmp_path / "model", tokenizer=False)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A good checkpoint of three shards, to be spoilt."""
    return write_checkpoint(tmp_path / "model", tokenizer=False, shards=3)


def refusal(folder: Path, error: type[Exception] = ModelFormatError) -> str:
    """The message that refuses this checkpoint."""
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message


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


def edit_index(folder: Path, change: Any) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    write_json(path, index)


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
        wanted = text_shapes(fields["text_config"])
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


# 32-37: the index


@pytest.mark.parametrize(
    "name",
    [
        "../../x.safetensors",
        "/etc/passwd",
        "https://example.org/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "sub/x.safetensors",
        "",
        ".",
        "..",
        "a\0b",
        "a\nb",
    ],
)
def test_32_paths(sharded: Path, name: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({EMBEDDING: name}))
    message = refusal(sharded)
    assert "without a path" in message and INDEX in message
    assert "\n" not in message and "\0" not in message


def test_32_link_that_leaves(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "a symbolic link that leaves the folder" in refusal(sharded)


def test_32_links_of_the_hub_cache(sharded: Path, tmp_path: Path) -> None:
    """models--x/snapshots/<commit>/file -> ../../blobs/<hash>"""
    cache = tmp_path / "models--me--model"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sharded.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert len(open_checkpoint(snapshot).tensors) > 100


def test_33_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    message = refusal(sharded)
    assert "'model-00002-of-00003.safetensors' is missing; download it again" in message


def test_34_in_two_shards(sharded: Path) -> None:
    """Two shards hold the tensor; the index can name only one of them."""
    first, second = (sharded / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    tensors = make_tensors(json.loads((sharded / "config.json").read_text()))
    names = [n for n, file in json.loads((sharded / INDEX).read_text())["weight_map"].items()]
    held = {n: tensors[n] for n in names[: len(names) // 3]} | {names[40]: tensors[names[40]]}
    write_safetensors(first, held)
    message = refusal(sharded)
    assert str(first) in message and repr(names[40]) in message and second.name in message


def test_34_in_no_shard(sharded: Path) -> None:
    file = "model-00001-of-00003.safetensors"
    edit_index(sharded, lambda index: index["weight_map"].update({"ghost": file}))
    message = refusal(sharded)
    assert file in message and "'ghost' is not in it" in message


def test_34_not_in_the_index(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop(EMBEDDING))
    assert f"'{EMBEDDING}', which is in no shard by {INDEX}" in refusal(sharded)


@pytest.mark.parametrize("total", [1, "many", -1, 10**30])
def test_35_total_size(sharded: Path, total: Any) -> None:
    edit_index(sharded, lambda index: index["metadata"].update(total_size=total))
    with pytest.warns(UserWarning, match="total_size="):
        open_checkpoint(sharded)


@pytest.mark.parametrize("metadata", [None, [], {}])
def test_35_no_total_size(sharded: Path, metadata: Any) -> None:
    edit_index(sharded, lambda index: index.update(metadata=metadata))
    open_checkpoint(sharded)


@pytest.mark.parametrize("value", [None, 3, ["x"], {"a": "b"}])
def test_36_values(sharded: Path, value: Any) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({EMBEDDING: value}))
    message = refusal(sharded)
    assert f"weight_map['{EMBEDDING}']=" in message and "expected a file name" in message


@pytest.mark.parametrize("value", [None, [], "x", {}])
def test_36_map(sharded: Path, value: Any) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=value))
    assert "weight_map=" in refusal(sharded)


def test_36_index_is_a_list(sharded: Path) -> None:
    write_json(sharded / INDEX, ["x"])
    assert "expected a JSON object, found a list" in refusal(sharded)


def test_36_a_million_entries(sharded: Path) -> None:
    entries = ",".join(f'"{i}":"x"' for i in range(1_000_000))
    (sharded / INDEX).write_text(f'{{"weight_map":{{{entries}}}}}')
    assert "more than 1000000 strings" in refusal(sharded)


@pytest.mark.parametrize("place", ["", ".cache/huggingface/download"])
def test_37_half_downloaded(sharded: Path, place: str) -> None:
    """Beside a missing shard, a truncated one, and no weights at all."""
    (sharded / place).mkdir(parents=True, exist_ok=True)
    (sharded / place / "abc.incomplete").write_bytes(b"half")
    hint = "'abc.incomplete' is a half-finished download: run it again, it resumes"
    shard = sharded / "model-00003-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)
    message = refusal(sharded)
    assert "100 bytes short" in message and hint in message
    shard.unlink()
    message = refusal(sharded)
    assert shard.name in message and hint in message
    (sharded / INDEX).unlink()
    assert hint in refusal(sharded)


# Sources and arguments


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert INDEX in refusal(folder, FileNotFoundError)


def test_sources_that_are_no_folder(tmp_path: Path, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("nowhere", "./no/where", "a/b/c", tmp_path / "x", Path("qwen/nowhere"), ""):
        with pytest.raises((FileNotFoundError, ValueError), match="no such f|expected|config.json"):
            qwen35.load(source)
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        qwen35.load(tmp_path)
    with pytest.raises(ValueError, match="expected the folder"):
        qwen35.load(folder / "model.safetensors")
    for source in (None, 3, b"tiny", ["tiny"]):
        with pytest.raises(TypeError, match="source"):
            qwen35.load(source)


@pytest.mark.parametrize("name", ["model.gguf", "no/such/model-Q4_K_M.GGUF"])
def test_gguf_is_not_read_yet(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="GGUF files are not read yet"):
        qwen35.load(name)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dtyp": "auto"}, TypeError, "'dtyp'; did you mean 'dtype'"),
        ({"n_ctx": 512}, TypeError, "'n_ctx'"),
        ({"dtype": "float64"}, ValueError, "dtype='float64'.*'bfloat16'"),
        ({"dtype": None}, ValueError, "dtype=None"),
        ({"kv_dtype": "q8"}, ValueError, "kv_dtype='q8'"),
        ({"context": 0}, ValueError, "context=0"),
        ({"context": 2**31}, ValueError, "context=2147483648"),
        ({"context": True}, TypeError, "context=True"),
        ({"context": 1.5}, TypeError, "context=1.5"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"threads": "2"}, TypeError, "threads='2'"),
        ({"mtp": "yes"}, ValueError, "mtp='yes'"),
        ({"vision": 1}, TypeError, "vision=1"),
        ({"local_files_only": None}, TypeError, "local_files_only=None"),
        ({"quantize": "q8_0"}, UnsupportedModelError, "quantize='q8_0'"),
        ({"mmproj": "x.gguf"}, UnsupportedModelError, "mmproj='x.gguf'"),
        ({"progress": "bar"}, TypeError, "progress='bar'"),
        ({"revision": 3}, TypeError, "revision"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, UnsupportedModelError, "rope_"),
        ({"rope_scaling": 4}, TypeError, "rope_scaling"),
    ],
)
def test_arguments(small: Path, arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        qwen35.load(small, **arguments)


def test_signature_is_the_documented_one() -> None:
    names = (
        "source revision dtype quantize context threads kv_dtype rope_scaling mtp vision mmproj "
        "local_files_only progress"
    ).split()
    assert list(inspect.signature(qwen35.load).parameters)[: len(names)] == names


# What load makes of it


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What load would build models from, without building them."""
    calls: list[dict[str, Any]] = []

    def fake(checkpoint: Any, **settings: Any) -> Any:
        calls.append({"checkpoint": checkpoint} | settings)

    monkeypatch.setattr(loading, "_model", fake)
    return calls


def test_defaults(small: Path, made: list[dict[str, Any]]) -> None:
    qwen35.load(small)
    qwen35.load(small, dtype="float32", kv_dtype="auto")
    qwen35.load(small, kv_dtype="bfloat16", threads=3, context=np.int64(77))
    assert [call["kv_dtype"] for call in made] == ["float16", "float32", "bfloat16"]
    assert [call["threads"] for call in made] == [qwen35.loading.default_threads()] * 2 + [3]
    assert [call["context"] for call in made] == [4096, 4096, 77]


def test_context(small: Path, tmp_path: Path, made: list[dict[str, Any]]) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}
    qwen35.load(small, rope_scaling=yarn)
    long = write_checkpoint(tmp_path, max_position_embeddings=10**18, tokenizer=False)
    qwen35.load(long)
    with pytest.warns(UserWarning, match="context=5000 is beyond the 4096 tokens"):
        qwen35.load(small, context=5000)
    assert [call["context"] for call in made] == [1_048_576, 262_144, 5000]
    assert made[0]["checkpoint"].config.geometry()["rope_attention_scaling"] > 1.1


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_conversion(tmp_path: Path, stored: str, made: list[dict[str, Any]]) -> None:
    """Matrices become bfloat16, rounded to nearest even; vectors, and bfloat16, stay as stored."""
    write_checkpoint(tmp_path, dtype=stored, tokenizer=False)
    wanted = make_tensors(config_of(), dtype=stored)
    seen: list[tuple[int, int, str]] = []
    qwen35.load(tmp_path, dtype="bfloat16", progress=lambda *step: seen.append(step))
    tensors = made[0]["checkpoint"].tensors
    for name, array in wanted.items():
        target = ml_dtypes.bfloat16 if array.ndim > 1 else array.dtype
        assert tensors[name].dtype == target
        assert tensors[name].tobytes() == array.astype(target).tobytes()
        assert not tensors[name].flags.writeable
    converted = [step for step in seen if step[2] == "convert"]
    assert bool(converted) == (stored != "bfloat16")
    if converted:
        assert (
            converted[-1][0]
            == converted[-1][1]
            == sum(array.nbytes for array in wanted.values() if array.ndim > 1)
        )


def test_rounding_is_to_nearest_even() -> None:
    """bfloat16 keeps 8 bits: 1 + 2^-8 lies between two neighbours, 1 + 3 * 2^-8 too."""
    exact = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    assert exact.astype(loading.BF16).astype(float).tolist() == [1, 1 + 2**-6, 1 + 2**-7]


def test_progress_counts_up(sharded: Path, made: list[dict[str, Any]]) -> None:
    seen: list[tuple[int, int, str]] = []
    qwen35.load(sharded, progress=lambda *step: seen.append(step))
    total = sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    done = [step[0] for step in seen if step[2] == "read"]
    assert done == sorted(done) and done[-1] == total
    assert {step[1] for step in seen} == {total}


def test_progress_may_stop_the_load(sharded: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qwen35.load(sharded, progress=stop)


def test_no_bar_without_a_terminal(small: Path) -> None:
    pytest.importorskip("qwen35._core")
    code = f"import qwen35; qwen35.load({str(small)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [({"dtype": "float32"}, {"dtype": "bfloat16"}), ({"dtype": "float32", "misaligned": True}, {})],
)
def test_copies_that_cannot_fit(
    tmp_path: Path, monkeypatch: Any, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    write_checkpoint(tmp_path, tokenizer=False, **settings)
    monkeypatch.setattr(loading, "available_memory", lambda: 100_000)
    with pytest.raises(MemoryError, match="GiB of weights must be copied .* GiB are available"):
        qwen35.load(tmp_path, **arguments)


def test_mapped_weights_beyond_memory_warn(
    small: Path, monkeypatch: Any, made: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: 100_000)
    with pytest.warns(UserWarning, match="read from disk again and again"):
        qwen35.load(small)


def test_failed_load_lets_go_of_the_files(tmp_path: Path) -> None:
    """Descriptors and mappings of this process do not grow with loads that fail."""
    folder = write_checkpoint(tmp_path, tokenizer=False, shards=3)
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("no /proc")
    held = []  # an error that is kept keeps the frames of the failed load, but no files
    for _ in range(3):
        with pytest.raises(UnsupportedModelError) as caught:
            qwen35.load(folder, rope_scaling={"rope_type": "linear"})
        held.append(caught.value)
    assert str(folder) not in mapped.read_text()
    assert not any(str(folder) in str(p.resolve()) for p in Path("/proc/self/fd").iterdir())


# The real thing


def test_loads_and_answers_without_a_tokenizer(folder: Path) -> None:
    """Token ids are enough for logits; text says what is missing."""
    pytest.importorskip("qwen35._core")
    with qwen35.load(folder, dtype="float32", context=64) as model:
        assert model.logits([1, 2, 3]).shape == (3, 307)
        with pytest.raises(FileNotFoundError, match="tokenizer.json"):
            model.tokenize("text")


def test_half_of_the_weights_changed_under_us(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(ModelFormatError, match="load the model again"):
        checkpoint.check_unchanged()


def test_shards_follow_the_index_order(sharded: Path) -> None:
    fields = json.loads((sharded / "config.json").read_text())
    write_shards(sharded, make_tensors(fields), shards=3)
    assert list(open_checkpoint(sharded).tensors) == list(make_tensors(fields))
