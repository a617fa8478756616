"""Oracle: literals, the arrays that were written, and the gguf package where it is installed.

The numbers in the test names are items of the list of hostile inputs the project keeps (38-52).
"""

import gc
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf_writer import (
    Raw,
    Tensor,
    Typed,
    blocks,
    gguf_bytes,
    of,
    string,
    write_gguf,
)

from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.gguf_file import open_gguf
from qwen35.gguf_types import BY_NAME, TYPES

RNG = np.random.default_rng(7)
ARRAYS = {
    "a.weight": RNG.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
    "b.bias": RNG.standard_normal((7,)).astype(np.float32),
    "c.weight": RNG.standard_normal((2, 1, 3)).astype(np.float16),
    "d": np.arange(4, dtype=np.int64).reshape(2, 2),
}
ONE = {"t": of(np.zeros((2, 4), np.float32))}


def refusal(
    path: Path, data: bytes, error: type[Exception] = ModelFormatError, *, name: str = "x"
) -> str:
    """The message that refuses a file of these bytes."""
    path = path / f"{name}.gguf"
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.startswith(str(path.parent))
    assert message.isprintable()
    return message


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("align", [8, 32, 64])
def test_reads_what_was_written(tmp_path: Path, version: int, align: int) -> None:
    path = tmp_path / "x.gguf"
    tensors = {name: of(array) for name, array in ARRAYS.items()}
    write_gguf(path, {"general.alignment": align}, tensors, version=version, align=align)
    file = open_gguf(path)
    assert list(file) == list(ARRAYS)
    for name, wanted in ARRAYS.items():
        found = file[name]
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()
        assert found.flags.aligned and found.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    out = gguf.GGUFWriter(path, "qwen35")
    out.add_uint32("n", 7)
    out.add_float32("f", 0.1)
    out.add_string("s", "é")
    out.add_bool("b", True)
    out.add_array("words", ["a", "", "ü"])
    out.add_array("ints", [3, -4])
    out.add_custom_alignment(64)
    rows = RNG.standard_normal((3, 256)).astype(np.float32)
    packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    out.add_tensor("q.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    out.add_tensor("v.weight", rows[0])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    file = open_gguf(path)
    metadata = file.metadata
    assert metadata["general.architecture"] == "qwen35"
    assert (metadata["n"], metadata["f"], metadata["s"], metadata["b"]) == (7, 0.1, "é", True)
    assert metadata["words"] == ["a", "", "ü"] and metadata["ints"].tolist() == [3, -4]
    np.testing.assert_array_equal(file["v.weight"], rows[0])
    np.testing.assert_array_equal(file["q.weight"], packed)
    assert file.spans["q.weight"].shape == (3, 256) and file["q.weight"].shape == (3, 8 * 34)
    for known in gguf.GGMLQuantizationType:
        if known.value in TYPES:
            own = TYPES[known.value]
            sizes = gguf.constants.GGML_QUANT_SIZES[known]
            assert (own.name, own.block, own.block_bytes) == (known.name, *sizes)


def test_block_sizes() -> None:
    """Bits of a weight as ggml's documentation has them."""
    bits = {name: kind.block_bytes * 8 / kind.block for name, kind in BY_NAME.items()}
    assert bits["Q4_0"] == 4.5 and bits["Q8_0"] == 8.5 and bits["Q2_K"] == 2.625
    assert bits["Q4_K"] == 4.5 and bits["Q6_K"] == 6.5625 and bits["IQ1_S"] == 1.5625
    assert bits["IQ4_XS"] == 4.25 and bits["MXFP4"] == 4.25 and bits["BF16"] == 16


def test_block_types_come_as_rows_of_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    written = blocks("Q6_K", (2, 3, 512), data[: 2 * 3 * 2 * 210])
    file = open_gguf(write_gguf(tmp_path / "x.gguf", {}, {"w": written}))
    assert file["w"].shape == (6, 420) and file["w"].dtype == np.uint8
    assert file["w"].tobytes() == written.data
    assert (file.spans["w"].rows, file.spans["w"].row_bytes) == (6, 420)


def test_typed_readers(tmp_path: Path) -> None:
    values = {
        "i": Typed(0, 200),
        "n": Typed(11, -3),
        "eps": Typed(6, 1e-6),
        "nan": float("nan"),
        "flag": True,
        "word": "w",
        "list": [1, 2],
        "words": ["a", "b"],
    }
    metadata = open_gguf(write_gguf(tmp_path / "x.gguf", values)).metadata
    assert metadata.integer("i", 0, 255) == 200 and metadata.integer("n", -3, 0) == -3
    assert metadata.number("eps", 0, 1) == 1e-6 and metadata.number("i", 0, 255) == 200.0
    assert metadata.flag("flag") is True and metadata.string("word") == "w"
    assert metadata.integer("none", 0, 1, default=None) is None
    assert metadata.strings("words", 2) == ["a", "b"]
    for read, found in (
        (lambda: metadata.integer("i", 0, 199), "i=200 (UINT8): expected an integer in [0, 199]"),
        (lambda: metadata.integer("flag", 0, 1), "flag=True (BOOL)"),
        (lambda: metadata.integer("eps", 0, 1), "eps=1e-06 (FLOAT32)"),
        (lambda: metadata.integer("list", 0, 9), "list=an array of 2 INT32"),
        (lambda: metadata.integer("none", 0, 9), "none is missing"),
        (lambda: metadata.number("nan", 0, 1), "nan=nan (FLOAT32)"),
        (lambda: metadata.flag("i"), "expected true or false"),
        (lambda: metadata.string("i"), "expected a string"),
        (lambda: metadata.strings("words", 1), "words=an array of 2 STRING"),
        (lambda: metadata.strings("list", 9), "list=an array of 2 INT32"),
    ):
        with pytest.raises(ModelFormatError) as caught:
            read()
        assert found in str(caught.value) and str(tmp_path) in str(caught.value)


def test_views_share_the_file_and_outlive_it(tmp_path: Path) -> None:
    """A view of freed pages would kill the process here."""
    path = write_gguf(tmp_path / "x.gguf", {}, {name: of(a) for name, a in ARRAYS.items()})
    file = open_gguf(path)
    view, again = file["a.weight"], file["a.weight"]
    assert np.shares_memory(view, again)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file["a.weight"]
    del file, again
    gc.collect()
    path.unlink()
    assert view.tobytes() == ARRAYS["a.weight"].tobytes()


def test_change_of_size_is_noticed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {}, ONE)
    file = open_gguf(path)
    file.check_unchanged()
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelFormatError, match="load the model again"):
        file.check_unchanged()


@pytest.mark.parametrize("size", [0, 1, 23])
def test_38_shorter_than_a_header(tmp_path: Path, size: int) -> None:
    assert f"{size} bytes" in refusal(tmp_path, gguf_bytes({}, ONE)[:size])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (gguf_bytes({}, ONE, magic=b"GGML"), "b'GGML'"),
        (b"version https://git-lfs.github.com/spec/v1", "b'vers'"),
        (gguf_bytes({}, ONE, version=0), "version 0"),
        (gguf_bytes({}, ONE, version=1), "version 1: expected 2 or 3"),
        (gguf_bytes({}, ONE, version=4), "version 4"),
        (gguf_bytes({}, ONE, version=3 << 24), "big-endian"),
    ],
)
def test_38_magic_and_version(tmp_path: Path, data: bytes, found: str) -> None:
    assert found in refusal(tmp_path, data)


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**32, 70000, 7])
@pytest.mark.parametrize("which", ["tensor_count", "key_count"])
def test_39_counts(tmp_path: Path, count: int, which: str) -> None:
    data = gguf_bytes({"a": 1}, ONE, **{which: count})[: 24 + 64]
    tracemalloc.start()
    message = refusal(tmp_path, data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert f"{count} {'tensors' if which == 'tensor_count' else 'keys'}" in message


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (b"", "length 0"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\nb", "printable"),
        (b"\x1b[31m", "printable"),
        (b"k" * 2000, "length 2000"),
    ],
)
def test_40_keys(tmp_path: Path, key: bytes, found: str) -> None:
    assert found in refusal(tmp_path, gguf_bytes([(key, 1)], ONE))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 500])
def test_40_key_beyond_the_file(tmp_path: Path, length: int) -> None:
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", length) + b"key"
    assert f"length {length}" in refusal(tmp_path, data + bytes(40))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (struct.pack("<IQ", 8, 2**63), "length 9223372036854775808"),
        (struct.pack("<IQ", 8, 1000), "length 1000, but"),
        (struct.pack("<IQ", 8, 2) + b"\xc3(", "not UTF-8"),
        (struct.pack("<IB", 7, 2), "2 as BOOL"),
        (struct.pack("<I", 99), "value type 99"),
        (struct.pack("<IIQ", 9, 4, 2**61), "an array of 2305843009213693952 UINT32"),
        (struct.pack("<IIQ", 9, 8, 2) + struct.pack("<QQ", 2**63, 0), "ends behind"),
        (struct.pack("<IIQ", 9, 8, 2) + struct.pack("<QQ", 0, 500), "ends behind"),
        (struct.pack("<IIQ", 9, 99, 1), "element type 99"),
        (struct.pack("<IIQ", 9, 9, 1) * 1000, "an array of arrays"),
    ],
)
def test_40_42_values(tmp_path: Path, value: bytes, found: str) -> None:
    data = gguf_bytes([("some.key", Raw(value))], ONE)
    assert found in refusal(tmp_path, data) and "some.key" in refusal(tmp_path, data)


def test_41_twice(tmp_path: Path) -> None:
    assert "'k' appears twice" in refusal(tmp_path, gguf_bytes([("k", 1), ("k", 2)], ONE))
    pair = [("t", ONE["t"]), ("t", ONE["t"])]
    assert "'t' appears twice" in refusal(tmp_path, gguf_bytes({}, pair))


@pytest.mark.parametrize(
    "value", [0, 3, 4, 2**31, Typed(10, 32), Typed(5, 32), Typed(6, 32.0), "32", [32]]
)
def test_44_alignment(tmp_path: Path, value: Any) -> None:
    message = refusal(tmp_path, gguf_bytes({"general.alignment": value}, ONE))
    assert "general.alignment" in message and "power of two" in message


@pytest.mark.parametrize("dims", [0, 5, 2**32 - 1])
def test_45_dimensions(tmp_path: Path, dims: int) -> None:
    entry = string("t") + struct.pack("<I", dims) + bytes(8 * min(dims, 5) + 12)
    data = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + entry + bytes(64)
    assert f"{dims} dimensions" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "shape",
    [(0,), (2, 0), (-1,), (2**63,), (4194305, 4194305, 211106198978564), (2**62, 8), (2**40,)],
)
def test_46_extents(tmp_path: Path, shape: tuple[int, ...]) -> None:
    message = refusal(tmp_path, gguf_bytes({}, {"t": Tensor(0, shape, b"")}))
    assert "'t'" in message and "shape" in message


@pytest.mark.parametrize("kind", [-1, 4, 9, 31, 34, 40, 99])
def test_47_types(tmp_path: Path, kind: int) -> None:
    data = gguf_bytes({}, {"t": Tensor(kind, (32,), bytes(32))})
    assert f"type {kind % 2**32}" in refusal(tmp_path, data, UnsupportedModelError)


@pytest.mark.parametrize(("kind", "row"), [("Q8_0", 33), ("Q4_K", 128), ("MXFP4", 1)])
def test_48_rows_are_whole_blocks(tmp_path: Path, kind: str, row: int) -> None:
    data = gguf_bytes({}, {"t": blocks(kind, (2, row), bytes(512))})
    assert f"rows of {row} elements" in refusal(tmp_path, data)


def test_49_offsets(tmp_path: Path) -> None:
    one, data = ONE["t"], bytes(32)
    for offset, found in ((1, "multiple of 32"), (32, "short"), (2**64 - 32, "offset"), (64, "sh")):
        tensors = {"t": Tensor(0, (2, 4), data, offset)}
        assert found in refusal(tmp_path, gguf_bytes({}, tensors))
    pair = {"t": one, "u": Tensor(0, (2, 4), data, 0)}
    assert "'t' and 'u' overlap" in refusal(tmp_path, gguf_bytes({}, pair))
    whole = gguf_bytes({}, ONE)
    assert "1 bytes short" in refusal(tmp_path, whole[:-1])


def test_last_tensor_need_not_be_padded(tmp_path: Path) -> None:
    tensors = {"t": of(np.arange(3, dtype=np.float32))}
    file = open_gguf(write_gguf(tmp_path / "x.gguf", {}, tensors, pad_end=False))
    assert file["t"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "found"),
    [(b"", "length 0"), (b"n" * 65, "length 65"), (b"\xff", "UTF-8"), (b"a\0b", "printable")],
)
def test_tensor_names(tmp_path: Path, name: bytes, found: str) -> None:
    assert found in refusal(tmp_path, gguf_bytes([], [(name, ONE["t"])]))


def test_51_split_files(tmp_path: Path) -> None:
    def part(n: int, count: int = 3, name: str | None = None, **more: Any) -> Path:
        metadata = {"split.no": Typed(2, n), "split.count": Typed(2, count), **more}
        metadata |= {"split.tensors.count": Typed(5, 3)}
        metadata |= {"general.name": "first"} if n == 0 else {}
        path = tmp_path / (name or f"m-{n + 1:05d}-of-{count:05d}.gguf")
        return write_gguf(path, metadata, {f"t{n}": of(np.full(2, n, np.float32))})

    first, _, third = (part(n) for n in range(3))
    for path in (first, third):
        model = open_gguf(path)
        assert list(model) == ["t0", "t1", "t2"] and model.metadata["general.name"] == "first"
        assert model["t1"].tolist() == [1, 1] and len(model.files) == 3
        model.check_unchanged()
        model.close()

    def message(path: Path = first) -> str:
        with pytest.raises(ModelFormatError) as caught:
            open_gguf(path)
        return str(caught.value)

    assert "give the parts their names back" in message(part(0, name="other.gguf"))
    assert "give the parts their names back" in message(part(0, name="m-00002-of-00004.gguf"))
    part(1, 4, name="m-00002-of-00003.gguf")
    assert "belongs to another model" in message()
    write_gguf(
        tmp_path / "m-00002-of-00003.gguf",
        {"split.no": Typed(2, 1), "split.count": Typed(2, 3)},
        {"t0": ONE["t"]},
    )
    assert "also in" in message()
    write_gguf(
        tmp_path / "m-00002-of-00003.gguf", {"split.no": Typed(2, 1), "split.count": Typed(2, 3)}
    )
    assert "split.tensors.count=3, but the 3 parts hold 2" in message()
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    assert "part 2 of 3 is missing" in message()


def test_52_the_43_byte_file(tmp_path: Path) -> None:
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 2**63)
    assert len(data) == 24 + 9 + 16
    began = time.monotonic()
    assert "9223372036854775808" in refusal(tmp_path, data[:43] + data[43:])
    refusal(tmp_path, data[:43])
    assert time.monotonic() - began < 1  # 50 ms, and slack for a machine that is busy


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")
    with pytest.raises(ModelFormatError, match="not a regular file"):
        open_gguf(tmp_path)
