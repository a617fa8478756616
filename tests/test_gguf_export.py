"""Oracle: the folder a file was made from, its tensors, token ids, templates and logits; the NumPy
reference on the file's own tensors where blocks cut the columns elsewhere; literals; and as extras
the gguf package and llama.cpp.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import checkpoints
import core_models
import numpy as np
import pytest
from gguf_writer import of, write_gguf
from reference import Reference

import qwen35
from qwen35 import ModelFormatError, UnsupportedModelError, cli, quantize
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import Exported, export
from qwen35.gguf_file import GgufFile
from qwen35.imatrix import read_imatrix

ROOT = "model.language_model."
IDS = np.random.default_rng(2).integers(0, 200, 50).astype(np.int32)
TEXT = "Question: What is 23 + 45?\nAnswer: <think>naïve 世界</think><|im_end|>"
WIDE = {  # rows of whole blocks of 256 everywhere; heads tiled across them
    "hidden_size": 256,
    "intermediate_size": 512,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "linear_value_head_dim": 64,
}


def converted(source: Any, path: Path, recipe: str = "keep", **options: Any) -> Exported:
    checkpoint = open_checkpoint(source)
    try:
        return export(checkpoint, path, recipe, threads=1, **options)
    finally:
        checkpoint.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "tiny.gguf"
    converted("tiny", path)
    return path


def test_everything_but_the_bytes_is_the_same(kept: Path) -> None:
    """The ends of answers are those of config.json and generation_config.json together."""
    with qwen35.load("tiny") as want, qwen35.load(kept) as got:
        text = dataclasses.replace(want.config.text, eos_token_id=(2048, 2050))
        assert got.config == dataclasses.replace(want.config, text=text)
        assert got.tokenize(TEXT) == want.tokenize(TEXT)
        assert got.tokenizer.added_tokens == want.tokenizer.added_tokens
        assert got.tokenizer.special_ids == want.tokenizer.special_ids
        messages = [{"role": "user", "content": "Hello"}]
        for thinking in (True, False):
            prompts = [m.prompt(messages, enable_thinking=thinking) for m in (got, want)]
            assert prompts[0].text == prompts[1].text
            assert list(prompts[0].ids) == list(prompts[1].ids)
        answers = [m.chat(messages, max_tokens=8).result().token_ids for m in (got, want)]
        assert answers[0] == answers[1]


def test_tensors(kept: Path) -> None:
    """Matrices to the bit; norms and A_log went through float32 sums and logarithms."""
    want, got = open_checkpoint("tiny").tensors, open_checkpoint(kept).tensors
    assert set(got) == set(want)
    for name, array in want.items():
        found = got[name]
        assert found.shape == array.shape
        exact = array.ndim > 1 or name.startswith("model.visual.") or "dt_bias" in name
        atol = 0 if exact else 2e-7 * max(1.0, float(np.abs(array).max()))
        assert np.allclose(found.astype(np.float64), array.astype(np.float64), rtol=0, atol=atol)


def test_logits_and_pictures(kept: Path) -> None:
    """The same numbers, summed in another order of heads: 1e-5 of the largest. In float32, as the
    tower rounds factors of bf16 weights, and its patch convolution is F32 in the file.
    """
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    with qwen35.load("tiny", dtype="float32") as want:
        logits, seen = want.logits(IDS), want.embed_image(image)
    with qwen35.load(kept, dtype="float32") as got:
        assert core_models.relative_error(got.logits(IDS), logits) <= 1e-5
        assert core_models.relative_error(got.embed_image(image), seen) <= 1e-5


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m"])
def test_logits_are_those_of_quantizing_at_load(tmp_path: Path, recipe: str) -> None:
    """As many key heads as value heads: the same blocks, so the same numbers."""
    path = checkpoints.write_checkpoint(
        tmp_path / "small", **WIDE | {"linear_num_key_heads": 8, "hidden_size": 512}
    )
    converted(path, tmp_path / "x.gguf", recipe)
    with qwen35.load(path, quantize=recipe, dtype="float32") as model:
        want = model.logits(IDS)
    with qwen35.load(tmp_path / "x.gguf", dtype="float32") as model:
        assert core_models.relative_error(model.logits(IDS), want) <= 1e-5


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m", "iq4_xs"])
def test_logits_where_blocks_hold_other_columns(tmp_path: Path, recipe: str) -> None:
    """Float32 against float64 on the file's decoded numbers: 1e-4 of the largest; these are near
    the folder's.
    """
    path = checkpoints.write_checkpoint(tmp_path / "small", **WIDE)
    converted(path, tmp_path / "x.gguf", recipe)
    with qwen35.load(tmp_path / "x.gguf", dtype="float32") as model:
        got, tensors = model.logits(IDS), dict(model.tensors)
    want = Reference(checkpoints.config_of(**WIDE), tensors).logits(IDS)
    assert core_models.relative_error(got, want) <= 1e-4
    name = f"{ROOT}layers.0.linear_attn.out_proj.weight"
    before = open_checkpoint(path).tensors[name].astype(np.float32)
    assert 0 < core_models.relative_error(tensors[name], before) < 0.15


def bytes_of(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in GgufFile(path).items()}


def test_a_gguf_source_gives_the_same_file(kept: Path, tmp_path: Path) -> None:
    """By way of the bf16 file or at once; but for general.file_type the keys are carried over."""
    (tmp_path / "direct").mkdir()
    converted("tiny", tmp_path / "direct" / "x.gguf", "q4_k_m")
    done = converted(kept, tmp_path / "x.gguf", "q4_k_m")
    assert bytes_of(tmp_path / "x.gguf") == bytes_of(tmp_path / "direct" / "x.gguf")
    assert done.vision_path == tmp_path / "mmproj-x-BF16.gguf"
    assert bytes_of(done.vision_path) == bytes_of(kept.with_name("mmproj-tiny-BF16.gguf"))
    keys = [dict(GgufFile(p).metadata) for p in (tmp_path / "x.gguf", tmp_path / "direct/x.gguf")]
    types = [found.pop("tokenizer.ggml.token_type").tolist() for found in keys]
    sections = [found.pop("qwen35.rope.dimension_sections").tolist() for found in keys]
    assert keys[0] == keys[1]
    assert types[0] == types[1]
    assert sections == [[3, 3, 2, 0]] * 2


def test_a_file_quantized_again(kept: Path, tmp_path: Path) -> None:
    """q8_0 after q4_k_m: what is smaller already stays as it is."""
    converted(kept, tmp_path / "x.gguf", "q4_k_m")
    converted(tmp_path / "x.gguf", tmp_path / "y.gguf", "q8_0")
    assert bytes_of(tmp_path / "y.gguf").keys() == bytes_of(tmp_path / "x.gguf").keys()
    size = [(tmp_path / name).stat().st_size for name in ("x.gguf", "y.gguf")]
    assert size[1] == size[0]


@pytest.mark.parametrize("from_gguf", [False, True])
def test_without_drafts_and_vision(kept: Path, tmp_path: Path, from_gguf: bool) -> None:
    path = tmp_path / "x.gguf"
    converted(kept if from_gguf else "tiny", path, "q8_0", mtp=False, vision=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    file = GgufFile(path)
    assert file.metadata["qwen35.block_count"] == 8
    assert "qwen35.nextn_predict_layers" not in file.metadata
    assert not any(name.startswith("blk.8.") for name in file)
    assert GgufFile(kept).metadata["qwen35.block_count"] == 9
    qwen35.load(path, vision=False).close()


def test_irregular_layers_and_yarn(tmp_path: Path) -> None:
    kinds = ["full_attention", "linear_attention", "full_attention", "linear_attention"]
    rope = checkpoints.TEXT["rope_parameters"] | {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 16.0,
    }
    path = checkpoints.write_checkpoint(
        tmp_path / "odd", layer_types=kinds, rope_parameters=rope, tie_word_embeddings=False
    )
    converted(path, tmp_path / "x.gguf")
    want, got = open_checkpoint(path).config.text, open_checkpoint(tmp_path / "x.gguf").config.text
    # The turn's end comes from the vocabulary.
    ends = checkpoints.TOKEN_IDS["<|endoftext|>"], checkpoints.TOKEN_IDS["<|im_end|>"]
    assert dataclasses.replace(want, eos_token_id=ends) == got


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    path = checkpoints.write_checkpoint(tmp_path / "mute", tokenizer=False, template=None)
    converted(path, tmp_path / "x.gguf", vision=False)
    with qwen35.load(tmp_path / "x.gguf", dtype="float32") as got:
        with qwen35.load(path, dtype="float32") as want:
            assert core_models.relative_error(got.logits(IDS), want.logits(IDS)) <= 1e-5


def test_sampling_comes_along(tmp_path: Path) -> None:
    said = {"temperature": 0.7, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}
    path = checkpoints.write_checkpoint(tmp_path / "small", generation_config=said)
    converted(path, tmp_path / "x.gguf")
    found = open_checkpoint(tmp_path / "x.gguf").generation_config
    assert {name: found[name] for name in said} == said


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    path = checkpoints.write_checkpoint(tmp_path / "small", **WIDE)
    found = checkpoints.make_tensors(checkpoints.config_of(**WIDE))
    found[f"{ROOT}layers.0.mlp.gate_proj.weight"][3, 5] = np.nan
    checkpoints.write_safetensors(path / "model.safetensors", found)
    with pytest.raises(ModelFormatError, match="gate_proj.weight': row 3, column 5 is nan"):
        converted(path, tmp_path / "x.gguf", "q4_0")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]  # the tower went with it


# ---- memory ------------------------------------------------------------------------------------


def resident_kb(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_pages_of_the_source_are_let_go(tmp_path: Path) -> None:
    """40 MB of weights pass through; tensors read again are the same."""
    path = checkpoints.write_checkpoint(
        tmp_path / "wide", vision=False, tokenizer=False, mtp=False, **WIDE | {"vocab_size": 80_000}
    )
    checkpoint = open_checkpoint(path)
    tensors, name = checkpoint.tensors, f"{ROOT}embed_tokens.weight"
    before, first = resident_kb("RssFile"), tensors[name].copy()
    assert resident_kb("RssFile") - before > 35_000
    tensors.let_go(name)
    assert resident_kb("RssFile") - before < 10_000
    assert np.array_equal(tensors[name].view(np.uint16), first.view(np.uint16))
    export(checkpoint, tmp_path / "x.gguf", "q8_0", threads=1)
    assert resident_kb("RssFile") - before < 10_000
    checkpoint.close()


def test_bands_are_the_whole() -> None:
    """Rows that come in bands of three, against all at once; progress counts through."""
    matrix, seen = np.random.default_rng(5).standard_normal((8, 512), np.float32), []
    whole = quantize.encode(matrix, "q4_k", threads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "BAND", 3 * 512)
        bands = [b.data for b in quantize.encode_in_bands(matrix, "q4_k", done=seen.append)]
        assert [len(b) for b in bands] == [3, 3, 2]
        assert np.array_equal(np.concatenate(bands), whole.data)
        assert seen == [3 * 512, 6 * 512, 8 * 512]
        matrix[7, 9] = np.inf
        with pytest.raises(ValueError, match="row 7, column 9 is inf"):
            list(quantize.encode_in_bands(matrix, "q4_k"))


# ---- importance ----------------------------------------------------------------------------------


def test_imatrix(tmp_path: Path) -> None:
    """One column of one matrix counts: its errors shrink, other matrices stay. Both formats."""
    stored, name = "blk.0.ffn_gate.weight", f"{ROOT}layers.0.mlp.gate_proj.weight"
    path = checkpoints.write_checkpoint(tmp_path / "small", vision=False, **WIDE)
    sums = np.full(256, 2, np.float32)
    sums[7] = 2e6
    write_gguf(
        tmp_path / "i.gguf",
        {"general.type": "imatrix"},
        {f"{stored}.in_sum2": of(sums[None]), f"{stored}.counts": of(np.full((1, 1), 2.0, "f4"))},
    )
    raw = stored.encode()
    (tmp_path / "i.dat").write_bytes(
        struct.pack(f"<ii{len(raw)}sii256f", 1, len(raw), raw, 2, 256, *sums)
    )
    for file in ("i.gguf", "i.dat"):
        assert read_imatrix(tmp_path / file)[stored][[6, 7]].tolist() == [1, 1e6]
    converted(path, tmp_path / "x.gguf", "q4_k_s")
    converted(path, tmp_path / "y.gguf", "q4_k_s", imatrix=tmp_path / "i.gguf")
    plain, weighed = bytes_of(tmp_path / "x.gguf"), bytes_of(tmp_path / "y.gguf")
    assert [key for key in plain if plain[key] != weighed[key]] == [stored]
    want = open_checkpoint(path).tensors[name].astype(np.float32)[:, 7]
    errors = [
        np.abs(open_checkpoint(tmp_path / file).tensors[name][:, 7] - want).mean()
        for file in ("x.gguf", "y.gguf")
    ]
    assert errors[1] < 0.5 * errors[0]


def test_wrong_imatrix(tmp_path: Path) -> None:
    def dat(name: str, values: list[float]) -> Path:
        raw, path = name.encode(), tmp_path / "i.dat"
        head = struct.pack(f"<ii{len(raw)}sii", 1, len(raw), raw, 1, len(values))
        path.write_bytes(head + struct.pack(f"<{len(values)}f", *values))
        return path

    target = tmp_path / "x.gguf"
    for name, values, message in (
        ("blk.0.ffn_gate.weight", [1.0] * 5, "has 5 columns: expected 192"),
        ("blk.0.other.weight", [1.0], "none of its 1 tensors"),
        ("a", [float("nan")], "expected finite numbers"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            converted("tiny", target, "q4_0", imatrix=dat(name, values))
    (tmp_path / "j.dat").write_bytes(b"\x01\0\0\0\xff\xff\0\0")
    with pytest.raises(ModelFormatError, match="not an imatrix file"):
        read_imatrix(tmp_path / "j.dat")
    (tmp_path / "j.dat").write_bytes(b"\x01\0\0\0\x04\0\0\0ab")
    with pytest.raises(ModelFormatError, match="2 of the file are left"):
        read_imatrix(tmp_path / "j.dat")


# ---- the command ---------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.gguf"
    assert cli.main(["quantize", "tiny", str(path), "--type", "Q8_0", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: 8.5 MB -> 4.6 MB, 8.59 bits per weight"
    assert lines[1].startswith(f"{tmp_path / 'mmproj-x-BF16.gguf'}: vision, 2.6 MB")
    assert cli.main(["quantize", "tiny", str(path)]) == 1
    assert "exists already; --overwrite" in capsys.readouterr().err
    assert cli.main(["quantize", "tiny", str(path), "--overwrite"]) == 0
    assert GgufFile(path).metadata["general.file_type"] == 15


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "x.gguf", "--type", "q4_k_l"], "type 'q4_k_l': expected one of q2_k, "),
        (["tiny", "x.bin"], "expected a name that ends in .gguf"),
        (["absent/", "x.gguf"], "no such folder"),
        (["tiny", "absent/x.gguf"], "absent"),
        (["tiny", "x.gguf", "--imatrix", "absent.dat"], "absent.dat"),
        (["tiny", "x.gguf", "--threads", "0"], "expected at least 1"),
    ],
)
def test_command_errors(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quantize", *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_type(capsys: pytest.CaptureFixture[str]) -> None:
    from qwen35.gguf_export_keys import FILE_TYPES
    from qwen35.quantize import RECIPES

    with pytest.raises(SystemExit):
        cli.main(["quantize", "--help"])
    shown = capsys.readouterr().out.split()
    assert [name for name in RECIPES if name not in shown] == []
    assert [name for name in RECIPES if name not in FILE_TYPES] == []
    with pytest.raises(UnsupportedModelError, match="'x': expected one of q2_k, .*, keep"):
        converted("tiny", Path("x.gguf"), "x")


# ---- extras --------------------------------------------------------------------------------------


def test_numbers_of_types_are_llama_cpps() -> None:
    gguf = pytest.importorskip("gguf")
    from qwen35.gguf_export_keys import FILE_TYPES

    theirs = {t.name.removeprefix("MOSTLY_").lower(): int(t) for t in gguf.LlamaFileType}
    names = {"float32": "all_f32", "float16": "f16", "bfloat16": "bf16"}
    assert {name: theirs[names.get(name, name)] for name in FILE_TYPES} == FILE_TYPES


@pytest.mark.parametrize("recipe", ["keep", "q8_0"])
def test_llama_cpp_computes_the_same(tmp_path: Path, recipe: str) -> None:
    """Its 8-bit activations and float16 K/V cost some 1e-3 nats on a model this small."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "x.gguf"
    converted("tiny", path, recipe)
    text = "What is 23 + 45? Which is larger, 301 or 299?"
    with qwen35.load(path, dtype="float32") as model:
        ids = model.tokenize(text)
        ours = model.logits(ids).astype(np.float64)
    theirs = llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, n_gpu_layers=0, logits_all=True, verbose=False
    )
    assert theirs.tokenize(text.encode(), add_bos=False) == list(ids)
    theirs.eval(list(ids))
    other = np.asarray(theirs.scores[: len(ids)], np.float64)
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (ours, other))
    assert (np.exp(p) * (p - q)).sum(-1).mean() <= 5e-3
