"""Oracle: literals for what becomes of which tensor (llama.cpp's rules, written out), and the NumPy
reference in float64 on the decoded blocks for what comes out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import checkpoints
import core_models
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import Reference

import qwen35
from qwen35 import ModelFormatError, UnsupportedModelError, _core
from qwen35.quantize import RECIPES, check_recipe, encode, type_for

ROOT = "model.language_model."
WIDE = {"hidden_size": 256, "intermediate_size": 512}
IDS = np.random.default_rng(2).integers(0, 200, 50).astype(np.int32)


def of(recipe: str, name: str, shape: tuple[int, ...] = (512, 1024), tied: bool = True) -> str:
    return type_for(recipe, name, shape, layers=24, tied=tied)


@pytest.mark.parametrize(
    ("name", "type"),
    [
        (f"{ROOT}embed_tokens.weight", "q6_k"),
        (f"{ROOT}layers.3.self_attn.v_proj.weight", "q6_k"),
        (f"{ROOT}layers.3.self_attn.q_proj.weight", "q4_k"),
        (f"{ROOT}layers.3.self_attn.o_proj.weight", "q4_k"),
        (f"{ROOT}layers.0.linear_attn.in_proj_qkv.weight", "q5_k"),
        (f"{ROOT}layers.0.linear_attn.in_proj_z.weight", "q4_k"),
        (f"{ROOT}layers.0.linear_attn.in_proj_a.weight", "q8_0"),
        (f"{ROOT}layers.0.linear_attn.in_proj_b.weight", "q8_0"),
        (f"{ROOT}layers.0.linear_attn.out_proj.weight", "q4_k"),
        (f"{ROOT}layers.0.linear_attn.conv1d.weight", "q4_k"),  # of two dimensions it never is
        (f"{ROOT}layers.0.mlp.gate_proj.weight", "q4_k"),
        ("model.visual.blocks.0.mlp.linear_fc1.weight", ""),
        ("mtp.layers.0.mlp.gate_proj.weight", "q4_k"),
        ("mtp.fc.weight", "q4_k"),
    ],
)
def test_q4_k_m(name: str, type: str) -> None:
    assert of("Q4_K_M".lower(), name) == type


def test_what_never_changes() -> None:
    assert of("q4_0", f"{ROOT}norm.weight", (1024,)) == ""
    assert of("q4_0", f"{ROOT}layers.0.linear_attn.conv1d.weight", (6144, 1, 4)) == ""
    assert of("q4_0", f"{ROOT}layers.0.linear_attn.A_log", (16,)) == ""


def test_half_of_the_down_projections_are_finer() -> None:
    fine = [
        i for i in range(24) if of("q4_k_m", f"{ROOT}layers.{i}.mlp.down_proj.weight") == "q6_k"
    ]
    assert fine == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]


def test_head_of_its_own() -> None:
    assert of("q4_k_m", "lm_head.weight", tied=False) == "q6_k"
    assert of("q4_k_m", f"{ROOT}embed_tokens.weight", tied=False) == "q4_k"


@pytest.mark.parametrize(
    ("recipe", "columns", "type"),
    [("q4_k_m", 96, "q5_0"), ("q2_k", 96, "q4_0"), ("iq4_xs", 96, "iq4_nl"), ("q4_0", 100, "")],
)
def test_short_rows(recipe: str, columns: int, type: str) -> None:
    """Rows that are no multiple of 256 take a type of 32, others stay."""
    assert of(recipe, f"{ROOT}layers.3.self_attn.q_proj.weight", (64, columns)) == type


def test_every_recipe_names_types_that_can_be_made() -> None:
    known = _core.formats()
    for name, recipe in RECIPES.items():
        assert check_recipe(name.upper()) == name
        assert all(known[t][3] for t in (recipe.base, recipe.head, recipe.fine, recipe.mixer))


def test_wrong_recipes() -> None:
    with pytest.raises(UnsupportedModelError, match="quantize='q4_k_l': expected one of .*q4_k_m"):
        qwen35.load("tiny", quantize="q4_k_l")
    with pytest.raises(TypeError, match="quantize: expected a str or None, got int"):
        qwen35.load("tiny", quantize=4)


def write(folder: Path, **options: Any) -> Path:
    return checkpoints.write_checkpoint(
        folder / "small", mtp=False, vision=False, **WIDE, **options
    )


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m", "iq4_xs"])
def test_logits(tmp_path: Path, recipe: str) -> None:
    """Float32 against float64 on the same decoded numbers: 1e-4 of the largest."""
    path = write(tmp_path)
    with qwen35.load(path, mtp=False, kv_dtype="float32") as plain:
        before = plain.memory()["weights"]
    with qwen35.load(path, mtp=False, dtype="float32", quantize=recipe) as model:
        got, tensors = model.logits(IDS), dict(model.tensors)
        assert model.memory()["weights"] < 0.7 * before
    want = Reference(checkpoints.config_of(**WIDE), tensors).logits(IDS)
    assert core_models.relative_error(got, want) <= 1e-4


def test_progress_and_threads_do_not_matter(tmp_path: Path) -> None:
    """The same blocks whatever the threads; elements are counted up to all of them."""
    matrix, seen = np.random.default_rng(3).standard_normal((700, 4096), np.float32), []
    one = encode(matrix, "q4_k", threads=1, done=seen.append)
    many = encode(matrix, "q4_k", threads=3)
    assert np.array_equal(one.data, many.data)
    assert seen == sorted(seen)
    assert seen[-1] == matrix.size
    stages = []
    report = lambda done, total, stage: stages.append((stage, done == total))  # noqa: E731
    qwen35.load(write(tmp_path), mtp=False, quantize="q8_0", progress=report).close()
    assert ("quantize", True) in stages


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    path = write(tmp_path)
    weights = path / "model.safetensors"
    found = checkpoints.make_tensors(checkpoints.config_of(vision=False, **WIDE), mtp=False)
    found[f"{ROOT}layers.0.mlp.gate_proj.weight"][3, 5] = np.nan
    checkpoints.write_safetensors(weights, found)
    with pytest.raises(ModelFormatError, match="gate_proj.weight': row 3, column 5 is nan"):
        qwen35.load(path, mtp=False, quantize="q4_0")


def test_blocks_that_are_smaller_already_stay(tmp_path: Path) -> None:
    """A q4_0 model asked for q8_0 is not blown up again."""
    with qwen35.load(write(tmp_path), mtp=False, quantize="q4_0") as model:
        tensors = model._checkpoint.tensors
        from qwen35.quantize import plan

        assert list(plan(tensors, "q8_0", layers=8, tied=True)) == []


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m"])
def test_tokens_of_8_bits_cost_little(recipe: str) -> None:
    """On what tiny was trained for, its answers to held-out questions: KL to the same blocks with
    tokens in float32, which parity tests hold against transformers, and the likeliest tokens.
    """
    with (
        qwen35.load("tiny", quantize=recipe, dtype="float32") as exact,
        qwen35.load("tiny", quantize=recipe) as model,
    ):
        divergences, agree = [], []
        for ids in conversations(model):
            want, got = (log_softmax(m.logits(ids)) for m in (exact, model))
            divergences.append((np.exp(want) * (want - got)).sum(-1))
            agree.append(want.argmax(-1) == got.argmax(-1))
    assert np.concatenate(divergences).mean() <= 1e-4
    assert np.concatenate(agree).mean() >= 0.99


def log_softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def conversations(model: qwen35.Model) -> list[list[int]]:
    """Two held-out questions of each task and mode, with their answers."""
    sys.path.append(str(Path(__file__).parents[1] / "examples" / "tiny"))
    try:
        from render import Renderer
        from tasks import READ, example
    finally:
        sys.path.pop()
    renderer, found = Renderer(Path(qwen35.__file__).parent / "tiny"), []
    for task in READ:
        for thinking in (False, True):
            rng = Random(f"fidelity {task} {thinking}")
            for _ in range(2):
                one = example(rng, task, held=True, level=0.2, thinking=thinking)
                found.append(model.tokenize("".join(renderer.text(one)), special=True))
    return found


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m", "q2_k"])
def test_prompts_of_several_chunks(recipe: str) -> None:
    """Chunks before the last one want no logits. Float32 NumPy on the decoded numbers is the oracle
    of the exact mode, whose likeliest tokens integer products must find; and the same bits come of
    small pieces.
    """
    with (
        qwen35.load("tiny", quantize=recipe, dtype="float32") as exact,
        qwen35.load("tiny", quantize=recipe) as model,
    ):
        text = [id for ids in conversations(model) for id in ids][:700]
        ids = np.array(text, np.int32)
        whole, pieces, wanted = (m._core_session(len(ids)) for m in (model, model, exact))
        whole.prefill(ids)
        wanted.prefill(ids)
        for at in range(0, len(ids), 100):
            pieces.prefill(ids[at : at + 100])
        got, want = np.array(whole.logits), np.array(wanted.logits)
    assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()
    assert got.argmax() == want.argmax()
    assert np.abs(got - np.array(pieces.logits)).max() <= 1e-5 * np.abs(got).max()


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m", "iq4_xs", "q5_0", "q4_1", "q2_k"])
def test_blocks_made_in_memory_are_there_once(recipe: str) -> None:
    """What the core has laid out it alone keeps; tensors still read as the same numbers decode."""
    with (
        qwen35.load("tiny", quantize=recipe, dtype="float32") as exact,
        qwen35.load("tiny", quantize=recipe) as model,
    ):
        kept = [model._checkpoint.tensors.stored(name) for name in model._native().laid_out]
        assert kept or recipe == "q2_k"
        assert all(blocks.data.size == 0 and blocks.nbytes > 0 for blocks in kept)
        for name, want in exact.tensors.items():
            assert np.array_equal(model.tensors[name], want), name
        assert model.memory()["weights"] == exact.memory()["weights"]
        assert not exact._native().laid_out
