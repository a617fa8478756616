"""Oracle: transformers' vision towers (Qwen3.5's, and Qwen3-VL's for DeepStack) in float32."""

from __future__ import annotations

from typing import Any

import hf
import numpy as np
import pytest

from qwen35 import _core
from qwen35.config import config_from

# Grids: one token; wide; tall; several frames; more patches than a block of keys (128), than a
# chunk (512) and than the position table has.
GRIDS = [(1, 2, 2), (1, 4, 10), (1, 14, 6), (3, 4, 6), (1, 12, 14), (2, 24, 26)]


def core_model(vision: dict[str, Any], tower: Any) -> _core.Model:
    """Ours: a random text model of the same width with the tower's weights."""
    text = hf.text_config(hidden_size=vision["out_hidden_size"])
    tensors = hf.tensors_of(hf.text_model(text, seed=5))
    state = {n: p.numpy() for n, p in tower.state_dict().items()}
    tensors |= {f"model.visual.{name}": array for name, array in state.items()}
    config = {"model_type": "qwen3_5", "text_config": text, "vision_config": vision}
    geometry = config_from(config, where="random").geometry()
    return _core.Model(geometry, tensors, threads=2)


@pytest.mark.parametrize("deep", [[], [0, 2]])
@pytest.mark.parametrize("grid", GRIDS)
def test_features(grid: tuple[int, int, int], deep: list[int]) -> None:
    """At most 2e-4 of the largest (DESIGN.md); measured 1e-6."""
    config = hf.vision_config(deepstack_visual_indexes=deep)
    tower = hf.vision_model(config, seed=3)
    rng = np.random.default_rng(sum(grid))
    pixels = rng.uniform(-1, 1, (np.prod(grid), 96)).astype(np.float32)
    want = hf.features(tower, pixels, [grid])
    got = core_model(config, tower).encode_vision(pixels, grid)
    assert got.shape == want.shape
    for part in range(want.shape[1]):
        error = abs(got[:, part] - want[:, part]).max() / abs(want[:, part]).max()
        assert error <= 2e-4, (part, error)
