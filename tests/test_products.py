"""Oracle: NumPy in float64, on decoded blocks and on tokens rounded as kernels.h says: products of
matrices of blocks as integers and of bf16 and f16 in fixed point, on every target this machine can
run.

Integer sums are exact and are added up in float32, so what is left are roundings of that: 2^-24 a
group of columns, of the sum of magnitudes.
"""

from __future__ import annotations

from typing import Any

import guard
import ml_dtypes
import numpy as np
import pytest
from kernels_under_test import core as _core
from numpy.typing import NDArray

Array = NDArray[Any]
TARGETS = _core.kernels()
FORMATS = _core.formats()
BLOCKS = [name for name, (_, elements, _, _) in FORMATS.items() if elements > 1]
PACKED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "q4_k", "q5_k", "q6_k", "iq4_xs"]
GROUP = 32
WORDS = {"avx2", "avx512"}  # multiply int16: signed bytes meet tokens of 16 bits there
UNSIGNED = {"q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"}  # but these, where packed


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


def random_blocks(rng: np.random.Generator, type: str, rows: int, columns: int) -> Array:
    """Random bytes but for the f16 scales, which are made small and finite."""
    _, elements, size, _ = FORMATS[type]
    blocks = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    halves = {
        **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)),
        "q2_k": (80, 82),
        "q3_k": (108,),
        "q6_k": (208,),
    }
    for at in halves.get(type, (0,)):
        scale = rng.uniform(-0.02, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
    if type == "mxfp4":
        blocks[..., 0] = rng.integers(110, 130, blocks.shape[:2])
    if type == "iq1_m":  # four bits of d on top of each u16 of scales
        blocks[..., 48:56].view(np.uint16)[...] &= 0x0FFF
        blocks[..., 54:56].view(np.uint16)[...] |= 0x2000
    return blocks.reshape(rows, -1)


def rounded(x: Array, *, fine: bool) -> NDArray[np.float64]:
    """Tokens as quantize makes them: 127 stands for the largest of each 32, 256 times finer or
    not.
    """
    parts = x.reshape(len(x), -1, GROUP).astype(np.float32)
    top = np.abs(parts).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = parts * np.where(top > 0, np.float32(127) / top, np.float32(0))
    codes = np.rint(scaled).astype(np.float64)
    if fine:
        codes += np.minimum(np.rint((scaled - codes) * 256), 127) / 256
    return (codes * (top.astype(np.float64) / 127)).reshape(x.shape)


def is_fine(target: str, type: str, fine: bool, *, packed: bool = True) -> bool:
    """Whether tokens have 16 bits, of which `fine` is what was asked for."""
    return fine or (target in WORDS and not (packed and type in UNSIGNED))


def decoded(type: str, blocks: Array, columns: int) -> NDArray[np.float64]:
    numbers = _core.decode_blocks(type, blocks, blocks.shape[0] * columns)
    return numbers.reshape(-1, columns).astype(np.float64)


def product(
    target: str, type: str, blocks: Array, x: Array, *, begin: Array | None = None, **how: Any
) -> Array:
    y = guard.poisoned((len(x), len(blocks)), np.float32, at_end=True)
    if begin is not None:
        y[...] = begin
    _core.run_product(target, type, blocks, x, y, add=begin is not None, **how)
    return y


def check(y: Array, w: Array, x: Array, *, begin: Array | float = 0.0) -> None:
    groups = x.shape[1] / 16
    bound = (np.abs(x) @ np.abs(w).T + np.abs(begin)) * (groups + 8) * 2.0**-24
    # Blocks with a smallest number are a difference of two sums, each larger than what is left.
    assert np.all(np.abs(y - (x @ w.T + begin)) <= 40 * bound + 1e-30)


@pytest.mark.parametrize("fine", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "from rows"])
@pytest.mark.parametrize("type", BLOCKS)
def test_every_type(target: str, type: str, packed: bool, fine: bool) -> None:
    rng = np.random.default_rng(7)
    for rows, columns, tokens in ((37, 256, 1), (16, 1536, 3), (5, 512, 21)):
        blocks = guard.like(random_blocks(rng, type, rows, columns), at_end=True)
        x = guard.like(rng.standard_normal((tokens, columns)).astype(np.float32), at_end=True)
        y = product(target, type, blocks, x, packed=packed, fine=fine)
        tokens_fine = is_fine(target, type, fine, packed=packed)
        check(y, decoded(type, blocks, columns), rounded(x, fine=tokens_fine))


@pytest.mark.parametrize("type", ["q4_0", "q8_0", "iq4_nl"])
@pytest.mark.parametrize("columns", [32, 96, 1024, 1056])
def test_columns_of_small_blocks(target: str, type: str, columns: int) -> None:
    """One block, an odd number, exactly what is multiplied at once, and one block more."""
    rng = np.random.default_rng(columns)
    blocks = random_blocks(rng, type, 17, columns)
    x = rng.standard_normal((9, columns)).astype(np.float32)
    tokens = rounded(x, fine=is_fine(target, type, False))
    check(product(target, type, blocks, x), decoded(type, blocks, columns), tokens)


@pytest.mark.parametrize("fine", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("type", [*PACKED, "q2_k", "iq2_xs"])
def test_bits_do_not_depend_on_company(target: str, type: str, fine: bool) -> None:
    """A token alone, among others, with other threads: in tiles of every size, from codes taken
    apart or not, with more tokens than stay in cache.
    """
    rng = np.random.default_rng(3)
    blocks = random_blocks(rng, type, 75, 2304)
    x = rng.standard_normal((79, 2304)).astype(np.float32)
    together = product(target, type, blocks, x, fine=fine)
    assert np.array_equal(together, product(target, type, blocks, x, fine=fine, threads=3))
    for t in range(len(x)):
        assert np.array_equal(
            together[t : t + 1], product(target, type, blocks, x[t : t + 1], fine=fine)
        )
    for cut in (1, 2, 4, 7, 15, 33, 63):
        parts = [product(target, type, blocks, part, fine=fine) for part in (x[:cut], x[cut:])]
        assert np.array_equal(together, np.concatenate(parts))


def test_adds_to_what_is_there(target: str) -> None:
    rng = np.random.default_rng(5)
    blocks = random_blocks(rng, "q4_k", 19, 512)
    x = rng.standard_normal((4, 512)).astype(np.float32)
    begin = rng.standard_normal((4, 19)).astype(np.float32)
    y = product(target, "q4_k", blocks, x, begin=begin)
    check(y, decoded("q4_k", blocks, 512), rounded(x, fine=False), begin=begin)


@pytest.mark.parametrize("fine", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("type", PACKED)
def test_extreme_codes_and_tokens(target: str, type: str, fine: bool) -> None:
    """Every bit of the codes set or none, tokens at their largest with one sign, of zeros, with one
    number among zeros, and with low bytes of -128: no sum may leave its integers.
    """
    rng = np.random.default_rng(1)
    for byte in (0x00, 0xFF, 0x80):
        blocks = random_blocks(rng, type, 16, 1024)
        _, elements, size, _ = FORMATS[type]
        codes = blocks.reshape(16, -1, size)[..., 4 if type != "q6_k" else 0 :]
        codes[..., : size - 8 if type == "q6_k" else None] = byte
        x = np.zeros((6, 1024), np.float32)
        x[5], x[5, ::GROUP] = -0.4995, 127
        x[0], x[1], x[2, ::2], x[2, 1::2], x[3, 17] = 3.0, -3.0, 5.0, -5.0, 1e-3
        y = product(target, type, blocks, x, fine=fine)
        tokens = rounded(x, fine=is_fine(target, type, fine))
        check(y, decoded(type, blocks, 1024), tokens)
        assert np.all(y[4] == 0)
        for t in range(len(x)):
            alone = product(target, type, blocks, x[t : t + 1], fine=fine)
            assert np.array_equal(alone, y[t : t + 1])


# ---- bf16 and f16 in fixed point -----------------------------------------------------------------

DENSE = {"bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16)}
F32 = {"c", "neon", "neondotprod"}  # multiply these types in float32


def dense(rng: np.random.Generator, type: str, rows: int, columns: int) -> tuple[Array, Array]:
    """Weights, and their bytes as run_product takes them."""
    w = (0.02 * rng.standard_normal((rows, columns))).astype(DENSE[type])
    return w, guard.like(w.view(np.uint8), at_end=True)


def check_dense(y: Array, w: Array, x: Array, begin: Array | float = 0.0) -> None:
    """Rounding errors of a token's block are below 1.8e-4 of its norm (kernels.h), those of a
    weight below half of 1/2^11 of its block's largest; of bf16 only where it is far smaller.
    """
    bound = 1e-6 * np.abs(begin) + 1e-30
    for b in range(0, x.shape[1], 128):
        xb, wb = (a[:, b : b + 128].astype(np.float64) for a in (x, w))
        norms = np.linalg.norm(xb, axis=1)[:, None] * np.linalg.norm(wb, axis=1)
        bound = bound + 1.8e-4 * norms + np.abs(xb).sum(1)[:, None] * np.abs(wb).max(1) / 2**12
    assert np.all(np.abs(y - (x.astype(np.float64) @ w.astype(np.float64).T + begin)) <= bound)


@pytest.mark.parametrize("type", DENSE)
@pytest.mark.parametrize(("rows", "columns"), [(70, 1024), (16, 300), (129, 129), (3, 7)])
def test_dense_types(target: str, type: str, rows: int, columns: int) -> None:
    """Few tokens, many, more than are multiplied at once; replaced and added to."""
    rng = np.random.default_rng(rows)
    w, given = dense(rng, type, rows, columns)
    for tokens in (1, 3, 16, 17, 520):
        x = guard.like(rng.standard_normal((tokens, columns)).astype(np.float32), at_end=True)
        begin = rng.standard_normal((tokens, rows)).astype(np.float32)
        check_dense(product(target, type, given, x), w, x)
        check_dense(product(target, type, given, x, begin=begin), w, x, begin)


@pytest.mark.parametrize("type", DENSE)
def test_bits_of_dense_types_do_not_depend_on_company(target: str, type: str) -> None:
    """The same rows and tokens alone, in every group of few, packed, with other threads."""
    if target in F32:
        pytest.skip("long products are left to OpenBLAS")
    rng = np.random.default_rng(8)
    _, given = dense(rng, type, 133, 900)
    x = rng.standard_normal((64, 900)).astype(np.float32)
    together = product(target, type, given, x)
    assert np.array_equal(together, product(target, type, given, x, threads=3))
    for tokens in (1, 2, 3, 4, 5, 7, 12, 15, 16, 17, 63):
        first = product(target, type, given, x[:tokens])
        assert np.array_equal(together[:tokens], first)
        assert np.array_equal(together[-tokens:], product(target, type, given, x[-tokens:]))
        rows = product(target, type, given[tokens:].copy(), x[:tokens])
        assert np.array_equal(first[:, tokens:], rows)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC1], ids=["inf", "-inf", "NaN"])
def test_weights_that_are_no_numbers_stay_so(target: str, bits: int) -> None:
    """In their own rows and no other; so do tokens."""
    rng = np.random.default_rng(4)
    w, _ = dense(rng, "bf16", 20, 300)
    w.view(np.uint16)[3, 140] = bits
    x = rng.standard_normal((17, 300)).astype(np.float32)
    x[2, 299] = np.inf
    for tokens in (1, 4, 17):
        y = product(target, "bf16", w.view(np.uint8), x[:tokens])
        fine = np.isfinite(y)
        assert not fine[:, 3].any()
        assert not fine[2:3].any()
        assert np.delete(np.delete(fine, 3, 1), [2] if tokens > 2 else [], 0).all()


def test_one_huge_weight_among_tiny_ones(target: str) -> None:
    """The tiny ones of its own block are lost, as they are in its rounding; no other block's."""
    w = np.full((2, 256), 2.0**-60).astype(DENSE["bf16"])
    w[0, 5] = 2.0**100
    x = np.zeros((17, 256), np.float32)
    x[:, 5], x[:, 200] = 1.0, 2.0
    for tokens in (1, 17):
        y = product(target, "bf16", w.view(np.uint8), x[:tokens])
        assert y[:, 0] == pytest.approx(np.full(tokens, 2.0**100), rel=1e-4)
        assert y[:, 1] == pytest.approx(np.full(tokens, 3 * 2.0**-60), rel=1e-4)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "from rows"])
def test_no_tokens(target: str, packed: bool) -> None:
    """The last layer of a chunk whose outputs nobody wants: nothing is read, nothing written."""
    blocks = random_blocks(np.random.default_rng(9), "q4_k", 19, 512)
    y = product(target, "q4_k", blocks, np.zeros((0, 512), np.float32), packed=packed)
    assert y.shape == (0, 19)


def test_tokens_too_small_to_scale_are_zeros(target: str) -> None:
    """127 / 1e-37 is no float: sums of what that gave would leave their integers."""
    blocks = random_blocks(np.random.default_rng(6), "q8_0", 16, 64)
    x = np.full((2, 64), 1e-37, np.float32)
    x[1, 32:] = 1.0
    y = product(target, "q8_0", blocks, x)
    assert np.all(y[0] == 0)
    x[1, :32] = 0
    tokens = rounded(x[1:], fine=is_fine(target, "q8_0", False))
    check(y[1:], decoded("q8_0", blocks, 64), tokens)


def test_tokens_of_16_bits_are_closer(target: str) -> None:
    """Against the product that rounds no token: 100 times closer at least (256 in theory)."""
    rng = np.random.default_rng(2)
    blocks = random_blocks(rng, "q4_0", 64, 1024)
    x = rng.standard_normal((3, 1024)).astype(np.float32)
    want = x.astype(np.float64) @ decoded("q4_0", blocks, 1024).T
    coarse, fine = (
        np.abs(product(target, "q4_0", blocks, x, fine=how) - want).max() for how in (False, True)
    )
    assert fine * 100 < coarse


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "NaN"])
def test_scales_that_are_no_numbers_stay_so(target: str, bits: int) -> None:
    """A damaged file shows in its own rows and in no other."""
    rng = np.random.default_rng(4)
    blocks = random_blocks(rng, "q8_0", 20, 64)
    blocks[3, 34:36] = np.array([bits], np.uint16).view(np.uint8)
    x = rng.standard_normal((2, 64)).astype(np.float32)
    finite = np.isfinite(product(target, "q8_0", blocks, x))
    assert not finite[:, 3].any()
    assert finite[:, np.arange(20) != 3].all()


def test_what_does_not_fit_is_refused() -> None:
    blocks = np.zeros((4, 34), np.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        product("c", "q8_0", blocks, np.zeros((1, 64), np.float32))
    with pytest.raises(ValueError, match="no target"):
        product("z80", "q8_0", blocks, np.zeros((1, 32), np.float32))
