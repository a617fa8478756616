"""Oracle: literals, and patches written out index by index from the formula of the models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qwen35 import MediaError, ModelFormatError, UnsupportedModelError
from qwen35.vision_input import (
    VisionSettings,
    image_input,
    read_settings,
    smart_resize,
    video_input,
)

PATCHES = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
IMAGE = VisionSettings()
VIDEO = VisionSettings(min_pixels=4096, max_pixels=25_165_824)
SMALL = VisionSettings(patch_size=2, temporal_patch_size=3, merge_size=2, min_pixels=16)
SMALL = dataclasses.replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))


def levels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def patch_by_patch(frames: np.ndarray, s: VisionSettings) -> np.ndarray:
    """Rows: time, block row and column, row and column in it. Elements: channel, time, y, x."""
    rows = []
    depth, height, width, _ = frames.shape
    p, m = s.patch_size, s.merge_size
    for t in range(0, depth, s.temporal_patch_size):
        for by in range(0, height, p * m):
            for bx in range(0, width, p * m):
                for y in range(by, by + p * m, p):
                    for x in range(bx, bx + p * m, p):
                        cube = frames[t : t + s.temporal_patch_size, y : y + p, x : x + p]
                        rows.append(cube.transpose(3, 0, 1, 2).ravel())
    mean, std = (np.repeat(v, len(rows[0]) // 3) for v in (s.mean, s.std))
    return (np.array(rows) / 255 - mean) / std


# ---- patches -------------------------------------------------------------------------------------


def test_patches_of_an_image() -> None:
    image = levels(12, 20, 3)
    found = image_input(image, SMALL)
    assert found.grid_thw == (1, 6, 10)
    assert found.tokens == 15
    assert found.timestamps == ()
    assert found.source_size == (12, 20)
    expected = patch_by_patch(np.stack([image] * 3), SMALL)
    assert found.pixels.dtype == np.float32
    np.testing.assert_allclose(found.pixels, expected, atol=1e-6)
    np.testing.assert_array_equal(found.patches(0), found.pixels)


def test_patches_of_a_video_in_pairs_and_the_last_frame_repeated() -> None:
    video = levels(5, 8, 12, 3)
    settings = dataclasses.replace(SMALL, temporal_patch_size=2)
    found = video_input(video, settings, fps=4)
    assert found.grid_thw == (3, 4, 6)
    assert found.timestamps == (0.125, 0.625, 1.0)  # (0 + 1/4) / 2, (2/4 + 3/4) / 2, 4/4 twice
    expected = patch_by_patch(np.concatenate([video, video[-1:]]), settings)
    np.testing.assert_allclose(found.pixels, expected, atol=1e-6)
    for t in range(3):
        np.testing.assert_array_equal(found.patches(t), found.pixels[t * 24 : (t + 1) * 24])


def test_one_frame_stands_for_two() -> None:
    found = video_input(levels(1, 64, 64, 3), VIDEO, fps=3)
    assert found.grid_thw[0] == 1
    assert found.timestamps == (0.0,)
    np.testing.assert_array_equal(found.frames[0], found.frames[1])


@pytest.mark.parametrize("t", [-1, 1])
def test_patches_of_a_time_that_is_not_there(t: int) -> None:
    with pytest.raises(IndexError, match="expected 0 to 0"):
        image_input(levels(64, 64, 3), IMAGE).patches(t)


def test_inputs_are_immutable_and_show_their_size() -> None:
    found = image_input(levels(300, 400, 3), IMAGE)
    assert not found.frames.flags.writeable
    assert not found.pixels.flags.writeable
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.kind = "video"
    assert repr(found) == "VisionInput(image, grid_thw=(1, 18, 24), tokens=108)"


# ---- digest --------------------------------------------------------------------------------------


def test_digest_sees_content_shape_kind_and_settings_and_nothing_else() -> None:
    image = levels(256, 320, 3)
    same = image_input(image, IMAGE).digest
    assert image_input(image.copy(), IMAGE, where="other").digest == same
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    others = {
        image_input(changed, IMAGE).digest,
        image_input(image.reshape(320, 256, 3), IMAGE).digest,
        image_input(image, dataclasses.replace(IMAGE, mean=(0.5, 0.5, 0.4))).digest,
        video_input(image[None], dataclasses.replace(VIDEO, temporal_patch_size=1), fps=1).digest,
    }
    assert len(others) == 4
    assert same not in others


def test_digest_of_a_video_does_not_depend_on_its_time() -> None:
    video = levels(2, 64, 64, 3)
    assert video_input(video, VIDEO, fps=1).digest == video_input(video, VIDEO, fps=9).digest


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (768, 768, (768, 768)),
        (1, 1, (256, 256)),
        (1, 200, (32, 3648)),
        (4096, 4096, (4096, 4096)),
        (4112, 4112, (4096, 4096)),
        (720, 1280, (704, 1280)),  # 22.5 blocks round to the even 22
        (10, 500, (64, 1824)),
    ],
)
def test_size_of_an_image(height: int, width: int, expected: tuple[int, int]) -> None:
    assert smart_resize(height, width) == expected


def test_size_of_a_video_counts_all_frames() -> None:
    limits = {"min_pixels": 4096, "max_pixels": 25_165_824}
    assert smart_resize(720, 1280, frames=120, **limits) == (320, 608)
    assert smart_resize(720, 1280, frames=4, **limits) == (704, 1280)
    assert smart_resize(20, 50, frames=4, **limits) == (
        32,
        64,
    )  # first 32 x 80, then 2.5 blocks to 2


@pytest.mark.parametrize(("height", "width"), [(1, 201), (10_000, 1)])
def test_too_long_for_its_width(height: int, width: int) -> None:
    with pytest.raises(MediaError, match=r"photo: .* more than 200 times the other"):
        image_input(np.zeros((height, width), np.uint8), IMAGE, where="photo")


def test_caller_changes_the_range_of_pixels() -> None:
    image = levels(100, 100, 3)
    assert image_input(image, IMAGE).grid_thw == (1, 16, 16)
    assert image_input(image, IMAGE, min_pixels=1024).grid_thw == (1, 6, 6)
    assert image_input(image, IMAGE, max_pixels=4096).grid_thw == (1, 4, 4)
    assert image_input(image, IMAGE, min_pixels=1 << 25).frames.shape == (1, 5824, 5824, 3)


def test_wrong_range_of_pixels() -> None:
    image = levels(100, 100, 3)
    with pytest.raises(ValueError, match="min_pixels=9 is above max_pixels=8"):
        image_input(image, IMAGE, min_pixels=9, max_pixels=8)
    with pytest.raises(ValueError, match="max_pixels=0: expected an integer of 1"):
        video_input(image[None], VIDEO, fps=1, max_pixels=0)
    with pytest.raises(TypeError, match="min_pixels: float, expected an integer"):
        image_input(image, IMAGE, min_pixels=1e6)


# ---- settings ------------------------------------------------------------------------------------


def test_settings_of_a_folder_without_files_are_those_of_the_released_models() -> None:
    image, video = read_settings(None, None, **PATCHES, where="m")
    assert (image.min_pixels, image.max_pixels) == (65_536, 16_777_216)
    assert (video.min_pixels, video.max_pixels) == (4_096, 25_165_824)
    assert (video.fps, video.min_frames, video.max_frames) == (2.0, 4, 768)
    assert image.mean == image.std == (0.5, 0.5, 0.5)
    assert image.factor == 32


def test_settings_of_the_files() -> None:
    raw = {
        "size": {"shortest_edge": 100, "longest_edge": 5000},
        "image_mean": [0.1, 0.2, 1],
        "image_std": [1, 2, 3],
        "resample": 3,
        "do_resize": True,
        "rescale_factor": 0.00392156862745098,
        "unknown_field": [1],
    }
    image, video = read_settings(
        raw | {"max_pixels": 6000}, raw | {"fps": 1, "max_frames": 9}, **PATCHES, where="m"
    )
    assert (image.min_pixels, image.max_pixels) == (100, 6000)
    assert image.mean == (0.1, 0.2, 1.0)
    assert image.std == (1.0, 2.0, 3.0)
    assert (video.fps, video.max_frames, video.max_pixels) == (1.0, 9, 5000)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"patch_size": 14}, "patch_size=14: config.json says 16"),
        ({"merge_size": 0}, r"merge_size=0: expected integer in \[1, 16\]"),
        ({"size": {"shortest_edge": 5}}, "size.longest_edge is missing"),
        ({"size": {"shortest_edge": 5, "longest_edge": 4}}, "at least 5 pixels and at most 4"),
        ({"size": {"shortest_edge": True, "longest_edge": 4}}, "shortest_edge=true"),
        ({"size": 224}, "size=224: expected an object"),
        ({"image_std": [0.5, 0, 0.5]}, "expected three positive numbers"),
        ({"image_mean": [0.5, "x", 0.5]}, "expected three numbers"),
        ({"image_mean": [0.5]}, "expected three numbers"),
        ({"min_frames": 10, "max_frames": 9}, "min_frames=10 is above max_frames=9"),
        ({"fps": float("nan")}, "fps=nan"),
    ],
)
def test_wrong_settings(raw: dict, message: str) -> None:
    with pytest.raises(ModelFormatError, match=rf"^m/preprocessor_config.json: .*{message}"):
        read_settings(raw, None, **PATCHES, where="m")
    with pytest.raises(ModelFormatError, match=rf"^m/video_preprocessor_config.json: .*{message}"):
        read_settings(None, raw, **PATCHES, where="m")


@pytest.mark.parametrize(
    "raw",
    [
        {"do_resize": False},
        {"resample": 2},
        {"rescale_factor": 1.0},
        {"cap_pixels_per_frame": True},
        {"do_normalize": [1]},
    ],
)
def test_settings_that_ask_for_other_steps(raw: dict) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{next(iter(raw))}=.*: expected"):
        read_settings(raw, None, **PATCHES, where="m")
