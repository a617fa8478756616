"""Rotary embedding: its parameters in every spelling the files use, and the frequencies, with or
without YaRN.

The formulas are those of transformers' `modeling_rope_utils` (YaRN: Peng et al. 2023,
arXiv:2309.00071), in the same precision and order, so that the float32 frequencies agree with it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError, UnsupportedModelError
from .fields import as_json, entry, read_fields

DEFAULT_THETA = (
    10_000.0  # what transformers takes when a file names none; the released files say 1e7
)
DEFAULT_PARTIAL = 0.25
DEFAULT_SECTIONS = (11, 11, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary parameters of the text model. `scaling` is None or the YaRN parameters."""

    rope_theta: float = entry(float, 1.001, 1e15, default=DEFAULT_THETA)
    partial_rotary_factor: float = entry(float, 1e-3, 1.0, default=DEFAULT_PARTIAL)
    mrope_section: tuple[int, int, int]
    scaling: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Yarn:
    factor: float = entry(float, 1.0, 1024.0, optional=True, default=None)
    original_max_position_embeddings: int = entry(int, 1, 2**40, optional=True, default=None)
    attention_factor: float = entry(float, 1e-3, 1e3, optional=True, default=None)
    beta_fast: float = entry(float, 1e-3, 1e6, optional=True, default=None)
    beta_slow: float = entry(float, 1e-3, 1e6, optional=True, default=None)
    mscale: float = entry(float, 0.0, 1e3, optional=True, default=None)
    mscale_all_dim: float = entry(float, 0.0, 1e3, optional=True, default=None)
    truncate: bool = entry(bool, optional=True, default=True)


KNOWN_KEYS = frozenset(field.name for field in dataclasses.fields(_Yarn)) | {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "mrope_section",
    "mrope_interleaved",
}


def read_rope(
    raw: Mapping[str, Any], *, head_dim: int, max_position_embeddings: int, where: str
) -> Rope:
    """Rope parameters of a text config.

    `rope_parameters` is the released spelling. Older files hold `rope_theta` and
    `partial_rotary_factor` beside the other fields and YaRN in `rope_scaling`, which wins where it
    is not empty, as in transformers.
    """
    section = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    parameters = raw.get(section)
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise ModelFormatError(f"{where}{section}={as_json(parameters)}: expected an object")
    beside = {name: raw[name] for name in ("rope_theta", "partial_rotary_factor") if name in raw}
    return rope_of(
        {**beside, **parameters},
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        where=f"{where}{section}.",
    )


def rope_of(
    parameters: Mapping[str, Any], *, head_dim: int, max_position_embeddings: int, where: str
) -> Rope:
    """Check one set of rope parameters. `where` opens the messages."""
    values = read_fields(Rope, parameters, where=where)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise UnsupportedModelError(
            f"{where}rope_type={as_json(kind)}: supported are 'default' and 'yarn'"
        )
    rotary = int(head_dim * values["partial_rotary_factor"])
    if rotary < 2 or rotary % 2:
        raise ModelFormatError(
            f"{where}partial_rotary_factor={values['partial_rotary_factor']} of "
            f"head_dim={head_dim} gives {rotary} rotary dims: expected an even number, at least 2"
        )
    sections = _sections(parameters.get("mrope_section"), rotary // 2, where)
    scaling = _yarn(parameters, max_position_embeddings, where) if kind == "yarn" else None
    return Rope(**values, mrope_section=sections, scaling=scaling)


def _sections(given: Any, pairs: int, where: str) -> tuple[int, int, int]:
    """How many of the `pairs` frequencies turn with time, height and width.

    Without a list in the file, what transformers' default of 11, 11, 10 means for that many: height
    takes indices 1, 4, 7, ... below 33, width 2, 5, 8, ... below 30, time the rest.
    """
    if given is None:
        height = len(range(1, min(3 * DEFAULT_SECTIONS[1], pairs), 3))
        width = len(range(2, min(3 * DEFAULT_SECTIONS[2], pairs), 3))
        return pairs - height - width, height, width
    whole = isinstance(given, list | tuple) and all(
        type(part) is int and part >= 0 for part in given
    )
    if not whole or len(given) != 3 or sum(given) != pairs:
        raise ModelFormatError(
            f"{where}mrope_section={as_json(given)}: expected three integers that sum to {pairs}, "
            "half the rotary dims"
        )
    return tuple(given)


def _yarn(
    parameters: Mapping[str, Any], max_position_embeddings: int, where: str
) -> dict[str, Any]:
    values = read_fields(_Yarn, parameters, where=where)
    original = values["original_max_position_embeddings"] or max_position_embeddings
    values["original_max_position_embeddings"] = original
    if values["factor"] is None:
        values["factor"] = max_position_embeddings / original
    if (values["beta_fast"] or 32) < (values["beta_slow"] or 1):
        raise ModelFormatError(
            f"{where}beta_fast={values['beta_fast'] or 32} is below "
            f"beta_slow={values['beta_slow'] or 1}"
        )
    return {"rope_type": "yarn", **{name: v for name, v in values.items() if v is not None}}


def inverse_frequencies(rope: Rope, *, head_dim: int) -> tuple[NDArray[np.float32], float]:
    """Angle per position of each rotary pair, float32 [Dr / 2], and the factor on cos and sin (1.0
    without YaRN).
    """
    rotary = int(head_dim * rope.partial_rotary_factor)
    exponents = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    # torch's float32 power is almost always correctly rounded, NumPy's is not: float64, rounded
    # once, agrees with torch.
    wavelengths = np.power(rope.rope_theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / wavelengths
    yarn = rope.scaling
    if yarn is None:
        return frequencies, 1.0
    ramp = _yarn_ramp(yarn, rotary, rope.rope_theta)
    keep = np.float32(1) - ramp
    stretched = np.float32(1) / (np.float32(yarn["factor"]) * wavelengths)
    mixed = stretched * (np.float32(1) - keep) + frequencies * keep
    return mixed.astype(np.float32), _yarn_attention(yarn)


def _yarn_ramp(yarn: Mapping[str, Any], rotary: int, theta: float) -> NDArray[np.float32]:
    """0 for pairs that keep their frequency, 1 for those divided by the factor, a line between;
    float32 [Dr / 2].
    """

    def pair_that_turns(times: float) -> float:
        length = yarn["original_max_position_embeddings"]
        return rotary * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(yarn.get("beta_fast") or 32)
    high = pair_that_turns(yarn.get("beta_slow") or 1)
    if yarn["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    if low == high:
        high += 0.001
    line = (np.arange(rotary // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(line, 0, 1).astype(np.float32)


def _yarn_attention(yarn: Mapping[str, Any]) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if yarn["factor"] <= 1 else 0.1 * weight * math.log(yarn["factor"]) + 1.0

    given = yarn.get("attention_factor")
    if given is not None:
        return float(given)
    if yarn.get("mscale") and yarn.get("mscale_all_dim"):
        return magnitude(yarn["mscale"]) / magnitude(yarn["mscale_all_dim"])
    return magnitude(1.0)
