"""Oracle: literals worked out by hand from each layout, golden values that the gguf package decoded
(tests/make_format_golden.py), and, where they are installed, that package itself and llama.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guard
import numpy as np
import pytest
from golden import blocks
from numpy.typing import NDArray

from qwen35 import _core

F32 = NDArray[np.float32]
FORMATS = _core.formats()
BLOCKED = list(blocks.FIELDS)
ENCODABLE = [name for name, (_, _, _, encodable) in FORMATS.items() if encodable]
GOLDEN = Path(__file__).parent / "golden" / "formats" / "decoded.npz"
HALF_MAX = 65504.0


def decode(name: str, raw: NDArray[np.uint8]) -> F32:
    """[rows, bytes] -> [rows, n]"""
    _, elements, size, _ = FORMATS[name]
    values = _core.decode_blocks(name, raw, raw.size // size * elements)
    return values.reshape(len(raw), -1)


def check_bits(got: F32, want: F32) -> None:
    """Equal to the last bit, the sign of zero too."""
    assert got.dtype == want.dtype == np.float32
    bad = np.flatnonzero(got.ravel().view(np.uint32) != want.ravel().view(np.uint32))
    assert not len(bad), f"element {bad[0]}: {got.ravel()[bad[0]]!r}, not {want.ravel()[bad[0]]!r}"


def rows(kind: str, shape: tuple[int, int] = (24, 1024)) -> F32:
    """Rows like those of weight matrices: Gaussian, long-tailed, one-sided, and nearly empty."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal(shape) * 0.02
    if kind == "tailed":
        x = rng.standard_t(4, shape) * 0.02
    elif kind == "positive":
        x = abs(x) + 0.01
    elif kind == "sparse":
        x[rng.random(shape) < 0.9] = 0
    return x.astype(np.float32)


def error(x: F32, y: F32, importance: F32 | float = 1.0) -> float:
    return float((np.square(x.astype(np.float64) - y) * importance).sum())


def round_trip(name: str, x: F32, importance: F32 | None = None) -> F32:
    return decode(name, _core.encode_blocks(name, x, importance))


# ---- the table -----------------------------------------------------------------------------------


def test_table() -> None:
    """Numbers of GGUF files, elements and bytes of a block."""
    numbers = {
        "f32": (0, 1, 4), "f16": (1, 1, 2), "bf16": (30, 1, 2),
        "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24),
        "q8_0": (8, 32, 34), "q2_k": (10, 256, 84), "q3_k": (11, 256, 110),
        "q4_k": (12, 256, 144), "q5_k": (13, 256, 176), "q6_k": (14, 256, 210),
        "iq1_s": (19, 256, 50), "iq1_m": (29, 256, 56), "iq2_xxs": (16, 256, 66),
        "iq2_xs": (17, 256, 74), "iq2_s": (22, 256, 82), "iq3_xxs": (18, 256, 98),
        "iq3_s": (21, 256, 110), "iq4_nl": (20, 32, 18), "iq4_xs": (23, 256, 136),
        "mxfp4": (39, 32, 17),
    }  # fmt: skip
    assert {name: row[:3] for name, row in FORMATS.items()} == numbers
    assert set(ENCODABLE) == {
        *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
        *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"),
    }


# ---- decode --------------------------------------------------------------------------------------

ONE, HALF, TWO, MINUS = b"\x00\x3c", b"\x00\x38", b"\x00\x40", b"\x00\xbc"  # 1, 0.5, 2, -1 as f16


def block(name: str, parts: dict[int, bytes]) -> bytes:
    """A block of zero bytes but for these parts, by offset."""
    raw = bytearray(FORMATS[name][2])
    for at, part in parts.items():
        raw[at : at + len(part)] = part
    return bytes(raw)


def span(start: int, stop: int, value: float) -> dict[Any, float]:
    return dict.fromkeys(range(start, stop), value)


# Type, parts of a block, {element: value}, None for all that are not named; later ones win.
LITERALS: list[tuple[str, dict[int, bytes], dict[Any, float]]] = [
    ("q4_0", {0: HALF, 2: b"\x9f"}, {0: 3.5, 16: 0.5, None: -4}),
    ("q4_1", {0: HALF, 2: MINUS, 5: b"\x30"}, {17: 0.5, None: -1}),
    ("q5_0", {0: ONE, 2: b"\x02\x00\x01\x80", 7: b"\x01"}, {1: 1, 16: 0, 31: 0, None: -16}),
    ("q5_1", {0: TWO, 2: ONE, 4: b"\x00\x00\x01\x00", 8: b"\xf0"}, {16: 63, None: 1}),
    ("q8_0", {0: HALF, 2: b"\x80\x7f", 33: b"\xff"}, {0: -64, 1: 63.5, 31: -0.5, None: 0}),
    # part 1 has scale 5 and min 2; byte 16 + 16 is element 0 of parts 1, 3, 5, 7
    (
        "q2_k",
        {1: b"\x25", 32: b"\x03", 80: ONE, 82: HALF},
        {None: 0, **span(16, 32, -1), 16: 14},
    ),
    # scales are 0 - 32; of part 0, 2 + 16 x 2 - 32; element 0 has code 4 + 3
    (
        "q3_k",
        {0: b"\x01", 32: b"\x03", 96: b"\x02", 104: b"\x02", 108: ONE},
        {None: 128, **span(0, 16, -8), 0: 6},
    ),
    # part 4: scale 1 + 16, min 2 + 32: in bytes 8 and on top of bytes 0 and 4 of the twelve
    (
        "q4_k",
        {0: ONE, 2: HALF, 4: b"\x40", 8: b"\x80", 12: b"\x21", 80: b"\x03"},
        {None: 0, **span(128, 160, -17), 128: 34},
    ),
    ("q5_k", {0: ONE, 2: HALF, 5: b"\x03", 16: b"\x02", 48: b"\xf1"}, {32: 93, None: 0}),
    # part 1 has scale -1, part 8 scale 2; element 128 has code 15 + 16
    (
        "q6_k",
        {64: b"\x0f", 160: b"\x01", 193: b"\xff", 200: b"\x02", 208: ONE},
        {None: 0, **span(16, 32, 32), **span(128, 144, -64), 128: -2},
    ),
    ("iq4_nl", {0: TWO, 2: b"\xf8"}, {0: 2, 16: 226, None: -254}),
    # scales are 0 + 16 x 2 - 32; of part 0 one more
    (
        "iq4_xs",
        {0: ONE, 2: b"\xaa\xaa", 4: b"\x01", 8: b"\x80"},
        {None: 0, **span(0, 32, -127), 16: 1},
    ),
    ("mxfp4", {0: b"\x80", 1: b"\xf1"}, {0: 1, 16: -12, None: 0}),
    ("iq1_s", {0: ONE, 2: b"\x01"}, {0: 1.125, None: -0.875}),
]


@pytest.mark.parametrize(("name", "parts", "want"), LITERALS, ids=[name for name, _, _ in LITERALS])
def test_decode_literals(name: str, parts: dict[int, bytes], want: dict[Any, float]) -> None:
    got = _core.decode_blocks(name, block(name, parts), FORMATS[name][1])
    for i, value in enumerate(got.tolist()):
        assert value == want.get(i, want[None]), f"element {i}"


def test_decode_dense() -> None:
    x = np.array([0.0, -0.0, 1.5, -65504.0, 2.0**-24, 3.0e-5, 1.0], np.float32)
    assert _core.decode_blocks("f32", x, 7).tobytes() == x.tobytes()
    half = np.arange(65536, dtype=np.uint16)
    half = half[(half & 0x7C00) != 0x7C00]
    check_bits(
        _core.decode_blocks("f16", half, len(half)), half.view(np.float16).astype(np.float32)
    )
    bf16 = np.array([0x3F80, 0xC2F7, 0x0001], np.uint16)
    want = np.array([1.0, -123.5, 2.0**-133], np.float32)
    check_bits(_core.decode_blocks("bf16", bf16, 3), want)


@pytest.mark.parametrize("name", BLOCKED)
def test_decode_golden(name: str) -> None:
    raw = blocks.sample(name, blocks.MANY)
    with np.load(GOLDEN) as golden:
        check_bits(decode(name, raw[:1])[0], golden[name])
        assert blocks.digest(decode(name, raw)).tolist() == golden[f"{name}.sha256"].tolist()


@pytest.mark.parametrize("name", BLOCKED)
def test_decode_as_gguf_does(name: str) -> None:
    """Random blocks, and every field at its lowest and highest."""
    gguf = pytest.importorskip("gguf")
    size = FORMATS[name][2]
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, (2000, size), np.uint8)
    raw[0], raw[1] = 0x00, 0xFF
    raw = blocks.finite(name, raw)
    want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])
    check_bits(decode(name, raw), want)


@pytest.mark.parametrize("at_end", [True, False], ids=["ends at guard", "starts at guard"])
@pytest.mark.parametrize("name", BLOCKED)
def test_decode_at_any_address(name: str, at_end: bool) -> None:
    raw = blocks.sample(name, 3)
    want = decode(name, raw)
    fenced = guard.like(raw.reshape(-1), at_end=at_end)
    check_bits(decode(name, fenced.reshape(3, -1)), want)
    for shift in (1, 2, 3):
        moved = np.zeros(raw.size + shift, np.uint8)
        moved[shift:] = raw.reshape(-1)
        check_bits(decode(name, moved[shift:].reshape(3, -1)), want)


# ---- encode: how close ---------------------------------------------------------------------------


def plain_error(name: str, x: F32) -> float:
    """Squared error of rounding to evenly spaced levels that reach as far as the values of each
    block or part: step^2 / 12 an element. What an encoder that seeks nothing comes to; scales that
    are codes themselves cost it more.
    """
    bits = int(name.removeprefix("i")[1])
    part = 16 if name in ("q2_k", "q3_k", "q6_k") else 32
    x = x.reshape(-1, part).astype(np.float64)
    if name in ("q4_1", "q5_1", "q2_k", "q4_k", "q5_k"):
        step = (x.max(axis=1) - x.min(axis=1)) / (2**bits - 1)
    else:
        step = abs(x).max(axis=1) / 2 ** (bits - 1)
    return float((np.square(step) / 12 * part).sum())


@pytest.mark.parametrize("kind", ["gaussian", "tailed"])
@pytest.mark.parametrize("name", ENCODABLE)
def test_encode_is_closer_than_plain_rounding(name: str, kind: str) -> None:
    x = rows("gaussian" if kind == "gaussian" else "tailed")
    assert error(x, round_trip(name, x)) < 0.95 * plain_error(name, x)


@pytest.mark.parametrize("kind", ["gaussian", "tailed", "positive", "sparse"])
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_encode_is_not_worse_than_gguf(name: str, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    x = rows(kind)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])
    mine = round_trip(name, x)
    for part in range(0, x.shape[1], 32):  # in no block; 1e-6: sums in float32
        at = np.s_[:, part : part + 32]
        block_errors = np.square(x[at].astype(np.float64) - mine[at]).sum(axis=1)
        their_errors = np.square(x[at].astype(np.float64) - decode(name, theirs)[at]).sum(axis=1)
        assert (block_errors <= their_errors * (1 + 1e-6)).all()


def llama_cpp_quantizer() -> Callable[[str, F32], NDArray[np.uint8]]:
    """llama.cpp's own encoder, with all weights 1."""
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"), None)
    if library is None:
        pytest.skip("llama_cpp has no shared library of ggml")
    encode = ctypes.CDLL(str(library)).ggml_quantize_chunk
    encode.restype = ctypes.c_size_t
    encode.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(name: str, x: F32) -> NDArray[np.uint8]:
        number, elements, size, _ = FORMATS[name]
        out = np.empty((len(x), x.shape[1] // elements * size), np.uint8)
        weights = np.ones(x.shape[1], np.float32)
        encode(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, weights.ctypes.data)
        return out

    return quantize


@pytest.mark.parametrize("kind", ["gaussian", "tailed"])
@pytest.mark.parametrize("name", ENCODABLE)
def test_encode_is_not_worse_than_llama_cpp(name: str, kind: str) -> None:
    x = rows(kind)
    theirs = llama_cpp_quantizer()(name, x)
    assert error(x, round_trip(name, x)) <= error(x, decode(name, theirs))


@pytest.mark.parametrize("name", ENCODABLE)
def test_importance_lowers_the_weighted_error(name: str) -> None:
    x = rows("gaussian")
    importance = np.random.default_rng(1).lognormal(0, 1, x.shape[1]).astype(np.float32)
    plain, weighted = round_trip(name, x), round_trip(name, x, importance)
    assert error(x, weighted, importance) < 0.95 * error(x, plain, importance)


@pytest.mark.parametrize("name", ENCODABLE)
def test_importance_is_relative(name: str) -> None:
    """A power of two times all of it changes nothing; all zero, or all alike, is none."""
    x = rows("gaussian", (3, 512))
    importance = np.random.default_rng(1).lognormal(0, 1, 512).astype(np.float32)
    want = _core.encode_blocks(name, x, importance)
    for factor in (2.0**-100, 2.0**100):
        got = _core.encode_blocks(name, x, importance * np.float32(factor))
        assert np.array_equal(got, want)
    for same in (0.0, 1e-38, 3e38):
        got = _core.encode_blocks(name, x, importance=np.full(512, same, np.float32))
        assert np.array_equal(got, _core.encode_blocks(name, x))


@pytest.mark.parametrize("name", ENCODABLE)
def test_elements_of_no_importance_stay_near(name: str) -> None:
    x = rows("gaussian", (3, 512))
    importance = (np.arange(512) % 512 < 32).astype(np.float32)
    y = round_trip(name, x, importance)
    assert error(x, y) < 0.2 * error(x, np.zeros_like(x))


def test_q8_0_gives_back_what_it_decodes_to() -> None:
    raw = blocks.sample("q8_0", 64)
    codes = raw[:, 2:].view(np.int8)
    np.maximum(codes, -127, out=codes)
    codes[:, 5] = np.where(raw[:, 2 + 5] < 128, 127, -127)
    y = decode("q8_0", raw)
    assert np.array_equal(round_trip("q8_0", y), y)
    for kind in ("gaussian", "tailed", "sparse"):
        y = round_trip("q8_0", rows(kind))
        assert np.array_equal(round_trip("q8_0", y), y)


# ---- encode: extremes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODABLE)
def test_zeros_are_exact(name: str) -> None:
    x = np.zeros((2, 512), np.float32)
    x[1, 1::2] = -0.0
    assert np.array_equal(round_trip(name, x), np.zeros_like(x))


@pytest.mark.parametrize("name", ENCODABLE)
@pytest.mark.parametrize("value", [0.37, -0.37, 1e-6, -1e-3])
def test_one_value_everywhere(name: str, value: float) -> None:
    """Signed scales have 5 bits of magnitude. f16 ends at 2^-24, and the levels of iq4 around the
    smallest value here are 8 of it apart.
    """
    x = np.full((1, 256), value, np.float32)
    y = round_trip(name, x)
    assert abs(y - x).max() <= max(abs(value) * 2.0**-5, 4 * 2.0**-24)


@pytest.mark.parametrize("name", ENCODABLE)
@pytest.mark.parametrize("scale", [1e4, 1e6, 1e9, 3e38])
def test_huge_values_saturate(name: str, scale: float) -> None:
    rng = np.random.default_rng(2)
    x = (rng.uniform(-1, 1, (4, 512)) * scale).astype(np.float32)
    x[1, :] = scale
    x[2, 100:] = 0
    x[3, 7] = -scale
    y = round_trip(name, x)
    assert np.isfinite(y).all()
    assert error(x, y) <= error(x, np.zeros_like(x))
    assert (y[1] >= min(0.9 * scale, HALF_MAX)).all()


@pytest.mark.parametrize("name", ENCODABLE)
@pytest.mark.parametrize("scale", [1e-45, 1e-39, 1e-30, 1e-9, 1e-7, 1e-5])
def test_tiny_values(name: str, scale: float) -> None:
    """The least scale is 2^-24; zeros are there for what is better without it."""
    x = (np.random.default_rng(2).standard_normal((2, 512)) * scale).astype(np.float32)
    y = round_trip(name, x)
    assert np.isfinite(y).all()
    assert error(x, y) <= error(x, np.zeros_like(x))
    assert abs(y - x).max() <= max(2.0**-24, abs(x).max())


@pytest.mark.parametrize("name", ENCODABLE)
def test_one_large_value_among_small_ones(name: str) -> None:
    x = rows("gaussian", (2, 512))
    x[0, 77], x[1, 300] = 30.0, -30.0
    y = round_trip(name, x)
    assert np.isfinite(y).all()
    assert abs(y[0, 77] - 30) < 3 and abs(y[1, 300] + 30) < 3


@pytest.mark.parametrize("name", ENCODABLE)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    x = rows("tailed", (5, 768))
    together = _core.encode_blocks(name, x)
    for r in range(5):
        assert np.array_equal(_core.encode_blocks(name, x[r : r + 1])[0], together[r])
    fenced = guard.like(x.reshape(-1), at_end=True).reshape(5, 768)
    assert np.array_equal(_core.encode_blocks(name, fenced), together)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_encode_refuses_what_is_not_finite(value: float, text: str) -> None:
    x = rows("gaussian", (3, 256))
    x[2, 17] = value
    with pytest.raises(ValueError, match=rf"x\[2, 17\] is {text}, expected a finite number"):
        _core.encode_blocks("q4_k", x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_encode_refuses_such_importance(value: float) -> None:
    importance = np.ones(256, np.float32)
    importance[9] = value
    with pytest.raises(ValueError, match=r"importance\[9\] is .*, expected a finite number, 0 or"):
        _core.encode_blocks("q4_k", rows("gaussian", (3, 256)), importance)


X = np.zeros((2, 256), np.float32)


@pytest.mark.parametrize(
    ("args", "wrong", "text"),
    [
        (("q4_z", X), ValueError, "no format is called 'q4_z'"),
        (("iq2_xs", X), ValueError, "iq2_xs can only be decoded"),
        (("q4_k", X[:, :128].copy()), ValueError, "128 elements, expected a multiple of 256"),
        (("q4_k", X[0]), ValueError, "x has 1 dimensions, expected"),
        (("q4_k", X.astype(np.float64)), TypeError, "float64.*expected C-contiguous float32"),
        (("q4_k", X.T), TypeError, "with gaps"),
        (("q4_k", [[0.0]]), TypeError, "x is a list, expected a float32 array"),
        (("q4_k", X, X[0, :128]), ValueError, "importance has 128 elements, expected 256"),
        (("q4_k", X, X), ValueError, "importance has 2 dimensions"),
    ],
)
def test_encode_refuses(args: tuple[Any, ...], wrong: type[Exception], text: str) -> None:
    with pytest.raises(wrong, match=text):
        _core.encode_blocks(*args)


@pytest.mark.parametrize(
    ("args", "wrong", "text"),
    [
        (("q9_k", b"", 0), ValueError, "no format is called 'q9_k'"),
        (("q8_0", bytes(33), 32), ValueError, "33 bytes, expected 34: 32 elements of q8_0"),
        (("q8_0", bytes(34), 31), ValueError, "31 elements, expected a multiple of 32"),
        (("q8_0", bytes(34), -32), ValueError, "-32 elements"),
        (("q8_0", "text", 32), TypeError, "bytes-like"),
        (("q8_0", np.zeros((34, 2), np.uint8)[:, 0], 32), ValueError, "contiguous"),
    ],
)
def test_decode_refuses(args: tuple[Any, ...], wrong: type[Exception], text: str) -> None:
    with pytest.raises(wrong, match=text):
        _core.decode_blocks(*args)


def test_nothing_is_something() -> None:
    assert _core.decode_blocks("q4_k", b"", 0).shape == (0,)
    assert _core.encode_blocks("q4_k", X[:0]).shape == (0, 144)
    assert _core.encode_blocks("q4_k", X[:, :0].copy()).shape == (2, 0)
