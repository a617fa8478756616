"""Bytes of blocks for the tests of formats: the same for ever, whatever random generator NumPy has.

Codes are hash output; scales are too, but finite.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# Per type: bytes of a block, and where its f16 fields start.
FIELDS = {
    "q4_0": (18, (0,)),
    "q4_1": (20, (0, 2)),
    "q5_0": (22, (0,)),
    "q5_1": (24, (0, 2)),
    "q8_0": (34, (0,)),
    "q2_k": (84, (80, 82)),
    "q3_k": (110, (108,)),
    "q4_k": (144, (0, 2)),
    "q5_k": (176, (0, 2)),
    "q6_k": (210, (208,)),
    "iq1_s": (50, (0,)),
    "iq1_m": (56, ()),  # its f16 is spread over the top bits of four u16
    "iq2_xxs": (66, (0,)),
    "iq2_xs": (74, (0,)),
    "iq2_s": (82, (0,)),
    "iq3_xxs": (98, (0,)),
    "iq3_s": (110, (0,)),
    "iq4_nl": (18, (0,)),
    "iq4_xs": (136, (0,)),
    "mxfp4": (17, ()),  # its scale is a power of two in one byte
}
MANY = 512  # blocks of which the digest is kept


def finite(name: str, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The blocks [n, bytes] with every scale that would be infinite or NaN made finite."""
    raw = raw.copy()
    high = [start + 1 for start in FIELDS[name][1]]
    if name == "iq1_m":
        high = [55]
    for at in high:  # an exponent of 31 becomes 15
        raw[(raw[:, at] & 0x70) == 0x70, at] &= 0xBF
    if name == "mxfp4":  # 12 x 2^127 would be infinite
        raw[:, 0] = np.minimum(raw[:, 0], 250)
    return raw


def sample(name: str, count: int) -> NDArray[np.uint8]:
    """[count, bytes]: blocks of a type."""
    size = FIELDS[name][0]
    stream = hashlib.shake_128(name.encode()).digest(count * size)
    return finite(name, np.frombuffer(stream, np.uint8).reshape(count, size))


def weights(name: str, shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """[rows, bytes]: a matrix of random codes whose numbers have the size of weights."""
    size, halves = FIELDS[name]
    each = 256 if size > 34 else 32
    raw = np.random.default_rng(seed).integers(0, 256, (shape[0] * shape[1] // each, size), "u1")
    for start in halves:
        raw[:, start : start + 2] = (0, 0x14)  # 2^-10
    if name == "iq1_m":  # the four high nibbles of its scales are 2^-11
        raw[:, 49:56:2] = raw[:, 49:56:2] % 16 + np.array([0, 0, 0, 16], "u1")
    if name == "mxfp4":
        raw[:, 0] = 120
    return raw.reshape(shape[0], -1)


def digest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """SHA-256 over the bits of float32 values, little-endian, as uint8 [32]."""
    bits = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return np.frombuffer(hashlib.sha256(bits).digest(), np.uint8)
