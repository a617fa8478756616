"""The element types of GGUF tensors: number in the file, name, elements and bytes of a block.

A matrix row is a whole number of blocks. Decoding blocks is the core's work; here their size is
known, so that a tensor's bytes can be compared with its file before anyone reads them.
Source of the numbers: ggml's `enum ggml_type` and the block structs of `ggml-common.h`.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class GgmlType:
    """`block` elements take `block_bytes` bytes. `dtype` is None for blocks only the core reads."""

    name: str
    id: int
    block: int
    block_bytes: int
    dtype: np.dtype[Any] | None = None

    @property
    def is_float(self) -> bool:
        """Whether elements are plain floating-point numbers of a kind weights come in."""
        return self.name in ("F32", "F16", "BF16")

    def __str__(self) -> str:
        return self.name


def _plain(name: str, id: int, dtype: Any) -> GgmlType:
    dtype = np.dtype(dtype)
    return GgmlType(name, id, 1, dtype.itemsize, dtype)


_KNOWN = (
    _plain("F32", 0, "<f4"),
    _plain("F16", 1, "<f2"),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("IQ2_XXS", 16, 256, 66),
    GgmlType("IQ2_XS", 17, 256, 74),
    GgmlType("IQ3_XXS", 18, 256, 98),
    GgmlType("IQ1_S", 19, 256, 50),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("IQ3_S", 21, 256, 110),
    GgmlType("IQ2_S", 22, 256, 82),
    GgmlType("IQ4_XS", 23, 256, 136),
    _plain("I8", 24, "i1"),
    _plain("I16", 25, "<i2"),
    _plain("I32", 26, "<i4"),
    _plain("I64", 27, "<i8"),
    _plain("F64", 28, "<f8"),
    GgmlType("IQ1_M", 29, 256, 56),
    _plain("BF16", 30, ml_dtypes.bfloat16),
    GgmlType("MXFP4", 39, 32, 17),
)
TYPES = {kind.id: kind for kind in _KNOWN}
BY_NAME = {kind.name: kind for kind in _KNOWN}

# Numbers that mean something, but nothing that is read here.
REFUSED = {
    **dict.fromkeys((4, 5), "a 4-bit type that ggml removed in 2023"),
    **dict.fromkeys((31, 32, 33, 36, 37, 38), "a repacked 4-bit type that ggml removed in 2024"),
    9: "Q8_1, which holds activations",
    15: "Q8_K, which holds activations",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}
