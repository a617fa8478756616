"""Oracle: NumPy in float64, on what each kernel's comment in csrc/kernels/kernels.h promises. Every
target this machine can run.

Arrays end at a page nobody may read, or start after one; outputs are NaN before; sizes sit around
every vector width; rows have gaps, which must stay as they were.
"""

from __future__ import annotations

from typing import Any

import guard
import ml_dtypes
import numpy as np
import pytest
import reference
from kernels_under_test import core as _core
from numpy.typing import NDArray

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
STORAGE = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": BF16}
SIZES = sorted({1, *(s for w in (4, 8, 16, 32) for s in (w - 1, w, w + 1, 3 * w + 5))})
FEW = (1, 7, 16, 33, 53)
EPS = 2.0**-24  # half a unit in the last place of float32: one rounding
TARGETS = _core.kernels()
WHERE = pytest.mark.parametrize("at_end", [True, False], ids=["ends at guard", "starts at guard"])


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


def as_core(x: Array) -> Array:
    """bfloat16 goes to the core as its bits."""
    return x.view(np.uint16) if x.dtype == BF16 else x


def run(target: str, name: str, *args: Any) -> Any:
    return _core.run_kernel(
        target, name, *(as_core(a) if isinstance(a, np.ndarray) else a for a in args)
    )


def noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def wide(x: Array) -> NDArray[np.float64]:
    return x.astype(np.float64)


def check_gaps(x: Array) -> None:
    assert np.isnan(guard.gaps(x).astype(np.float32)).all(), "written between rows"


def test_portable_target_is_always_there() -> None:
    assert TARGETS[0] == "c"
    x86 = {"avx2", "avx2vnni", "avx512", "avx512vnni"}
    assert set(TARGETS[1:]) <= x86 or set(TARGETS[1:]) <= {"neon", "neondotprod"}


# ---- storage types -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_expand_every_bit_pattern(target: str, kind: str) -> None:
    """65,536 values, subnormals, infinities and NaN among them: exact."""
    x = np.arange(65536, dtype=np.uint16).view(STORAGE[kind])
    y = np.empty(65536, np.float32)
    run(target, "expand", y, x)
    want = x.astype(np.float32)
    assert np.array_equal(np.isnan(y), np.isnan(want))
    assert np.array_equal(y[~np.isnan(y)].view(np.uint32), want[~np.isnan(want)].view(np.uint32))


@WHERE
@pytest.mark.parametrize("kind", STORAGE)
@pytest.mark.parametrize("n", SIZES)
def test_expand_and_narrow_sizes(target: str, kind: str, n: int, at_end: bool) -> None:
    x = guard.like(noise(np.random.default_rng(n), (n,), STORAGE[kind]), at_end=at_end)
    y = guard.poisoned((n,), np.float32, at_end=at_end)
    run(target, "expand", y, x)
    assert np.array_equal(y, x.astype(np.float32))
    back = guard.poisoned((n,), STORAGE[kind], at_end=at_end)
    run(target, "narrow", back, y)
    assert np.array_equal(as_core(back), as_core(x))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_narrow_rounds_to_nearest_even(target: str, kind: str) -> None:
    """Each 16-bit value, the ties half way to the next, one unit beside the ties, and a million
    random bit patterns.
    """
    values = np.arange(65536, dtype=np.uint16).view(STORAGE[kind]).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    ties = (wide(values[:-1]) + wide(values[1:])) / 2
    ties = ties.astype(np.float32)
    random = (
        np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    )
    beside = [np.nextafter(ties, np.float32(s)) for s in (-np.inf, np.inf)]
    ends = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.996, 65520, 3.4e38, 1e-45, 2.0**-25], np.float32
    )
    x = np.concatenate([values, ties, *beside, random, ends])
    y = np.empty(len(x), STORAGE[kind])
    run(target, "narrow", y, x)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(STORAGE[kind])
    numbers = ~np.isnan(x)
    assert np.array_equal(as_core(y)[numbers], as_core(want)[numbers])
    assert np.isnan(y[~numbers].astype(np.float32)).all()


# ---- dot: y[t, r] = sum_k w[r, k] x[t, k] --------------------------------------------------------


def dot_bound(w: Array, x: Array, n: int) -> NDArray[np.float64]:
    """n products and sums, one rounding each, in whatever order: n EPS sum |w x|."""
    return (n + 2) * EPS * (abs(wide(x)) @ abs(wide(w)).T)


@WHERE
@pytest.mark.parametrize("kind", STORAGE)
@pytest.mark.parametrize("n", SIZES)
def test_dot_sizes(target: str, kind: str, n: int, at_end: bool) -> None:
    rng = np.random.default_rng(n)
    w = guard.like(noise(rng, (7, n), STORAGE[kind]), at_end=at_end, gap=3)
    x = guard.like(noise(rng, (5, n)), at_end=at_end, gap=1)
    y = guard.poisoned((5, 7), np.float32, at_end=at_end, gap=2)
    run(target, "dot", y, w, x)
    assert (abs(y - wide(x) @ wide(w).T) <= dot_bound(w, x, n)).all()
    check_gaps(y)


@pytest.mark.parametrize("kind", STORAGE)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 12, 13, 24, 29])
def test_dot_rows_and_tokens(target: str, kind: str, rows: int) -> None:
    """Every tile and every remainder; and a row's bits are the same whatever shares the call."""
    rng = np.random.default_rng(rows)
    w, x = noise(rng, (rows, 37), STORAGE[kind]), noise(rng, (13, 37))
    alone = np.full((13, rows), np.nan, np.float32)
    for t in range(13):
        for r in range(rows):
            run(target, "dot", alone[t : t + 1, r : r + 1], w[r : r + 1], x[t : t + 1])
    for tokens in (1, 2, 3, 4, 5, 8, 13):
        y = guard.poisoned((tokens, rows), np.float32, at_end=True)
        run(target, "dot", y, w, x[:tokens])
        assert np.array_equal(y, alone[:tokens]), f"{tokens} tokens"


@pytest.mark.parametrize("kind", STORAGE)
def test_dot_adds(target: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    w, x, before = noise(rng, (9, 21), STORAGE[kind]), noise(rng, (6, 21)), noise(rng, (6, 9))
    fresh, y = np.empty_like(before), before.copy()
    run(target, "dot", fresh, w, x)
    run(target, "dot", y, w, x, 1)
    assert np.array_equal(y, before + fresh)


@pytest.mark.parametrize("kind", STORAGE)
def test_dot_at_model_width(target: str, kind: str) -> None:
    """Long sums: the error grows far slower than the bound; 1e-6 of sum |w x| would show a float16
    or bfloat16 sum.
    """
    rng = np.random.default_rng(2)
    w, x = noise(rng, (8, 4096), STORAGE[kind]), noise(rng, (3, 4096))
    y = np.full((3, 8), np.nan, np.float32)
    run(target, "dot", y, w, x)
    assert (abs(y - wide(x) @ wide(w).T) <= 1e-6 * (abs(wide(x)) @ abs(wide(w)).T)).all()


# ---- mix: y[t, j] += sum_s p[t, s] v[s, j] -------------------------------------------------------


@WHERE
@pytest.mark.parametrize("kind", STORAGE)
@pytest.mark.parametrize("n", [*SIZES, 64, 96, 128, 133])
def test_mix_sizes(target: str, kind: str, n: int, at_end: bool) -> None:
    rng = np.random.default_rng(n)
    p = guard.like(abs(noise(rng, (5, 9))), at_end=at_end, gap=2)
    v = guard.like(noise(rng, (9, n), STORAGE[kind]), at_end=at_end, gap=3)
    y = guard.poisoned((5, n), np.float32, at_end=at_end, gap=1)
    y[...] = start = noise(rng, (5, n))
    run(target, "mix", y, p, v)
    bound = 11 * EPS * (abs(wide(start)) + wide(p) @ abs(wide(v)))
    assert (abs(y - (wide(start) + wide(p) @ wide(v))) <= bound).all()
    check_gaps(y)


@pytest.mark.parametrize("kind", STORAGE)
@pytest.mark.parametrize("n", [5, 64, 101])
def test_mix_tokens(target: str, kind: str, n: int) -> None:
    """A token's bits are the same whatever shares the call."""
    rng = np.random.default_rng(n)
    p, v, start = noise(rng, (11, 6)), noise(rng, (6, n), STORAGE[kind]), noise(rng, (11, n))
    alone = start.copy()
    for t in range(11):
        run(target, "mix", alone[t : t + 1], p[t : t + 1], v)
    for tokens in (1, 2, 3, 4, 5, 8, 11):
        y = start[:tokens].copy()
        run(target, "mix", y, p[:tokens], v)
        assert np.array_equal(y, alone[:tokens]), f"{tokens} tokens"


@pytest.mark.parametrize("kind", STORAGE)
def test_mix_of_weight_zero_changes_nothing(target: str, kind: str) -> None:
    """Attention gives positions a token may not see the weight 0: bits stay."""
    rng = np.random.default_rng(3)
    p, v, y = noise(rng, (6, 8)), noise(rng, (8, 40), STORAGE[kind]), noise(rng, (6, 40))
    p[:, 5:] = 0
    short, long = y.copy(), y.copy()
    run(target, "mix", short, p[:, :5], v[:5])
    run(target, "mix", long, p, v)
    assert np.array_equal(short, long)


# ---- fixed point ---------------------------------------------------------------------------------

BLOCK, PACKED_ROWS = 128, 64
ODD = (1, 2, 127, 128, 129, 255, 300)


def parts_of(n: int) -> int:
    return -(-n // BLOCK)


@WHERE
@pytest.mark.parametrize("n", ODD)
def test_fix(target: str, n: int, at_end: bool) -> None:
    """A block's norm becomes 46000, or 32767 where few values make it up; a value is off by at most
    half a factor (and f32's own rounding of the quotient, 2^-8 of a step).
    """
    x = guard.like(noise(np.random.default_rng(n), (n,)) * 1e3, at_end=at_end)
    y = guard.poisoned((n + n % 2,), np.int16, at_end=at_end)
    factor = guard.poisoned((parts_of(n),), np.float32, at_end=at_end)
    run(target, "fix", y, factor, x)
    for b in range(parts_of(n)):
        here = slice(b * BLOCK, min(n, (b + 1) * BLOCK))
        norms = np.linalg.norm(wide(x[here])) / np.array([46000, 32767])
        assert abs(norms / factor[b] - 1).min() <= 1e-6
        assert abs(y[here]).max() <= 32767
        assert (abs(y[here] * wide(factor)[b] - x[here]) <= 0.505 * factor[b]).all()
    assert not n % 2 or y[n] == 0


@pytest.mark.parametrize("value", [0.0, 1e-18, 1e18, -3.0])
def test_fix_of_one_value(target: str, value: float) -> None:
    """Zeros, one element alone in its block, all elements equal."""
    for count in (1, BLOCK):
        x, y, factor = np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.int16), np.ones(1, "f4")
        x[:count] = value
        run(target, "fix", y, factor, x)
        assert y * factor[0] == pytest.approx(x, rel=2e-4)


def test_fix_shows_what_is_not_finite(target: str) -> None:
    """NaN or infinity in a block: its factor is not finite, so that no product hides it."""
    for value in (np.nan, np.inf):
        x, y, factor = (
            noise(np.random.default_rng(1), (200,)),
            np.empty(200, "i2"),
            np.ones(2, "f4"),
        )
        x[130] = value
        run(target, "fix", y, factor, x)
        assert np.isfinite(factor[0])
        assert not np.isfinite(factor[1])


@pytest.fixture(params=[t for t in TARGETS if t not in {"c", "neon", "neondotprod"}])
def fixed_target(request: pytest.FixtureRequest) -> str:
    return request.param


def in_fixed_point(w: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integers [rows, n] and factors [rows, blocks] of weights as kernels.h says: a block's largest
    becomes 2^11 to 2^12, but no factor is below the least normal number of f32, of f16 2^-26.
    """
    codes, factors = np.zeros(w.shape), np.zeros((len(w), parts_of(w.shape[1])))
    least = -26 if w.dtype == np.float16 else -126
    for b in range(factors.shape[1]):
        here = slice(b * BLOCK, (b + 1) * BLOCK)
        top = abs(wide(w[:, here])).max(1)
        factors[:, b] = 2.0 ** np.where(top > 0, np.maximum(np.frexp(top)[1] - 12, least), least)
        codes[:, here] = np.rint(wide(w[:, here]) / factors[:, b, None])
    return codes, factors


def fixed_tokens(target: str, x: Array) -> tuple[Array, Array]:
    """x [T, n] as dot_fixed and dot_stored take it: [blocks, T, BLOCK] and factors [blocks, T]."""
    T, n = x.shape
    codes, factors = np.zeros((parts_of(n), T, BLOCK), np.int16), np.zeros((parts_of(n), T), "f4")
    for b in range(parts_of(n)):
        for t in range(T):
            block = x[t, b * BLOCK : (b + 1) * BLOCK].copy()
            run(
                target,
                "fix",
                codes[b, t, : len(block) + len(block) % 2],
                factors[b, t, None],
                block,
            )
    return codes, factors


def weights(seed: int, rows: int, n: int, kind: str) -> Array:
    return noise(np.random.default_rng(seed), (rows, n), STORAGE[kind]) * STORAGE[kind].type(0.02)


@WHERE
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (17, 2), (64, 127), (37, 128), (63, 33)])
def test_pack_fixed(fixed_target: str, kind: str, rows: int, n: int, at_end: bool) -> None:
    """Every bit; what is missing of rows and columns becomes zeros."""
    w = guard.like(weights(n, rows, n, kind), at_end=at_end, gap=3)
    packed = guard.poisoned((PACKED_ROWS * BLOCK,), np.int16, at_end=at_end)
    factor = guard.poisoned((PACKED_ROWS,), np.float32, at_end=at_end)
    run(fixed_target, "pack_fixed", packed, factor, w)
    codes, factors = in_fixed_point(w)
    got = packed.reshape(-1, PACKED_ROWS, 2).swapaxes(1, 2).reshape(BLOCK, PACKED_ROWS).T
    assert np.array_equal(got[:rows, :n], codes)
    assert not got[rows:].any()
    assert not got[:, n:].any()
    assert np.array_equal(factor[:rows], factors[:, 0])
    assert np.isfinite(factor).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pack_fixed_of_any_bits(fixed_target: str, kind: str) -> None:
    """Random bits: subnormals, the largest numbers, one huge number among small ones; a row with
    infinity or NaN gets a factor that is none.
    """
    bits = np.random.default_rng(4).integers(0, 1 << 16, (PACKED_ROWS, BLOCK), dtype=np.uint16)
    top = 0x7C00 if kind == "f16" else 0x7F80
    bits[8:][bits[8:] & top == top] &= 0x83FF
    bits[0], bits[1], bits[2], bits[3] = 0, 0x8000, 1, 0x8003  # zeros, the least subnormals
    bits[4] = top - 1  # the largest number
    bits[5:8] = bits[8:11]
    bits[5, 17], bits[6, 0], bits[7, 127] = top, top | 0x8000, top + 1
    w = bits.view(STORAGE[kind])
    packed, factor = np.empty(PACKED_ROWS * BLOCK, np.int16), np.empty(PACKED_ROWS, np.float32)
    run(fixed_target, "pack_fixed", packed, factor, w)
    assert np.isnan(factor[5:8]).all()
    fine = np.r_[0:5, 8:PACKED_ROWS]
    codes, factors = in_fixed_point(w[fine])
    got = packed.reshape(-1, PACKED_ROWS, 2).swapaxes(1, 2).reshape(BLOCK, PACKED_ROWS).T[fine]
    assert abs(got).max() <= 4096
    assert np.array_equal(got, codes)
    assert np.array_equal(factor[fine], factors[:, 0])


@WHERE
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 13])
def test_dot_fixed(fixed_target: str, tokens: int, at_end: bool) -> None:
    """Integer sums of blocks are exact; two roundings of factors and one of the sum are not."""
    rng = np.random.default_rng(tokens)
    w, x = (rng.integers(-2800, 2801, (k, BLOCK), dtype=np.int16) for k in (PACKED_ROWS, tokens))
    w_factor, x_factor = (rng.uniform(0.5, 2, k).astype(np.float32) for k in (PACKED_ROWS, tokens))
    pairs = w.reshape(PACKED_ROWS, -1, 2).swapaxes(0, 1).reshape(-1)
    y = guard.like(noise(rng, (tokens, PACKED_ROWS)), at_end=at_end)
    product = wide(x) @ wide(w).T * wide(x_factor)[:, None] * wide(w_factor)
    want, size = wide(y) + product, abs(wide(y)) + abs(product)
    fenced = [guard.like(a, at_end=at_end) for a in (pairs, w_factor, x, x_factor)]
    run(fixed_target, "dot_fixed", y, *fenced, BLOCK)
    assert (abs(y - want) <= 4 * EPS * size).all()


def test_dot_fixed_of_the_largest_blocks(fixed_target: str) -> None:
    """The largest weights, all of one sign, against tokens of norm 46000 or a single value of
    32767: within int32.
    """
    w = np.full((PACKED_ROWS, BLOCK), 0x7F7F, np.uint16).view(BF16)
    packed, factor = np.empty(PACKED_ROWS * BLOCK, np.int16), np.empty(PACKED_ROWS, np.float32)
    run(fixed_target, "pack_fixed", packed, factor, w)
    for values in (np.full(BLOCK, 3.0, np.float32), np.eye(1, BLOCK, dtype=np.float32)[0]):
        x, x_factor = np.empty((1, BLOCK), np.int16), np.ones(1, np.float32)
        run(fixed_target, "fix", x[0], x_factor, values)
        y = np.zeros((1, PACKED_ROWS), np.float32)
        run(
            fixed_target, "dot_fixed", y, packed, factor * np.float32(2.0**-100), x, x_factor, BLOCK
        )
        want = wide(values).sum() * float(w[0, 0]) * 2.0**-100
        assert y[0] == pytest.approx(np.full(PACKED_ROWS, want), rel=2e-4)


@WHERE
@pytest.mark.parametrize("add", [0, 1])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("n", [*ODD, 512, 641])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_dot_stored(
    fixed_target: str, tokens: int, n: int, kind: str, add: int, at_end: bool
) -> None:
    """Against integers as kernels.h names them, a rounding a block; and the bits of packed rows."""
    rows, rng = 21, np.random.default_rng(n)
    w = guard.like(weights(n, rows, n, kind), at_end=at_end, gap=1)
    x, x_factor = fixed_tokens(fixed_target, noise(rng, (tokens, n)))
    y = guard.poisoned((tokens, rows), np.float32, at_end=at_end, gap=1)
    y[...] = start = noise(rng, (tokens, rows)) if add else np.float32(np.nan)
    flat = guard.like(x.reshape(-1, BLOCK), at_end=at_end)
    run(fixed_target, "dot_stored", y, w, flat, guard.like(x_factor, at_end=at_end), add)
    codes, factors = in_fixed_point(w)
    want = wide(start) if add else np.zeros((tokens, rows))
    size = abs(want)
    packed, factor = np.empty(PACKED_ROWS * BLOCK, np.int16), np.empty(PACKED_ROWS, np.float32)
    many = np.zeros((tokens, PACKED_ROWS), np.float32)
    many[:, :rows] = start if add else 0
    for b in range(parts_of(n)):
        here = codes[:, b * BLOCK : (b + 1) * BLOCK]
        sums = wide(x[b])[:, : here.shape[1]] @ here.T
        part = sums * wide(x_factor)[b, :, None] * factors[:, b]
        want, size = want + part, size + abs(part)
        run(fixed_target, "pack_fixed", packed, factor, w[:, b * BLOCK : (b + 1) * BLOCK])
        run(fixed_target, "dot_fixed", many, packed, factor, x[b], x_factor[b], BLOCK)
    assert (abs(y - want) <= (parts_of(n) + 3) * EPS * size).all()
    assert np.array_equal(y, many[:, :rows])
    check_gaps(y)


@WHERE
@pytest.mark.parametrize("n", [1, 15, 64, 255])
@pytest.mark.parametrize("norm", [8000.0, 46000.0])
def test_fix_all(target: str, n: int, norm: float, at_end: bool) -> None:
    """As `fix`, of one block however long it is."""
    x = guard.like(noise(np.random.default_rng(n), (n,)), at_end=at_end)
    y = guard.poisoned((n,), np.int16, at_end=at_end)
    (factor,) = run(target, "fix_all", y, x, norm)
    norms = np.linalg.norm(wide(x)) / np.array([norm, min(norm, 32767)])
    assert abs(norms / factor - 1).min() <= 1e-6
    assert abs(y).max() <= 32767
    assert (abs(y * factor - wide(x)) <= 0.505 * factor).all()


@WHERE
@pytest.mark.parametrize("add", [0, 1])
@pytest.mark.parametrize("factors", [True, False])
@pytest.mark.parametrize(
    ("tokens", "width", "pairs"), [(1, 16, 1), (4, 64, 6), (7, 48, 19), (13, 80, 128)]
)
def test_dot_pairs(
    target: str, tokens: int, width: int, pairs: int, factors: bool, add: int, at_end: bool
) -> None:
    """Integer sums are exact; what becomes of them rounds four times: to f32, twice times a factor,
    and added up.
    """
    rng = np.random.default_rng(tokens)
    w = rng.integers(-2800, 2801, (width, 2 * pairs), dtype=np.int16)
    x = rng.integers(-2800, 2801, (tokens, 2 * pairs), dtype=np.int16)
    x_factor = rng.uniform(0.5, 2, tokens).astype(np.float32)
    w_factor = rng.uniform(0.5, 2, width).astype(np.float32)
    by_pairs = w.reshape(width, pairs, 2).swapaxes(0, 1).reshape(pairs, 2 * width)
    y = guard.poisoned((tokens, width), np.float32, at_end=at_end, gap=1)
    if add:
        y[...] = noise(rng, (tokens, width))
    want = wide(y) if add else np.zeros((tokens, width))
    scale = wide(x_factor)[:, None] * (wide(w_factor) if factors else 1)
    product = scale * (wide(x) @ wide(w).T)
    given = [
        guard.like(by_pairs, at_end=at_end),
        guard.like(x, at_end=at_end, gap=2),
        guard.like(x_factor, at_end=at_end),
    ]
    more = [guard.like(w_factor, at_end=at_end)] if factors else []
    run(target, "dot_pairs", y, *given, *more, add)
    assert (abs(y - (want + product)) <= 4 * EPS * (abs(want) + abs(product))).all()
    check_gaps(y)
    for t in range(tokens):  # bit for bit the same alone
        one = want[t : t + 1].astype(np.float32)
        run(target, "dot_pairs", one, given[0], x[t : t + 1], x_factor[t : t + 1], *more, add)
        assert np.array_equal(one[0], y[t])


@WHERE
@pytest.mark.parametrize("n", [1, 15, 16, 33, 64])
@pytest.mark.parametrize("m", [-np.inf, -3.0, 30.0])
def test_weigh(target: str, n: int, m: float, at_end: bool) -> None:
    """Softmax in float64. The weights' integers are off by half a step (and 2 ulp of exp, below a
    fiftieth of a step); nothing beyond the n scores counts, whatever is there.
    """
    rng = np.random.default_rng(n)
    scores, v_factor = 5 * noise(rng, (64,)), rng.uniform(0.1, 3, 64).astype(np.float32)
    scores[n:] = np.nan
    s = guard.like(scores, at_end=at_end)
    y = guard.poisoned((64,), np.int16, at_end=at_end)
    factor = guard.poisoned((1,), np.float32, at_end=at_end)
    top, total = run(
        target, "weigh", y, factor, s, guard.like(v_factor, at_end=at_end), n, 8000.0, m
    )
    assert top == max(m, scores[:n].max())
    p = np.exp(np.clip(wide(scores[:n]) - top, -87, None))
    assert total == pytest.approx(p.sum(), rel=1e-6)
    weight = np.zeros(64)
    weight[:n] = p * wide(v_factor[:n])
    assert (abs(y * wide(factor) - weight) <= 0.52 * factor).all()
    assert np.linalg.norm(wide(y)) == pytest.approx(8000, abs=4)  # 64 roundings of half a step


def test_weigh_shows_what_is_no_number(target: str) -> None:
    """A V that is not finite has such a factor (`fix_all`), and so have the weights then."""
    y, factor, ones = np.zeros(16, np.int16), np.zeros(1, np.float32), np.ones(16, np.float32)
    v_factor = ones.copy()
    v_factor[3] = np.nan
    run(target, "weigh", y, factor, ones, v_factor, 16, 8000.0, 0.0)
    assert np.isnan(factor[0])


# ---- delta ---------------------------------------------------------------------------------------


def delta_inputs(T: int, Dk: int, cols: int) -> tuple[Array, ...]:
    """q, k, v, decay, beta, state as the model makes them: unit keys, decay and beta between 0 and
    1.
    """
    rng = np.random.default_rng(T * 1000 + Dk * 40 + cols)
    q, k = (reference.unit_l2(noise(rng, (T, Dk))) for _ in range(2))
    decay, beta = (rng.uniform(0.05, 1, T).astype(np.float32) for _ in range(2))
    return q, k, noise(rng, (T, cols)), decay, beta, noise(rng, (Dk, cols))


@WHERE
@pytest.mark.parametrize("cols", [1, 7, 8, 9, 15, 16, 17, 29, 31, 32])
@pytest.mark.parametrize(("T", "Dk"), [(1, 1), (1, 17), (5, 16), (23, 53), (70, 128)])
def test_delta(target: str, T: int, Dk: int, cols: int, at_end: bool) -> None:
    """Float32 against float64. Keys are unit vectors, so an error is not magnified from step to
    step: 3e-6 of the largest value allows some 50 roundings.
    """
    q, k, v, decay, beta, state = delta_inputs(T, Dk, cols)
    want, want_state = reference.delta_rule(*map(wide, (q, k, v, decay, beta, state)))
    out = guard.poisoned((T, cols), np.float32, at_end=at_end, gap=2)
    fenced = guard.like(state, at_end=at_end)
    run(
        target,
        "delta",
        out,
        fenced,
        guard.like(q, at_end=at_end, gap=5),
        guard.like(k, at_end=at_end, gap=5),
        guard.like(v, at_end=at_end, gap=1),
        guard.like(decay, at_end=at_end),
        guard.like(beta, at_end=at_end),
    )
    assert abs(out - want).max() <= 3e-6 * max(1, abs(want).max())
    assert abs(fenced - want_state).max() <= 3e-6 * max(1, abs(want_state).max())
    check_gaps(out)


@pytest.mark.parametrize("cols", [9, 32])
@pytest.mark.parametrize("cut", [1, 2, 7, 12])
def test_delta_split_anywhere(target: str, cols: int, cut: int) -> None:
    """Two calls give the bits of one: the state is all that is carried."""
    q, k, v, decay, beta, state = delta_inputs(13, 19, cols)
    whole, whole_state = np.empty_like(v), state.copy()
    run(target, "delta", whole, whole_state, q, k, v, decay, beta)
    parts, parts_state = np.empty_like(v), state.copy()
    for part in (slice(0, cut), slice(cut, 13)):
        run(
            target,
            "delta",
            parts[part],
            parts_state,
            q[part],
            k[part],
            v[part],
            decay[part],
            beta[part],
        )
    assert np.array_equal(parts, whole)
    assert np.array_equal(parts_state, whole_state)


def test_delta_may_overwrite_v(target: str) -> None:
    q, k, v, decay, beta, state = delta_inputs(13, 19, 32)
    want, want_state, in_place, other = np.empty_like(v), state.copy(), v.copy(), state.copy()
    run(target, "delta", want, want_state, q, k, v, decay, beta)
    run(target, "delta", in_place, other, q, k, in_place, decay, beta)
    assert np.array_equal(in_place, want)
    assert np.array_equal(other, want_state)


# ---- vectors -------------------------------------------------------------------------------------


@WHERE
@pytest.mark.parametrize("n", [*SIZES, 256, 1024])
def test_rms_norm(target: str, n: int, at_end: bool) -> None:
    """The sum of squares loses at most n EPS, the root halves it; 3 roundings follow."""
    rng = np.random.default_rng(n)
    x, scale = (guard.like(noise(rng, (n,)), at_end=at_end) for _ in range(2))
    want = wide(x) / np.sqrt(np.mean(wide(x) ** 2) + 1e-6) * wide(scale)
    y = guard.poisoned((n,), np.float32, at_end=at_end)
    run(target, "rms_norm", y, x, scale, 1e-6)
    assert y == pytest.approx(want, rel=(n / 2 + 6) * EPS)
    run(target, "rms_norm", x, x, scale, 1e-6)
    assert np.array_equal(x, y)


@WHERE
@pytest.mark.parametrize("n", [*SIZES, 72, 1152])
def test_layer_norm(target: str, n: int, at_end: bool) -> None:
    """The mean is off by n EPS of the mean magnitude at most; the rest is as in rms_norm."""
    rng = np.random.default_rng(n)
    x, scale, shift = (guard.like(noise(rng, (n,)), at_end=at_end) for _ in range(3))
    centred = wide(x) - wide(x).mean()
    want = centred / np.sqrt(np.mean(centred**2) + 1e-6) * wide(scale) + wide(shift)
    y = guard.poisoned((n,), np.float32, at_end=at_end)
    run(target, "layer_norm", y, x, scale, shift, 1e-6)
    size = abs(x).max() / np.sqrt(np.mean(centred**2) + 1e-6) * abs(scale) + abs(shift)
    assert (abs(y - want) <= (2 * n + 8) * EPS * size).all()
    run(target, "layer_norm", x, x, scale, shift, 1e-6)
    assert np.array_equal(x, y)


@WHERE
@pytest.mark.parametrize("n", SIZES)
def test_gelu_bias(target: str, n: int, at_end: bool) -> None:
    """x times a sigmoid: the exponent's own rounding is magnified by its size, up to 88."""
    rng = np.random.default_rng(n)
    x, bias = (guard.like(noise(rng, (n,)) * scale, at_end=at_end) for scale in (4, 1))
    a = wide(x) + wide(bias)
    u = np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)
    want = 0.5 * a * (1 + np.tanh(u))
    run(target, "gelu_bias", x, bias)
    assert (abs(x - want) <= abs(a) * (10 + 8 * np.minimum(abs(u), 88)) * EPS + 1e-36).all()


@WHERE
@pytest.mark.parametrize("n", SIZES)
def test_add(target: str, n: int, at_end: bool) -> None:
    """NumPy's f32 sum, bit for bit."""
    rng = np.random.default_rng(n)
    y, x = (guard.like(noise(rng, (n,)), at_end=at_end) for _ in range(2))
    want = y + x
    run(target, "add", y, x)
    assert np.array_equal(y, want)


@WHERE
@pytest.mark.parametrize("n", [*SIZES, 128])
def test_l2_norm(target: str, n: int, at_end: bool) -> None:
    x = guard.like(noise(np.random.default_rng(n), (n,)), at_end=at_end)
    want = reference.unit_l2(wide(x)) * 0.125
    run(target, "l2_norm", x, 0.125)
    assert x == pytest.approx(want, rel=(n / 2 + 6) * EPS)


def test_norms_of_zeros(target: str) -> None:
    """eps keeps them finite."""
    x, y = np.zeros(9, np.float32), np.full(9, np.nan, np.float32)
    run(target, "rms_norm", y, x, np.ones(9, np.float32), 1e-6)
    run(target, "l2_norm", x, 1.0)
    assert not x.any()
    assert not y.any()


@WHERE
@pytest.mark.parametrize("n", SIZES)
def test_gates(target: str, n: int, at_end: bool) -> None:
    """exp is good to 2 ulp (4 EPS), the sum, quotient and product round once each. Gates up to 100:
    no overflow.
    """
    rng = np.random.default_rng(n)
    gate, x = (guard.like(noise(rng, (n,)) * scale, at_end=at_end) for scale in (30, 1))
    for name, want in (
        ("silu_mul", reference.silu(wide(gate)) * wide(x)),
        ("sigmoid_mul", reference.sigmoid(wide(gate)) * wide(x)),
    ):
        y = guard.poisoned((n,), np.float32, at_end=at_end)
        run(target, name, y, gate, x)
        assert y == pytest.approx(want, rel=10 * EPS, abs=1e-36), name
        for alias in (gate.copy(), x.copy()):
            args = (alias, x) if np.array_equal(alias, gate) else (gate, alias)
            run(target, name, alias, *args)
            assert np.array_equal(alias, y), f"{name} in place"


@WHERE
@pytest.mark.parametrize("K", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [*FEW, 31, 32, 64, 101])
def test_conv_silu(target: str, n: int, K: int, at_end: bool) -> None:
    """K rounded products, then SiLU of the sum: its slope is at most 1.1."""
    rng = np.random.default_rng(n * 10 + K)
    taps = guard.like(noise(rng, (K, n)), at_end=at_end, gap=2)
    w = guard.like(noise(rng, (K, n)), at_end=at_end, gap=4)
    y = guard.poisoned((n,), np.float32, at_end=at_end)
    run(target, "conv_silu", y, taps, w)
    total = (wide(taps) * wide(w)).sum(axis=0)
    bound = (1.1 * (K + 1) * abs(wide(taps) * wide(w)).sum(axis=0) + 10 * abs(total)) * EPS
    assert (abs(y - reference.silu(total)) <= bound).all()


@WHERE
@pytest.mark.parametrize("n", [*SIZES, 64])
def test_softmax_step(target: str, n: int, at_end: bool) -> None:
    """Two steps make a softmax: exp of differences, and their sum, whatever the running maximum
    was.
    """
    rng = np.random.default_rng(n)
    scores = noise(rng, (n,)) * 10
    for running in (-np.inf, -1e30, float(scores.max()) + 3, float(scores.max())):
        s = guard.like(scores, at_end=at_end)
        top, total = run(target, "softmax_step", s, running)
        assert top == max(np.float32(running), scores.max())
        want = np.exp(wide(scores) - top)
        far = abs(wide(scores) - top)  # this difference is rounded before exp, once
        assert (abs(s - want) <= (far + 6) * EPS * want + 1e-37).all()
        assert total == pytest.approx(want.sum(), rel=(n + far.max() + 6) * EPS)


@WHERE
@pytest.mark.parametrize("n", SIZES)
def test_scale(target: str, n: int, at_end: bool) -> None:
    x = guard.like(noise(np.random.default_rng(n), (n,)), at_end=at_end)
    want = x * np.float32(0.3)
    run(target, "scale", x, 0.3)
    assert np.array_equal(x, want)


def test_exp_everywhere(target: str) -> None:
    """Within 2 ulp on [-87, 88], clamped outside: no infinity, no NaN, never negative."""
    x = np.concatenate([np.linspace(-87, 88, 400_001), [0.0, -0.0, 1e-30, -1e-30]]).astype(
        np.float32
    )
    y = np.full_like(x, np.nan)
    run(target, "exp", y, x)
    want = np.exp(wide(x))
    assert (abs(y - want) <= 2 * np.spacing(want.astype(np.float32))).all()
    assert y[-4:].tolist() == [1.0, 1.0, 1.0, 1.0]
    outside = np.array([-88, -1e4, -np.inf, 89, 1e4, np.inf], np.float32)
    y = np.full(6, np.nan, np.float32)
    run(target, "exp", y, outside)
    assert np.isfinite(y).all()
    assert (y[:3] <= 1.7e-38).all()
    assert (y[3:] >= 1.6e38).all()


@WHERE
@pytest.mark.parametrize("n", SIZES)
def test_exp_sizes(target: str, n: int, at_end: bool) -> None:
    x = guard.like(noise(np.random.default_rng(n), (n,)), at_end=at_end)
    y = guard.poisoned((n,), np.float32, at_end=at_end)
    run(target, "exp", y, x)
    assert y == pytest.approx(np.exp(wide(x)), rel=5 * EPS)


# ---- wrong use -----------------------------------------------------------------------------------


def test_unknown_names_are_errors() -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="nonsense"):
        run("nonsense", "exp", x, x)
    with pytest.raises(ValueError, match="nonsense"):
        run("c", "nonsense", x, x)


@pytest.mark.parametrize("kind", [np.float64, np.int32, np.complex64])
def test_other_types_are_errors(kind: type) -> None:
    with pytest.raises(ValueError):
        run("c", "exp", np.zeros(4, kind), np.zeros(4, kind))
