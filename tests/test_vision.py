"""Oracle: the NumPy tower (vision_reference.py, which parity tests hold against transformers) in
float64, and the NumPy text model with its features put in.
"""

from __future__ import annotations

from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import pytest
import vision_reference
from core_models import config as text_config
from reference import ROOT, Reference, rms_norm

from qwen35 import _core
from qwen35.config import config_from

# One token; wide; several frames; more patches than a block of keys (128) and than a chunk (512).
GRIDS = [(1, 2, 2), (1, 4, 10), (3, 4, 6), (1, 12, 14), (1, 26, 24)]


def seeing(
    *, deep: list[int], dtype: str = "float32", **vision: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and tensors of a small model with a tower of pairwise different dimensions."""
    fields = text_config()
    fields["vision_config"] = checkpoints.VISION | {
        "hidden_size": 36,
        "num_heads": 3,
        "intermediate_size": 58,
        "depth": 3,
        "patch_size": 4,
        "num_position_embeddings": 49,
        "out_hidden_size": fields["text_config"]["hidden_size"],
        "deepstack_visual_indexes": deep,
        **vision,
    }
    return fields, checkpoints.make_tensors(fields, seed=4, dtype=dtype, mtp=False)


def core_of(
    fields: dict[str, Any], tensors: dict[str, Any], *, threads: int = 2, exact: bool = True
) -> _core.Model:
    bits = {
        n: x.view(np.uint16) if x.dtype == ml_dtypes.bfloat16 else x for n, x in tensors.items()
    }
    geometry = config_from(fields, where="test").geometry(exact=exact)
    return _core.Model(geometry, bits, threads=threads, kv_dtype="float32")


def noise(grid: tuple[int, int, int], floats: int = 96) -> np.ndarray:
    rng = np.random.default_rng(sum(grid))
    return rng.uniform(-1, 1, (int(np.prod(grid)), floats)).astype(np.float32)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference as a share of the largest value."""
    return float(abs(got - want).max() / abs(want).max())


@pytest.mark.parametrize("deep", [[], [0, 2], [2, 1]], ids=["plain", "deepstack", "any order"])
@pytest.mark.parametrize("grid", GRIDS)
def test_features(grid: tuple[int, int, int], deep: list[int]) -> None:
    """f32 sums of at most 200 terms in three blocks: 1e-5 is 5 times what was seen."""
    fields, tensors = seeing(deep=deep)
    pixels = noise(grid)
    want = vision_reference.features(fields["vision_config"], tensors, pixels, grid)
    got = core_of(fields, tensors).encode_vision(pixels, grid)
    assert got.shape == want.shape
    assert error(got, want) <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_types_are_exact(dtype: str) -> None:
    """Weights are used as stored: the same bound as float32."""
    fields, tensors = seeing(deep=[1], dtype=dtype)
    pixels = noise((1, 6, 4))
    want = vision_reference.features(fields["vision_config"], tensors, pixels, (1, 6, 4))
    assert error(core_of(fields, tensors).encode_vision(pixels, (1, 6, 4)), want) <= 1e-5


@pytest.mark.parametrize("grid", [(2, 6, 4), (1, 26, 24), (1, 38, 42)])
def test_rounded_products(grid: tuple[int, int, int]) -> None:
    """bf16 weights without exact=True: fixed point is off by up to 1.8e-4 of a block's norm, in
    attention by less. The bound is a quarter above what was seen.
    """
    fields, tensors = seeing(deep=[2, 1], dtype="bfloat16", hidden_size=60)
    pixels = noise(grid)
    want = vision_reference.features(fields["vision_config"], tensors, pixels, grid)
    found = error(core_of(fields, tensors, exact=False).encode_vision(pixels, grid), want)
    assert found <= (1e-5 if _core.cpu()["isa"] == "c" else 4e-4)
    assert error(core_of(fields, tensors).encode_vision(pixels, grid), want) <= 1e-5


@pytest.mark.parametrize("merge", [1, 3])
def test_other_merges(merge: int) -> None:
    fields, tensors = seeing(deep=[0], spatial_merge_size=merge)
    grid = (1, 3 * merge, 2 * merge)
    pixels = noise(grid)
    want = vision_reference.features(fields["vision_config"], tensors, pixels, grid)
    assert error(core_of(fields, tensors).encode_vision(pixels, grid), want) <= 1e-5


def test_frames_do_not_see_each_other() -> None:
    """Bit for bit: a frame of a video is read like that frame alone; threads change nothing."""
    fields, tensors = seeing(deep=[])
    pixels = noise((3, 8, 6))
    whole = core_of(fields, tensors).encode_vision(pixels, (3, 8, 6))
    alone = core_of(fields, tensors, threads=1)
    for t in range(3):
        one = alone.encode_vision(pixels[t * 48 : (t + 1) * 48], (1, 8, 6))
        assert np.array_equal(one, whole[t * 12 : (t + 1) * 12])
    assert np.array_equal(alone.encode_vision(pixels, [(1, 8, 6)] * 3), whole)


@pytest.mark.parametrize("deep", [[], [0, 2]], ids=["plain", "deepstack"])
@pytest.mark.parametrize("split", [None, 3, 9, 300])
def test_text_reads_features(deep: list[int], split: int | None) -> None:
    """Features stand in for embeddings and are added behind the first layers, wherever a prompt is
    split; positions in three rows. f32 against float64: 1e-4.
    """
    fields, tensors = seeing(deep=deep)
    grid = (1, 40, 34)  # 340 tokens: more than a chunk
    token = fields["image_token_id"]
    ids = np.array([5, 6, *[token] * 340, 7, 8, 9], np.int32)
    given = vision_reference.features(fields["vision_config"], tensors, noise(grid), grid)
    places = [np.arange(345) // 7, np.arange(345) % 19 + 3, np.arange(345) % 23]
    at = np.stack(places).astype(np.int32)
    reference = Reference(fields, tensors)
    state, d = reference.state(), reference.dims
    x = reference.w[ROOT + "embed_tokens.weight"][ids]
    x[2:342] = given[:, 0]
    for i in range(len(d.layer_types)):
        x = reference.layer(i, x, state, at)
        if i < len(deep):
            x[2:342] += given[:, 1 + i]
    want = reference.head(rms_norm(x, reference.w[ROOT + "norm.weight"], d.eps))
    session = core_of(fields, tensors).session(400)
    features = given.astype(np.float32)
    first = 0
    if split is not None:
        shown = features[: max(0, min(split, 342) - 2)]
        session.prefill(ids[:split], position_ids=at[:, :split], features=shown)
        first, features = split, features[len(shown) :]
    got = session.logits_all(ids[first:], position_ids=at[:, first:], features=features)
    assert error(got, want[first:]) <= 1e-4


def test_native_generate_takes_pixels() -> None:
    """The stream encodes pixels as encode_vision does."""
    fields, tensors = seeing(deep=[1])
    core, grid = core_of(fields, tensors), (1, 4, 4)
    ids = np.array([5, *[fields["image_token_id"]] * 4, 6], np.int32)
    at = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    pixels = noise(grid)
    with_pixels, with_features = core.session(50), core.session(50)
    tokens = list(
        with_pixels.generate(ids, pixels=pixels, grid_thw=[grid], position_ids=at, max_tokens=3)
    )
    features = core.encode_vision(pixels, grid)
    assert tokens == list(
        with_features.generate(ids, features=features, position_ids=at, max_tokens=3)
    )
    assert np.array_equal(with_pixels.logits, with_features.logits)


def test_wrong_arguments() -> None:
    """Literals: every one is a ValueError that names what was found and expected."""
    fields, tensors = seeing(deep=[])
    core = core_of(fields, tensors)
    pixels = noise((1, 4, 4))
    for bad, message in [
        ((pixels, (1, 4, 6)), r"shape \[16, 96\], expected \[24, 96\]"),
        ((pixels[:, :-1], (1, 4, 4)), r"shape \[16, 95\], expected \[16, 96\]"),
        ((pixels, (0, 4, 4)), r"grid_thw\[0\]"),
        ((pixels, (1, 2**40, 2**40)), r"grid_thw\[0\]"),
        ((pixels, (4, 4)), "time, height, width"),
        ((noise((1, 3, 4)), (1, 3, 4)), r"multiples of \(1, 2, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            core.encode_vision(*bad)
    session, token = core.session(20), np.int32(fields["image_token_id"])
    features = core.encode_vision(pixels, (1, 4, 4))
    with pytest.raises(ValueError, match="features of 4 tokens, but 1 image"):
        session.prefill(np.array([token]), features=features)
    with pytest.raises(ValueError, match="numbers a token"):
        session.prefill(np.array([token] * 4), features=features[:, :, :-1])
    with pytest.raises(ValueError, match="position_ids"):
        session.generate(np.array([token] * 4), pixels=pixels, grid_thw=(1, 4, 4))
    blind = _core.Model(config_from(fields, where="x").geometry(vision=False), tensors)
    with pytest.raises(ValueError, match="without a vision tower"):
        blind.encode_vision(pixels, (1, 4, 4))
    with pytest.raises(ValueError, match="without a vision tower"):
        blind.session(9).prefill(np.array([token]), features=features[:1])


def test_poll_ends_the_work() -> None:
    """What poll raises comes out, and the model goes on working."""
    fields, tensors = seeing(deep=[], depth=40)
    core, grid = core_of(fields, tensors), (1, 64, 64)

    class Enough(Exception):
        pass

    def poll() -> None:
        raise Enough

    with pytest.raises(Enough):
        core.encode_vision(noise(grid), grid, poll=poll)
    assert core.encode_vision(noise((1, 2, 2)), (1, 2, 2)).shape == (1, 1, 72)
