"""Random models given straight to the native module: no files, any geometry, beside the reference
of the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from reference import Dims, Reference

from qwen35 import _core

Tensors = Mapping[str, NDArray[Any]]


def config(**text: Any) -> dict[str, Any]:
    """A config.json object: checkpoints.TEXT changed, mrope_section made to fit the rotary dims."""
    fields = checkpoints.config_of(vision=False, **text)
    inner = fields["text_config"]
    if "rope_parameters" not in text:
        half = max(1, int(inner["head_dim"] * 0.25) // 2)
        section = [half - half // 3 * 2, half // 3, half // 3]
        inner["rope_parameters"] = inner["rope_parameters"] | {
            "mrope_section": section,
            "partial_rotary_factor": 2 * half / inner["head_dim"],
        }
    return fields


def geometry(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`_core.Geometry` of a config.json object, by the reference's reading of it."""
    t, d = fields["text_config"], Dims.from_config(fields)
    same = (
        "hidden_size intermediate_size vocab_size num_attention_heads num_key_value_heads head_dim "
        "linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim "
        "linear_conv_kernel_dim rms_norm_eps"
    )
    return {name: t[name] for name in same.split()} | {
        "layer_types": list(t["layer_types"]),
        "tie_word_embeddings": d.tied,
        "mrope_section": d.mrope_section,
        "inv_freq": d.inv_freq,
        "rope_attention_scaling": d.rope_gain,
    }


def core_model(
    fields: Mapping[str, Any],
    tensors: Tensors,
    *,
    kv: str = "float32",
    threads: int = 2,
    exact: bool = True,
) -> _core.Model:
    """The native model of these weights; bfloat16 goes in as its bits."""
    bits = {
        n: x.view(np.uint16) if x.dtype == ml_dtypes.bfloat16 else x for n, x in tensors.items()
    }
    sizes = geometry(fields) | {"integer_products": not exact}
    return _core.Model(sizes, bits, threads=threads, kv_dtype=kv)


def both(
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    kv: str = "float32",
    threads: int = 2,
    exact: bool = True,
    **text: Any,
) -> tuple[_core.Model, Reference]:
    """A native model and the float64 reference of the same random weights."""
    fields = config(**text)
    tensors = checkpoints.make_tensors(fields, seed=seed, dtype=dtype, mtp=False)
    model = core_model(fields, tensors, kv=kv, threads=threads, exact=exact)
    return model, Reference(fields, tensors)


def tokens(seed: int, T: int, V: int | None = None) -> NDArray[np.int32]:
    """T random ids."""
    V = V or checkpoints.TEXT["vocab_size"]
    return np.random.default_rng(seed).integers(0, V, T).astype(np.int32)


def relative_error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Largest error as a share of the largest value; NaN counts as infinite."""
    error = np.abs(got - want).max() / np.abs(want).max()
    return float("inf") if np.isnan(error) else float(error)
