"""Oracle: literals, and the arrays the test wrote into the checkpoint: sources, arguments, and what
load makes of them.
"""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    config_of,
    make_tensors,
    refusal,
    write_checkpoint,
)

import qwen35
from qwen35 import _core, loading, memory_plan
from qwen35.errors import UnsupportedModelError

INDEX = "model.safetensors.index.json"


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
    with pytest.raises(ValueError, match="expected a .gguf file or the folder"):
        qwen35.load(folder / "model.safetensors")
    for source in (None, 3, b"tiny", ["tiny"]):
        with pytest.raises(TypeError, match="source"):
            qwen35.load(source)


@pytest.mark.parametrize("name", ["model.gguf", "no/such/model-Q4_K_M.GGUF"])
def test_gguf_file_that_is_not_there(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
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
        ({"quantize": "q9"}, UnsupportedModelError, "quantize='q9': expected one of"),
        ({"mmproj": "x.gguf"}, ValueError, "mmproj='x.gguf': belongs to a GGUF file"),
        ({"mmproj": 3}, TypeError, "mmproj: expected a str, a path or None, got int"),
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
    fastest = _core.cpu()["kv_dtype"]
    qwen35.load(small)
    qwen35.load(small, dtype="float32", kv_dtype="auto")
    qwen35.load(small, kv_dtype="bfloat16", threads=3, context=np.int64(77))
    assert [call["kv_dtype"] for call in made] == [fastest, "float32", "bfloat16"]
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
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 100_000)
    with pytest.raises(MemoryError, match="of weights must be held in memory .* are available"):
        qwen35.load(tmp_path, **arguments)


def test_mapped_weights_beyond_memory_warn(
    small: Path, monkeypatch: Any, made: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 100_000)
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
