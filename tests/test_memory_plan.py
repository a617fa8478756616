"""Oracle: the sizes that the core reports of a loaded model and of its sessions, and literals
worked out by hand.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

import qwen35
from qwen35 import _core, cli, memory_plan
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import export
from qwen35.gguf_export_keys import kept_keys
from qwen35.gguf_file import GgufFile
from qwen35.gguf_write import OutTensor, Typed, write_gguf

# Rows and heads of whole blocks, so that every type can be had: 3 DeltaNet layers, 1 of attention
# with 2 K/V heads of 64.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "rope_parameters": checkpoints.TEXT["rope_parameters"] | {"mrope_section": [3, 3, 2]},
}
# 2 * 2 * 64 elements; int16 has a factor for each K and V
PER_TOKEN = {"float32": 1024, "float16": 512, "int16": 528, "bfloat16": 512, "q8_0": 272}
STATE = 4 * 3 * (4 * 12 * 20 + 3 * (2 * 2 * 12 + 4 * 20))
PARTS = {"weights": "weights", "kv": "K/V"} | {n: n for n in ("state", "scratch", "screen")}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", **WIDE)


@pytest.fixture(scope="module")
def gguf(wide: Path) -> Path:
    """q4_k_m, its vision file beside it."""
    checkpoint = open_checkpoint(wide)
    export(checkpoint, wide.parent / "wide.gguf", "q4_k_m", threads=1)
    checkpoint.close()
    return wide.parent / "wide.gguf"


@pytest.fixture(scope="module")
def parts(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second part of the same file cut in two, and no vision file beside it."""
    folder, whole = tmp_path_factory.mktemp("parts"), GgufFile(gguf)
    names = list(whole)
    for n in range(2):
        keys = kept_keys(whole.metadata) if n == 0 else {}
        keys |= {"split.no": Typed(2, n), "split.count": Typed(2, 2)}
        keys |= {"split.tensors.count": Typed(5, len(names))}
        tensors = [
            OutTensor(x, whole.spans[x].type, whole.spans[x].shape, lambda share, x=x: [whole[x]])
            for x in names[n::2]
        ]
        write_gguf(folder / f"wide-{n + 1:05d}-of-00002.gguf", keys, tensors)
    return folder / "wide-00002-of-00002.gguf"


def info(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, int]:
    assert cli.main(["info", *args, "--threads", "1", "--json"]) == 0
    found: dict[str, int] = json.loads(capsys.readouterr().out)["memory"]
    return found


def agrees(plan: dict[str, int], model: qwen35.Model) -> None:
    memory, native = model.memory(), model._native().memory()
    assert {name: plan[label] for name, label in PARTS.items()} | {"total": plan["total"]} == memory
    assert plan["weights"] == native["weights"] + native["owned"]
    assert plan["K/V per token"] == native["kv_per_token"]
    assert plan["context (tokens)"] == model.context


@pytest.mark.parametrize("kv_dtype", PER_TOKEN)
@pytest.mark.parametrize("source", ["wide", "gguf", "parts"])
def test_info_says_what_the_model_says(
    source: str,
    kv_dtype: str,
    gguf: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder, a GGUF file, and one in parts with the vision file named."""
    path = request.getfixturevalue(source)
    mmproj = gguf.with_name("mmproj-wide-BF16.gguf") if source == "parts" else None
    more = [] if mmproj is None else ["--mmproj", str(mmproj)]
    plan = info(capsys, str(path), "--context", "128", "--kv-dtype", kv_dtype, *more)
    with qwen35.load(path, context=128, kv_dtype=kv_dtype, threads=1, mmproj=mmproj) as model:
        agrees(plan, model)
        core = model._native().session(128)
        empty = core.nbytes
        core.prefill(np.arange(128, dtype=np.int32))
        # K/V pages of 64 tokens, each with a header of 64 bytes, and the ids
        assert core.nbytes - empty == plan["K/V"] + 2 * 64 + 128 * 4
        assert model._native().feature_shape is not None
    assert plan["K/V per token"] == PER_TOKEN[kv_dtype]
    assert (plan["K/V"], plan["state"]) == (128 * PER_TOKEN[kv_dtype], STATE)
    assert 0 < plan["of them mapped"] < plan["weights"]


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m"])
def test_info_plans_blocks_made_at_load(
    wide: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = info(capsys, str(wide), "--quantize", recipe)
    with qwen35.load(wide, quantize=recipe, threads=1) as model:
        agrees(plan, model)


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"vision": False}, {"dtype": "bfloat16", "quantize": "q8_0"}]
)
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_plans_of_other_loads(tmp_path: Path, stored: str, options: dict[str, Any]) -> None:
    path = checkpoints.write_checkpoint(tmp_path / "x", dtype=stored, tokenizer=False, **WIDE)
    given = {**options, "recipe": options.get("quantize")}
    given.pop("quantize", None)
    checkpoint = open_checkpoint(path)
    plan = memory_plan.make_plan(checkpoint, context=99, threads=2, kv_dtype="float16", **given)
    checkpoint.close()
    with qwen35.load(path, context=99, threads=2, kv_dtype="float16", **options) as model:
        assert plan.total == model.memory()["total"]
        assert plan.weights == model.memory()["weights"]


def test_info_of_files_without_vision(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info(capsys, str(parts))["of them mapped"] < info(capsys, str(parts))["weights"]
    assert cli.main(["info", str(parts), "--mmproj", "absent.gguf"]) == 1
    assert "absent.gguf" in capsys.readouterr().err
    assert cli.main(["info", str(parts)]) == 0
    shown = capsys.readouterr().out
    assert "scratch" in shown
    assert "MiB" in shown


def test_info_of_heads_that_no_block_fits(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(small), "--kv-dtype", "q8_0"]) == 1
    assert "heads of 40 are no multiple of its blocks of 32" in capsys.readouterr().err


def test_embedding_that_is_not_the_head_stays_mapped(tmp_path: Path) -> None:
    """307 rows of 256 in blocks of 34 bytes; in the exact mode all blocks stay."""
    path = checkpoints.write_checkpoint(
        tmp_path / "untied", tie_word_embeddings=False, vision=False, mtp=False, **WIDE
    )
    checkpoint = open_checkpoint(path)
    export(checkpoint, tmp_path / "x.gguf", "q8_0", threads=1)
    checkpoint.close()
    found = open_checkpoint(tmp_path / "x.gguf")
    options: dict[str, Any] = {"context": 1, "threads": 1, "kv_dtype": "float16"}
    in_blocks = {name for name in found.tensors if found.tensors.span(name).dtype == "q8_0"}
    plain = sum(found.tensors.span(n).nbytes for n in found.tensors if n not in in_blocks)
    blocks = sum(found.tensors.span(n).nbytes for n in in_blocks)
    assert memory_plan.make_plan(found, **options).mapped == plain + 307 * 256 // 32 * 34
    assert memory_plan.make_plan(found, dtype="float32", **options).mapped == plain + blocks
    folder = open_checkpoint(path)  # what quantize= makes of its matrices is in no file
    rest = sum(folder.tensors.span(n).nbytes for n in folder.tensors if n not in in_blocks)
    assert memory_plan.make_plan(folder, recipe="q8_0", **options).mapped == rest


# ---- what does not fit ---------------------------------------------------------------------------


def with_available(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: size)


def quietly(path: Path, **options: Any) -> int:
    """The context of a load that warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with qwen35.load(path, **options) as model:
            return model.context


def test_a_context_that_cannot_fit_is_refused(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers by hand from what the model reports; the context offered is the largest."""
    f16: dict[str, Any] = {"threads": 1, "kv_dtype": "float16"}
    with qwen35.load(gguf, context=64, **f16) as model:
        memory = model.memory()
    plan = memory_plan.make_plan(
        open_checkpoint(gguf), context=64, threads=1, kv_dtype="float16", vision=True
    )
    least = memory["total"] - memory["kv"] - plan.mapped
    with_available(monkeypatch, least + 10 * 64 * 512 + 5)
    with pytest.raises(MemoryError) as caught:
        qwen35.load(gguf, context=4000, **f16)
    mib = {name: f"{size / 2**20:.1f} MiB" for name, size in memory.items()}
    said = str(caught.value)
    assert said.startswith(f"{gguf}: context=4000 takes {4000 * 512 / 2**20:.1f} MiB of K/V (float")
    for part in (
        f"with {plan.allocated / 2**20:.1f} MiB of weights",
        f"{mib['state']} of state and {mib['scratch']} of scratch",
        f"but {(least + 10 * 64 * 512 + 5) / 2**20:.1f} MiB are available",
        'take context=640 or less, kv_dtype="q8_0"',
    ):
        assert part in said
    with pytest.raises(MemoryError):
        qwen35.load(gguf, context=704, **f16)
    with pytest.warns(UserWarning, match="read from disk again and again"):  # the mapped tower
        qwen35.load(gguf, context=640, **f16).close()


def test_a_default_context_is_lowered_to_what_fits(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = checkpoints.write_checkpoint(
        tmp_path / "long", max_position_embeddings=1 << 20, tokenizer=False, **WIDE
    )
    f16: dict[str, Any] = {"threads": 1, "kv_dtype": "float16"}
    assert quietly(long) == 262_144
    plan = memory_plan.make_plan(open_checkpoint(long), context=1, threads=1, kv_dtype="float16")
    # 100,000 tokens of 512 bytes, the rest, and a tenth of all for others
    with_available(monkeypatch, (plan.least + plan.mapped + 100_000 * 512) * 10 // 9 + 1)
    assert quietly(long, **f16) == 100_000 // 64 * 64
    assert quietly(long, context=101_000, **f16) == 101_000
    with_available(monkeypatch, plan.least + plan.mapped + 4_096 * 512)
    assert quietly(long, **f16) == 4_096
    with_available(monkeypatch, plan.least + plan.mapped)
    with pytest.warns(UserWarning, match="MiB of K/V for 4,096 tokens.*will not fit|again and aga"):
        qwen35.load(long, **f16).close()
    with_available(monkeypatch, None)
    assert quietly(long, threads=1) == 262_144


def test_blocks_must_fit_and_mapped_weights_need_not(
    wide: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_available(monkeypatch, 150_000)
    with pytest.raises(
        MemoryError, match="must be held in memory .as blocks, .* 0.1 MiB are avail"
    ):
        qwen35.load(gguf)
    with pytest.warns(UserWarning, match="read from disk again and again"):
        qwen35.load(wide).close()


def test_a_copy_of_the_head_is_counted_and_left_out_where_it_would_not_fit(
    wide: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """26 bytes for 32 weights of whole panels of 16 rows, and 4 a row; V is 307."""
    copy = 320 * 256 // 32 * 26 + 307 * 4
    for screen, size in (("auto", 0), (True, copy), (False, 0)):  # so small a head needs none
        with qwen35.load(wide, context=64, threads=1, screen=screen) as model:
            assert model.memory()["screen"] == size
    monkeypatch.setattr(memory_plan, "SCREEN_WEIGHTS", 307 * 256)
    monkeypatch.setattr(memory_plan, "SLOW_CODES", (_core.cpu()["isa"],))
    assert info(capsys, str(wide))["screen"] == 0
    monkeypatch.setattr(memory_plan, "SLOW_CODES", ())
    assert info(capsys, str(wide))["screen"] == copy
    assert info(capsys, str(gguf))["screen"] == 0  # blocks
    with qwen35.load(wide, context=64, threads=1) as model:
        memory = model.memory()
        assert memory["screen"] == copy and sum(memory.values()) == 2 * memory["total"]
    with qwen35.load(wide, quantize="q8_0", context=64, threads=1, screen=True) as model:
        assert model.memory()["screen"] == 0
    with_available(monkeypatch, memory["total"])  # not a byte to spare
    with qwen35.load(wide, context=64, threads=1) as model:
        assert model.memory()["screen"] == 0
    with pytest.raises(ValueError, match="screen='on': expected 'auto', True or False"):
        qwen35.load(wide, screen="on")
