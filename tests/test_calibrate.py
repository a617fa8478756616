"""Oracle: the inputs that tests/reference.py multiplies its matrices with, in float64; for columns
in a file's order, the released order by gguf_names; literals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import core_models
import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from qwen35.calibrate import Moments, collect, cuts, input_of, token_ids, windows
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import _column_orders, export
from qwen35.loading import load

ROOT = "model.language_model."
HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 6}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, NDArray[Any]]]:
    """(id of the matrix, input) of every product that the reference makes."""
    found: list[tuple[int, NDArray[Any]]] = []
    plain = reference.linear

    def linear(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
        found.append((id(w), x))
        return plain(x, w)

    monkeypatch.setattr(reference, "linear", linear)
    return found


def names_of(model: reference.Reference) -> dict[int, str]:
    return {id(array): name for name, array in model.w.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_observe_shows_what_every_matrix_is_multiplied_with(seen: Any, tied: bool) -> None:
    """More tokens than the engine takes at once; of the last layer too."""
    core, model = core_models.both(tie_word_embeddings=tied, **HEADS)
    ids = core_models.tokens(1, 300)
    got: dict[str, list[NDArray[Any]]] = {}
    core.session(400).observe(ids, lambda name, x: got.setdefault(name, []).append(x.copy()))
    model.logits(ids)
    names = names_of(model)
    want = {names[w]: x for w, x in seen}
    assert set(got) == set(want)
    for name, x in want.items():
        found = np.concatenate(got[name])
        assert found.shape == x.shape
        assert core_models.relative_error(found, x) <= 1e-4, name  # float32 through four layers


def test_observer_that_raises_ends_the_forward() -> None:
    core, _ = core_models.both()
    session = core.session(400)

    def stop(name: str, x: Any) -> None:
        assert not x.flags.writeable
        raise KeyError(name)

    with pytest.raises(KeyError):
        session.observe(core_models.tokens(1, 20), stop)
    assert session.position == 0
    session.observe(core_models.tokens(1, 20), lambda name, x: None)
    assert session.position == 20


def test_moments(seen: Any) -> None:
    core, model = core_models.both(**HEADS)
    text = [core_models.tokens(seed, T) for seed, T in ((1, 300), (2, 41))]
    for ids in text:
        model.logits(ids)
    names = names_of(model)
    want: dict[str, Any] = {}
    for w, x in seen:
        want[names[w]] = want.get(names[w], 0) + x.T @ x
    columns = {input_of(name): len(h) for name, h in want.items()}
    assert len(columns) < len(want)
    steps: list[tuple[int, int]] = []
    got = collect(core, text, columns, orders={}, report=lambda *step: steps.append(step))
    assert steps == [(300, 341), (341, 341)]
    for name, h in want.items():
        (block,) = got[input_of(name)].blocks
        assert got[input_of(name)].count == 341
        assert core_models.relative_error(block, h) <= 1e-4, name
        squares = got[input_of(name)].mean_squares()
        assert core_models.relative_error(squares, np.diagonal(h) / 341) <= 1e-4


def test_columns_in_the_order_of_the_file(tmp_path: Path) -> None:
    """out_proj's inputs of a folder, put in a file's order, are those that the file's model has."""
    folder = checkpoints.write_checkpoint(tmp_path / "hf", **HEADS)
    checkpoint = open_checkpoint(folder)
    export(checkpoint, tmp_path / "x.gguf", "keep", threads=1)
    name = f"{ROOT}layers.0.linear_attn.out_proj.weight"
    orders = _column_orders(checkpoint, [name, f"{ROOT}layers.0.mlp.down_proj.weight"])
    assert list(orders) == [name]
    columns, ids = {name: checkpoint.tensors.span(name).shape[1]}, [core_models.tokens(1, 50)]
    with load(folder, kv_dtype="float32") as model:
        plain = collect(model._core, ids, columns, orders={})[name].blocks[0]
        ordered = collect(model._core, ids, columns, orders=orders)[name].blocks[0]
    with load(tmp_path / "x.gguf", kv_dtype="float32") as model:
        want = collect(model._core, ids, columns, orders={})[name].blocks[0]
    assert core_models.relative_error(ordered, want) <= 1e-5
    assert core_models.relative_error(plain, want) > 0.1


def test_wide_matrices_have_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(4096) == [(0, 4096)]
    assert cuts(12288) == [(0, 4096), (4096, 8192), (8192, 12288)]
    assert cuts(9216) == [(0, 3072), (3072, 6144), (6144, 9216)]
    assert cuts(4100) == [(0, 2304), (2304, 4100)]
    monkeypatch.setattr("qwen35.calibrate.WIDTH", 256)
    x = np.random.default_rng(1).standard_normal((7, 400)).astype(np.float32)
    moments = Moments.empty(400)
    moments.add(x)
    assert [block.shape for block in moments.blocks] == [(256, 256), (144, 144)]
    assert np.allclose(moments.blocks[1], x[:, 256:].T @ x[:, 256:], rtol=0, atol=1e-5)


def test_windows() -> None:
    ids = np.arange(1500, dtype=np.int32)
    assert [len(w) for w in windows(ids)] == [512, 512, 476]
    ids = np.arange(512 * 100, dtype=np.int32)
    found = [int(w[0]) // 512 for w in windows(ids, limit=5 * 512 + 3)]
    assert found == [0, 19, 39, 59, 79]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty, expected at least 1,024 tokens"),
        ([], "it is empty"),
        ([1, 2, 400], r"calibration text.*400"),
    ],
)
def test_texts_that_are_none(small: Path, text: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        token_ids(open_checkpoint(small), text)


def test_special_tokens_are_text_unless_asked_for(small: Path) -> None:
    checkpoint = open_checkpoint(small)
    plain = token_ids(checkpoint, "hello<|im_end|>")
    special = token_ids(checkpoint, "hello<|im_end|>", special=True)
    assert special[-1] == checkpoints.TOKEN_IDS["<|im_end|>"]
    assert checkpoints.TOKEN_IDS["<|im_end|>"] not in plain
