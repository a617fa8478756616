"""Oracle: the quadratic form e^T H e itself, in float64 NumPy on decoded blocks; every assignment
of a small problem; encode_blocks where columns have nothing to do with each other.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen35 import _core
from qwen35.blocks import Blocks
from qwen35.calibrate import Moments
from qwen35.compensate import Factor, factors_of, fit, squared_error

TYPES = sorted(name for name, (_, _, _, encodable) in _core.formats().items() if encodable)
Array = NDArray[np.float32]


def block_of(type: str) -> int:
    return _core.formats()[type][1]


def inputs(columns: int, tokens: int = 2000, seed: int = 0) -> Array:
    """Correlated, of different sizes: a random mixture of fewer directions and some noise."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, columns // 4)) @ rng.standard_normal(
        (columns // 4, columns)
    )
    x = mixed / np.sqrt(columns / 4) + 0.3 * rng.standard_normal((tokens, columns))
    return (x * np.exp(0.7 * rng.standard_normal(columns))).astype(np.float32)


def moments_of(x: Array) -> Moments:
    moments = Moments.empty(x.shape[1])
    moments.add(x)
    return moments


def weights(rows: int, columns: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def loss(w: Array, blocks: Blocks, h: NDArray[np.float64]) -> float:
    e = w.astype(np.float64) - blocks.decode()
    return float(np.einsum("ri,ij,rj->", e, h, e))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("columns", [256, 768])
def test_fit_beats_rounding_in_the_true_loss(type: str, columns: int) -> None:
    """Against blocks that know how much each column counts, though not how they go together."""
    x, w = inputs(columns), weights(11, columns)
    moments = moments_of(x)
    h = x.astype(np.float64).T @ x / len(x)
    importance = np.ascontiguousarray(np.diagonal(h), np.float32)
    plain = loss(w, Blocks(type, _core.encode_blocks(type, w, importance)), h)
    fitted = fit(w, type, factors_of(moments), threads=2)
    assert fitted.shape == w.shape
    assert loss(w, fitted, h) <= 0.7 * plain


def test_squared_error_is_the_mean_over_inputs() -> None:
    x, e = inputs(256, tokens=70), weights(5, 256)
    want = float(np.square(x.astype(np.float64) @ e.T).sum(axis=1).mean())
    assert squared_error(e, moments_of(x)) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("type", TYPES)
def test_alone_columns_are_encoded_as_ever(type: str) -> None:
    """U = 0: the very bytes of encode_blocks."""
    n = 256
    w = weights(9, n)
    importance = np.random.default_rng(5).random((1, n)).astype(np.float32)
    fitted = np.zeros((9, n // block_of(type) * _core.fitted_bytes()), np.uint8)
    error = np.full_like(w, np.nan)
    _core.feed_window(type, fitted, error, w, w, importance, np.eye(n, dtype=np.float32))
    got = _core.pack_fitted(type, fitted, n)
    assert np.array_equal(got, _core.encode_blocks(type, w, importance[0]))
    assert np.abs(w - Blocks(type, got).decode() - error).max() <= 1e-6


@pytest.mark.parametrize("type", TYPES)
def test_polish_only_gains_and_its_arrays_follow(type: str) -> None:
    n = 256
    x, w = inputs(n), weights(9, n)
    h = (x.T @ x / len(x)).astype(np.float32)
    fitted = np.zeros((9, n // block_of(type) * _core.fitted_bytes()), np.uint8)
    error = np.empty_like(w)
    ones = np.ones((1, n), np.float32)
    _core.feed_window(type, fitted, error, w, w, ones, np.eye(n, dtype=np.float32))
    before = loss(w, Blocks(type, _core.pack_fitted(type, fitted, n)), h.astype(np.float64))
    gradient = error @ h
    for _ in range(3):
        _core.polish_window(type, fitted, error, gradient, h, 1)
        after = Blocks(type, _core.pack_fitted(type, fitted, n))
        now = loss(w, after, h.astype(np.float64))
        assert now < before * (1 + 1e-6)
        before = now
        assert np.abs(w - after.decode() - error).max() <= 2e-5
        want = error.astype(np.float64) @ h
        assert np.abs(gradient - want).max() <= 1e-3 * np.abs(want).max()


def test_codes_of_a_small_problem_are_near_the_best_there_are() -> None:
    """Three columns count; all codes of them, at the scale that was chosen, are tried."""
    n = 32
    h = np.zeros((n, n))
    h[:3, :3] = [[1.0, 0.9, 0.5], [0.9, 1.0, 0.8], [0.5, 0.8, 1.0]]
    factor = Factor.of(h.astype(np.float32), 1)
    w = weights(20, n)
    blocks = fit(w, "q4_0", [factor], threads=1)
    scales = blocks.data[:, :2].copy().view(np.float16).astype(np.float64)[:, 0]
    got = w.astype(np.float64) - blocks.decode()
    for row in range(len(w)):
        codes = np.array(list(itertools.product(range(-8, 8), repeat=3)))
        e = w[row, :3] - scales[row] * codes
        damped = factor.h[:3, :3].astype(np.float64)
        least = np.einsum("ri,ij,rj->r", e, damped, e).min()
        own = got[row, :3] @ damped @ got[row, :3]
        assert own <= 1.5 * least + 1e-3 * scales[row] ** 2


def test_factor() -> None:
    """H = (U + 1) D (U + 1)^T, U strictly upper."""
    x = inputs(64)
    factor = Factor.of((x.T @ x).astype(np.float32), len(x))
    assert np.allclose(np.tril(factor.u, -1), 0) and np.allclose(np.diagonal(factor.u), 1)
    u = factor.u.astype(np.float64)
    assert np.allclose(u @ np.diag(factor.importance[0]) @ u.T, factor.h, rtol=0, atol=1e-4)


def test_blocks_of_h_and_pieces_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are independent of where pieces and tasks end; a diagonal block sees itself alone."""
    monkeypatch.setattr("qwen35.calibrate.WIDTH", 512)
    x, w = inputs(1024), weights(13, 1024)
    factors = factors_of(moments_of(x))
    assert len(factors) == 2
    steps: list[int] = []
    whole = fit(w, "q4_k", factors, threads=2, done=steps.append)
    monkeypatch.setattr("qwen35.compensate.PIECE", 5 * 1024)
    monkeypatch.setattr("qwen35.compensate.TASK", 2 * 256)
    parts = fit(w, "q4_k", factors, threads=1, done=steps.append)
    assert steps == [13 * 1024, 5 * 1024, 10 * 1024, 13 * 1024]
    h = np.zeros((1024, 1024))
    for i in (slice(0, 512), slice(512, 1024)):
        h[i, i] = x[:, i].astype(np.float64).T @ x[:, i] / len(x)
    # BLAS sums rows of other shapes in another order, and a code may tip over.
    assert loss(w, parts, h) == pytest.approx(loss(w, whole, h), rel=1e-2)
    halves = [fit(w[:, :512].copy(), "q4_k", factors[:1], threads=1)]
    assert np.mean(halves[0].data == whole.data[:, : halves[0].data.shape[1]]) > 0.95


def test_columns_without_inputs_and_rows_of_zeros() -> None:
    x = inputs(256)
    x[:, 32:96] = 0
    w = weights(4, 256)
    w[2] = 0
    for type in TYPES:
        found = fit(w, type, factors_of(moments_of(x)), threads=1).decode()
        assert np.isfinite(found).all() and not found[2].any()
        assert np.abs(found[0] - w[0]).max() < 3.5  # not at random where nothing is known


def test_nan_is_refused_by_place() -> None:
    w = weights(4, 256)
    w[2, 7] = np.nan
    with pytest.raises(ValueError, match="row 2, column 7 is nan: expected a finite number"):
        fit(w, "q4_k", factors_of(moments_of(inputs(256))), threads=1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"type": "iq2_xs"}, "no type that can be encoded"),
        ({"n": 288}, "256 columns at most"),
        ({"u": np.eye(255, dtype=np.float32)}, "expected .256, 256."),
        ({"u": np.eye(256)}, "u: expected a 2-d array of float32"),
        ({"fitted": np.zeros((3, 5), np.uint8)}, "fitted: shape"),
        ({"importance": np.ones((2, 256), np.float32)}, "importance: shape"),
        ({"error": np.zeros((3, 512), np.float32)[:, ::2]}, "contiguous rows"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, object], error: str) -> None:
    n = int(str(change.get("n", 256)))
    given: dict[str, object] = {
        "type": "q4_0",
        "fitted": np.zeros((3, n // 32 * _core.fitted_bytes()), np.uint8),
        "error": np.zeros((3, n), np.float32),
        "x": np.zeros((3, n), np.float32),
        "fed": np.zeros((3, n), np.float32),
        "importance": np.ones((1, n), np.float32),
        "u": np.eye(n, dtype=np.float32),
    }
    given |= {key: value for key, value in change.items() if key != "n"}
    with pytest.raises((TypeError, ValueError), match=error):
        _core.feed_window(*given.values())  # type: ignore[arg-type]
