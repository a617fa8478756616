"""Handwritten digits from scikit-learn's `load_digits` (1,797 scans of 8 x 8, 17 gray levels).

The first half in file order is for training, the second is held out; copies that are shifted,
scaled, turned, recoloured or noisy come from the same half as their original.
"""

from __future__ import annotations

import functools
import math
import sys
from random import Random

import numpy as np
import scenes
from PIL import Image

tasks = sys.modules["tasks"]

FIRST_KIND = len(scenes.COLORS) + len(scenes.SHAPES)


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """(images [1797, 8, 8] f32 from 0 to 1, digits [1797])."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise ImportError("digits need scikit-learn: pip install scikit-learn") from e
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target


def enlarge(rng: Random, image: np.ndarray, side: int, plain: bool) -> np.ndarray:
    """The scan as ink [side, side] from 0 to 1; shifted, scaled and turned unless plain."""
    ink = Image.fromarray(np.pad(image, 2))
    zoom, turn, dx, dy = 12 / side, 0.0, 0.0, 0.0
    if not plain:
        zoom *= rng.uniform(0.8, 1.2)
        turn, dx, dy = rng.gauss(0, 0.12), rng.uniform(-1, 1), rng.uniform(-1, 1)
    c, s = zoom * math.cos(turn), zoom * math.sin(turn)
    middle = side / 2
    matrix = (
        c,
        s * rng.uniform(0.8, 1.2) if not plain else s,
        6 + dx - (c + s) * middle,
        -s,
        c * rng.uniform(0.85, 1.15) if not plain else c,
        6 + dy - (c - s) * middle,
    )
    resample = rng.choice((Image.BILINEAR, Image.BICUBIC, Image.NEAREST))
    return np.clip(np.asarray(ink.transform((side, side), Image.AFFINE, matrix, resample)), 0, 1)


def picture(rng: Random, held: bool) -> tuple[np.ndarray, int]:
    """(a digit drawn large [side, side, 3] uint8, which one it is)."""
    images, digits = data()
    half = len(images) // 2
    i = rng.randrange(half, len(images)) if held else rng.randrange(half)
    side = rng.choice((64, 64, 64, 96))
    ink = enlarge(rng, images[i], side, plain=held or rng.random() < 0.2)[..., None]
    dark, light = scenes.background(rng) * 0.4, 255 - scenes.background(rng) * 0.4
    paper, pen = (dark, light) if rng.random() < 0.5 else (light, dark)
    return scenes.finish(rng, paper + ink * (pen - paper)), int(digits[i])


def digit(rng: Random, held: bool, level: float) -> tasks.Example:
    """Which digit an image shows; in training after other digits."""
    messages, labels = [], []
    while True:
        image, value = picture(rng, held)
        text = rng.choice(
            ("Which digit is this?", "What digit is this?", "What number is in the image?")
        )
        parts = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        messages.append({"role": "user", "content": parts})
        labels.append([scenes.Label((FIRST_KIND + value,))])
        if held or rng.random() < 0.25:
            return tasks.Example(
                "digit", messages, str(value), f"It looks like {value}.", labels=labels
            )
        messages.append({"role": "assistant", "content": str(value)})


TASKS = {"digit": digit}
