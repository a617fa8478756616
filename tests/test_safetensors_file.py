"""Oracle: literals, the array that was written, and the safetensors package where it is installed.

The numbers in the test names are items of the list of hostile inputs the project keeps (17-31).
"""

import gc
import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import raw_safetensors, write_safetensors
from hypothesis import given
from hypothesis import strategies as st

from qwen35.errors import ModelFormatError, UnsupportedModelError
from qwen35.safetensors_file import open_safetensors

RNG = np.random.default_rng(5)
ARRAYS = {
    "a": RNG.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
    "b": RNG.standard_normal((7,)).astype(np.float32),
    "c.weight": RNG.standard_normal((2, 1, 3)).astype(np.float16),
    "scalar": np.array(2.5, np.float32),
    "nothing": np.empty((0, 4), np.float16),
}


def tensor(begin: int, end: int, *, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    """A header entry; the shape is one dimension that fits unless given."""
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(
    path: Path, data: bytes, error: type[Exception] = ModelFormatError, *, name: str = "x"
) -> str:
    """The message that refuses a file of these bytes."""
    path = path / f"{name}.safetensors"
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        open_safetensors(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message


@pytest.mark.parametrize("odd", [False, True])
def test_26_reads_what_was_written(tmp_path: Path, odd: bool) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS, misaligned=odd)
    file = open_safetensors(path)
    assert list(file) == list(ARRAYS)
    for name, wanted in ARRAYS.items():
        found = file[name]
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()
        assert found.flags.aligned and found.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0
    assert file.nbytes == path.stat().st_size


def test_agrees_with_the_safetensors_package(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    arrays = {name: array for name, array in ARRAYS.items() if array.dtype != ml_dtypes.bfloat16}
    save(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = open_safetensors(tmp_path / "x.safetensors")
    assert sorted(file) == sorted(arrays)
    for name, wanted in arrays.items():
        np.testing.assert_array_equal(file[name], wanted)


def test_views_share_the_file_and_outlive_it(tmp_path: Path) -> None:
    """A view of freed pages would kill the process here."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS)
    file = open_safetensors(path)
    view, again = file["a"], file["a"]
    assert np.shares_memory(view, again)
    file.close()
    del file, again
    gc.collect()
    path.unlink()
    assert view.tobytes() == ARRAYS["a"].tobytes()


def test_closed_file_says_so(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", ARRAYS)
    file = open_safetensors(tmp_path / "x.safetensors")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file["a"]


def test_replaced_file_keeps_its_old_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS)
    file = open_safetensors(path)
    write_safetensors(tmp_path / "new", {"a": np.zeros((3, 5), np.float32)})
    os.replace(tmp_path / "new", path)
    file.check_unchanged()
    assert file["a"].tobytes() == ARRAYS["a"].tobytes()


def test_change_of_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS)
    file = open_safetensors(path)
    file.check_unchanged()
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelFormatError, match="load the model again"):
        file.check_unchanged()


def test_read_ahead_counts_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros(3 * 4096, np.float32)})
    size = path.stat().st_size
    done = list(open_safetensors(path).read_ahead(chunk_bytes=4 * 4096))
    assert done == [*range(16384, size, 16384), size]


@pytest.mark.parametrize("size", [0, 1, 7])
def test_17_shorter_than_the_length(tmp_path: Path, size: int) -> None:
    message = refusal(tmp_path, b"\x02" + b"\0" * (size - 1) if size else b"")
    assert "header truncated" in message and f"{size} bytes" in message


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**63, 2**64 - 1])
def test_18_header_length(tmp_path: Path, length: int) -> None:
    message = refusal(tmp_path, struct.pack("<Q", length) + b"{}" * 20)
    assert f"header length {length}" in message


@pytest.mark.parametrize("length", [41, 99_999_999])
def test_18_header_beyond_the_file(tmp_path: Path, length: int) -> None:
    message = refusal(tmp_path, struct.pack("<Q", length) + b"{}" * 20)
    assert "header truncated" in message and "the file has 48" in message


def test_17_eight_bytes(tmp_path: Path) -> None:
    assert "header truncated" in refusal(tmp_path, struct.pack("<Q", 2))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (b" {}", "header starts with b' {}': expected '{'"),
        (b"[1, 2]", "header starts with"),
        (b"\xff\xfe{}", "header starts with"),
        (b'{"a": "\xff"}', "header: line 1 col 8: byte 0xff is not UTF-8"),
        (b'{"a": ' * 5000, "nested deeper than 64"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1', "header: line 1"),
        (b"{}\0\0\0", "header: line 1 col 3"),
    ],
)
def test_19_header_is_no_json_object(tmp_path: Path, header: bytes, part: str) -> None:
    assert part in refusal(tmp_path, raw_safetensors(header, b""))


def test_20_duplicate_name(tmp_path: Path) -> None:
    one = json.dumps(tensor(0, 4))
    header = f'{{"a": {one}, "a": {one}}}'.encode()
    assert "key 'a' appears twice" in refusal(tmp_path, raw_safetensors(header, b"\0" * 4))


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, [], "x", {"a": {"b": "c"}}])
def test_21_metadata(tmp_path: Path, metadata: Any) -> None:
    message = refusal(tmp_path, raw_safetensors({"__metadata__": metadata}, b""))
    assert "__metadata__ must map strings to strings" in message


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "I64", "F64", "BOOL", "Q4", "bf16", ""])
def test_22_other_dtypes(tmp_path: Path, dtype: str) -> None:
    header = {"layer.weight": tensor(0, 4, dtype=dtype, shape=[4])}
    message = refusal(tmp_path, raw_safetensors(header, b"\0" * 4), UnsupportedModelError)
    assert "'layer.weight'" in message and repr(dtype) in message and "BF16, F16, F32" in message


@pytest.mark.parametrize("dtype", [None, 3, ["BF16"]])
def test_22_no_dtype(tmp_path: Path, dtype: Any) -> None:
    header = {"a": tensor(0, 4) | {"dtype": dtype}}
    assert "dtype=" in refusal(tmp_path, raw_safetensors(header, b"\0" * 4))


@pytest.mark.parametrize(
    "shape",
    [[-1], [1.0], [True], [1] * 9, ["1"], [None], "1", None, {"0": 1}, [2**63], [1, -1, -1]],
)
def test_23_shape(tmp_path: Path, shape: Any) -> None:
    header = {"a": tensor(0, 4) | {"shape": shape}}
    message = refusal(tmp_path, raw_safetensors(header, b"\0" * 4))
    assert "tensor 'a': shape=" in message and "expected at most 8 integers" in message


@pytest.mark.parametrize(
    "shape",
    [
        [2**32, 2**32],  # 2 ** 64 elements: 0 when it wraps
        [2**62],  # times 4 bytes wraps to 0
        [4194305, 4194305, 211106198978564],
        [2],
        [0],
        [1, 1, 2],
    ],
)
def test_23_shape_and_extent(tmp_path: Path, shape: list[int]) -> None:
    message = refusal(tmp_path, raw_safetensors({"a": tensor(0, 4, shape=shape)}, b"\0" * 4))
    assert "tensor 'a'" in message and "hold 4" in message


@pytest.mark.parametrize(
    "offsets", [[4, 0], [-4, 0], [0], [0, 4, 8], [0, 4.0], "04", None, [0, 2**63], [False, 4]]
)
def test_24_offsets(tmp_path: Path, offsets: Any) -> None:
    header = {"a": tensor(0, 4) | {"data_offsets": offsets}}
    message = refusal(tmp_path, raw_safetensors(header, b"\0" * 4))
    assert "tensor 'a': data_offsets=" in message and "0 <= begin <= end" in message


@pytest.mark.parametrize(
    ("spans", "word"),
    [
        ([(0, 8), (4, 12)], "overlap"),
        ([(0, 4), (8, 12)], "a hole"),
        ([(0, 8), (0, 8)], "overlap"),
        ([(8, 12), (0, 8)], "starts 8 bytes into the data"),
        ([(0, 4), (8, 12), (4, 8)], "a hole"),
        ([(0, 4), (4, 8), (0, 4)], "unordered"),
        ([(4, 8)], "starts 4 bytes into the data"),
    ],
)
def test_24_neighbours(tmp_path: Path, spans: list[tuple[int, int]], word: str) -> None:
    header = {f"t{i}": tensor(*span) for i, span in enumerate(spans)}
    message = refusal(tmp_path, raw_safetensors(header, b"\0" * 12))
    assert word in message
    assert "'t0'" in message or "'t1'" in message
    if "starts" not in word:
        assert message.count("'t") >= 2  # both tensors are named


def test_25_truncated(tmp_path: Path) -> None:
    message = refusal(tmp_path, raw_safetensors({"a": tensor(0, 12)}, b"\0" * 5))
    assert "file is 7 bytes short" in message and "download it again" in message


def test_25_longer(tmp_path: Path) -> None:
    message = refusal(tmp_path, raw_safetensors({"a": tensor(0, 4)}, b"\0" * 6))
    assert "2 bytes follow the last tensor" in message


@pytest.mark.parametrize(
    "name", ["", "a\0b", "a\nb", "\x1b[31mred", "x" * 1_000_000, "\u202eleft", "\ud800"]
)
def test_30_names(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, raw_safetensors({name: tensor(0, 4)}, b"\0" * 4))
    assert "printable name" in message
    assert len(message) < 1000


@pytest.mark.parametrize("info", [None, 3, [], "F32"])
def test_entry_is_no_object(tmp_path: Path, info: Any) -> None:
    assert "expected an object" in refusal(tmp_path, raw_safetensors({"a": info}, b""))


def test_unknown_entries_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"a": tensor(0, 4) | {"note": "x"}}, b"\0\0\x80\x3f"))
    assert open_safetensors(path)["a"].tolist() == [1.0]


def test_empty_file_of_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({}, b""))
    assert len(open_safetensors(path)) == 0


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ModelFormatError, match="not a regular file"):
            open_safetensors(path)
    with pytest.raises(FileNotFoundError):
        open_safetensors(tmp_path / "missing")


GOOD = raw_safetensors(
    {
        "__metadata__": {"format": "pt"},
        "a": tensor(0, 8),
        "b": tensor(8, 12, dtype="BF16", shape=[2, 1]),
    },
    bytes(range(12)),
)


def survives(path: Path, data: bytes) -> None:
    """A clear refusal, or arrays within the file; never anything else."""
    path.write_bytes(data)
    try:
        file = open_safetensors(path)
    except (ModelFormatError, UnsupportedModelError) as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        assert sum(file[name].nbytes for name in file) <= len(data)


@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_31_fuzz_one_byte(tmp_path: Path, at: int, byte: int) -> None:
    survives(tmp_path / "x", GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])


@given(cut=st.integers(0, len(GOOD)), tail=st.binary(max_size=64))
def test_31_fuzz_tail(tmp_path: Path, cut: int, tail: bytes) -> None:
    survives(tmp_path / "x", GOOD[:cut] + tail)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
NUMBERS = st.lists(st.integers(-1, 2**64) | st.integers(0, 16) | JSON, max_size=10)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["BF16", "F16", "F32", "F8_E4M3", "I64"]) | JSON,
        "shape": NUMBERS,
        "data_offsets": NUMBERS | st.tuples(st.integers(0, 16), st.integers(0, 16)).map(list),
    }
)


@given(header=st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4), data=st.binary())
def test_31_fuzz_headers(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    survives(tmp_path / "x", raw_safetensors(header, data))
