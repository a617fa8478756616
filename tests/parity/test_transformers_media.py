"""Oracle: transformers' Qwen2VL image processor (Pillow), Qwen3VL video processor and processor."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import load_image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from qwen35.media import MediaLimits
from qwen35.video_sampling import Sampling, sample_indices
from qwen35.vision_input import VisionSettings, image_input, smart_resize, video_input

RNG = np.random.default_rng(7)
IMAGE = VisionSettings()
videos = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")

VIDEO = VisionSettings(min_pixels=4096, max_pixels=25_165_824)
ODD = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def levels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def smooth(*shape: int) -> np.ndarray:
    """Frames [T, H, W, 3] without hard edges."""
    count, height, width, _ = shape
    coarse = levels(count, height // 16 + 2, width // 16 + 2, 3)
    size = (width, height)
    return np.stack([Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in coarse])


def processor(settings: VisionSettings = IMAGE) -> images.Qwen2VLImageProcessorPil:
    return images.Qwen2VLImageProcessorPil(
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
        patch_size=settings.patch_size,
        temporal_patch_size=settings.temporal_patch_size,
        merge_size=settings.merge_size,
        image_mean=list(settings.mean),
        image_std=list(settings.std),
    )


def assert_same(ours: Any, image: Any, settings: VisionSettings = IMAGE) -> None:
    """Patches equal to the last bit, and the same grid."""
    theirs = processor(settings)(image)
    found = image_input(ours, settings)
    assert [list(found.grid_thw)] == theirs["image_grid_thw"].tolist()
    np.testing.assert_array_equal(found.pixels, theirs["pixel_values"])


# ---- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(256, 256), (64, 64), (300, 401), (33, 1000), (2, 390), (719, 555), (5, 6)]
)
def test_image_patches(size: tuple[int, int]) -> None:
    image = levels(*size, 3)
    assert_same(image, image)


def test_image_patches_with_other_settings() -> None:
    settings = VisionSettings(
        patch_size=14,
        temporal_patch_size=3,
        merge_size=3,
        min_pixels=5000,
        max_pixels=90_000,
        **ODD,
    )
    for size in ((100, 120), (20, 30), (600, 800)):
        image = levels(*size, 3)
        assert_same(image, image, settings)


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_rgba_arrays(channels: int) -> None:
    image = levels(260, 270, channels)
    assert_same(image, image)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"]
MODES += ["HSV", "I", "F", "I;16"]


def pil_image(mode: str) -> Image.Image:
    color = Image.fromarray(levels(260, 270, 4), "RGBA")
    if mode == "P":
        return color.convert("RGB").convert("P")
    if mode in ("LA", "PA", "RGBA", "RGBa"):
        return color.convert("RGBA").convert({"PA": "LA"}.get(mode, mode)).convert(mode)
    if mode in ("I;16", "F", "I"):
        return Image.fromarray(RNG.integers(0, 65536, (260, 270), dtype=np.uint16)).convert(mode)
    return color.convert("RGB").convert("RGB" if mode == "LAB" else mode)


@pytest.mark.parametrize("mode", MODES)
def test_pil_images_of_every_mode(mode: str) -> None:
    image = pil_image(mode)
    assert_same(image, image)


def test_pil_image_with_transparent_palette_or_color() -> None:
    palette = pil_image("P")
    palette.info["transparency"] = 3
    assert_same(palette, palette)
    color = pil_image("RGB")
    color.info["transparency"] = color.getpixel((5, 5))
    assert_same(color, color)


FILES = [("PNG", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
FILES += [("JPEG", m) for m in ("L", "RGB", "CMYK", "YCbCr")]
FILES += [("TIFF", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I")]
FILES += [("WEBP", m) for m in ("RGB", "RGBA")] + [("GIF", m) for m in ("L", "P")]
FILES += [("BMP", m) for m in ("1", "L", "P", "RGB", "RGBA")] + [
    ("PPM", m) for m in ("1", "L", "RGB")
]


@pytest.mark.parametrize(("kind", "mode"), FILES)
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_files(kind: str, mode: str, orientation: int, tmp_path: Path) -> None:
    """As transformers loads a path: upright, alpha dropped."""
    exif = Image.Exif()
    exif[274] = orientation
    turned = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") and orientation > 1 else {}
    path = tmp_path / "image"
    pil_image(mode).save(path, kind, **turned)
    data = path.read_bytes()
    # Not from the path: Pillow maps some TIFF files into memory and then turns them wrongly.
    loaded = load_image(Image.open(io.BytesIO(data)))
    assert_same(path, loaded)
    assert_same(data, loaded)
    if not turned:
        assert_same(path, processor().fetch_images(str(path)))


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("transparency", [2, bytes(range(0, 250, 5))])
def test_palette_files_with_transparency(transparency: Any, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pil_image("P").save(path, transparency=transparency)
    assert_same(path, processor().fetch_images(str(path)))


def test_animations(tmp_path: Path) -> None:
    pages = [Image.fromarray(levels(64, 80, 3)) for _ in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        file = io.BytesIO()
        pages[0].save(file, kind, save_all=True, append_images=pages[1:])
        path = tmp_path / "image"
        path.write_bytes(file.getvalue())
        assert_same(path, processor().fetch_images(str(path)))


# ---- sizes ---------------------------------------------------------------------------------------


def test_sizes_of_images_and_videos() -> None:
    agreed = 0
    for _ in range(4000):
        height, width = (int(s) for s in 2 ** RNG.uniform(0, 13, 2))
        factor = int(RNG.choice([28, 32, 48]))
        low = int(2 ** RNG.uniform(8, 18))
        pixels = {"min_pixels": low, "max_pixels": low * int(2 ** RNG.uniform(1, 12))}
        frames = int(2 ** RNG.uniform(1, 9.6))
        try:
            expected = [
                images.smart_resize(height, width, factor, **pixels),
                videos.smart_resize(frames, height, width, 2, factor, **pixels),
            ]
        except ValueError:
            continue  # more than 200 times as long as wide
        found = smart_resize(height, width, factor=factor, **pixels)
        moving = smart_resize(height, width, factor=factor, frames=frames, **pixels)
        assert [found, moving] == expected, (height, width, frames, factor, pixels)
        agreed += 1
    assert agreed > 3000


# ---- videos --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [25.0, 30000 / 1001, 23.976, 7.0, 1.0, 60.0])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 1801, 90_000])
def test_sampled_frames_and_timestamps(rate: float, total: int) -> None:
    theirs = SimpleNamespace(fps=2, min_frames=4, max_frames=768)
    metadata = SimpleNamespace(total_num_frames=total, fps=rate)
    for given in ({}, {"fps": 0.5}, {"fps": 5}, {"num_frames": 1}, {"num_frames": 9}):
        expected = videos.Qwen3VLVideoProcessor.sample_frames(theirs, metadata, **given)
        ask = Sampling(sample_fps=given.get("fps"), num_frames=given.get("num_frames"))
        found = sample_indices(total, rate, VIDEO, ask, where="", limits=MediaLimits())
        assert found == expected.tolist()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("fps", [2, 3, 29.97])
def test_timestamps_of_frames(count: int, fps: float) -> None:
    found = video_input(levels(count, 64, 64, 3), VIDEO, fps=fps)
    expected = Qwen3VLProcessor._calculate_timestamps(None, list(range(count)), fps, 2)
    assert list(found.timestamps) == expected


@pytest.mark.parametrize("settings", [VIDEO, VisionSettings(min_pixels=4096, **ODD)])
def test_video_patches(settings: VisionSettings) -> None:
    """Without resizing: equal to the last bit."""
    video = levels(5, 64, 96, 3)
    mean, std, _ = TorchvisionBackend._fuse_mean_std_and_rescale_factor(
        None, True, settings.mean, settings.std, True, 1 / 255
    )
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).to(torch.float32)
    frames = frames.sub_(mean[:, None, None]).div_(std[:, None, None])
    patches, *grid = videos.Qwen3VLVideoProcessor.patchify(None, frames[None], 16, 2, 2)
    found = video_input(video, settings, fps=1)
    assert list(found.grid_thw) == grid
    np.testing.assert_array_equal(found.pixels, patches[0].numpy())


@pytest.mark.parametrize(
    "shape",
    [(3, 100, 130, 3), (2, 720, 1280, 3), (2, 331, 77, 3), (2, 20, 50, 3), (60, 240, 320, 3)],
)
@pytest.mark.parametrize("picture", [smooth, levels])
def test_video_resizing(shape: tuple[int, ...], picture: Any) -> None:
    """Within 1 of 255 levels of what torch resizes: both widen the same cubic filter and round
    between the two directions, with weights of different precision.
    """
    video = picture(*shape)
    found = video_input(video, VIDEO, fps=2, max_pixels=5_000_000)
    size = videos.smart_resize(*shape[:3], 2, 32, 4096, 5_000_000)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(video).permute(0, 3, 1, 2), size, mode="bicubic", antialias=True
    )
    expected = expected.permute(0, 2, 3, 1).numpy().astype(int)
    apart = np.abs(found.frames[: len(video)] - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_video_file(codec: str, tmp_path: Path) -> None:
    """The frames that transformers decodes through PyAV, and their timestamps; with B-frames."""
    av = pytest.importorskip("av")
    from transformers.video_utils import read_video_pyav

    path = str(tmp_path / "video.mp4")
    with av.open(path, "w") as container:
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no {codec}")
        stream = container.add_stream(codec, rate=30, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for picture in smooth(100, 64, 96, 3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    rules = SimpleNamespace(fps=2, min_frames=4, max_frames=768)

    def sample(metadata: Any, **_: Any) -> np.ndarray:
        return videos.Qwen3VLVideoProcessor.sample_frames(rules, metadata)

    frames, metadata = read_video_pyav(path, sample)
    found = video_input(path, VIDEO)
    np.testing.assert_array_equal(found.frames[: len(frames)], frames)
    indices = metadata.frames_indices
    expected = Qwen3VLProcessor._calculate_timestamps(None, indices, metadata.fps, 2)
    assert list(found.timestamps) == expected
