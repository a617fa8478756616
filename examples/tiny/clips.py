"""Short videos of coloured shapes: one of them moves, or they appear one after the other.

Held out: the names with who moves and which way, or the names in the order in which they come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import scenes

tasks = sys.modules["tasks"]

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass
class Clip:
    """Frames as scenes; what happens in them is one of the two pairs below."""

    frames: list[scenes.Scene]
    fps: int
    mover: str = ""
    way: str = ""
    order: tuple[str, ...] = ()

    def labels(self) -> list[list]:
        """What each pair of frames shows, from the pair's second frame."""
        pairs = zip(self.frames[::2], self.frames[1::2], strict=True)
        return [second.labels(first) for first, second in pairs]


def render(rng: Random, clip: Clip) -> np.ndarray:
    """The clip as [T, H, W, 3] uint8; colours stay through it."""
    paper, tones = scenes.background(rng), {}
    video = np.empty((len(clip.frames), clip.frames[0].height, clip.frames[0].width, 3), np.float32)
    video[:] = paper
    for canvas, frame in zip(video, clip.frames, strict=True):
        for t in frame.things:
            scenes.paint(canvas, t, tones.setdefault(t.name, scenes.tone(rng, t)))
    return scenes.finish(rng, video)


def named(rng: Random, n: int) -> list[tuple[str, str]]:
    """n different (colour, shape) pairs."""
    out: list[tuple[str, str]] = []
    while len(out) < n:
        new = rng.choice(list(scenes.COLORS)), rng.choice(scenes.SHAPES)
        if new not in out:
            out.append(new)
    return out


def path(rng: Random, scene: scenes.Scene, way: str, steps: int) -> list[scenes.Thing] | None:
    """The first thing of a scene on its way across 24 to 40 pixels; None where another is hit."""
    t, (dx, dy), far = scene.things[0], WAYS[way], rng.uniform(24, 40)
    shares = [i / (steps - 1) for i in range(steps)]
    out = [replace(t, x=t.x + dx * far * s, y=t.y + dy * far * s) for s in shares]
    end, r = out[-1], t.size / 2
    if not (r <= end.x <= scene.width - r and r <= end.y <= scene.height - r):
        return None
    for other in scene.things[1:]:
        room = (t.size + other.size) / 2 + 2
        if any(max(abs(p.x - other.x), abs(p.y - other.y)) < room for p in out):
            return None
    return out


def canvas(rng: Random) -> tuple[int, int, int, int]:
    """(height, width, frames, frames per second)."""
    height, width = rng.choice(((64, 64), (64, 64), (64, 96), (96, 64)))
    return height, width, rng.choice((4, 6)), rng.choice((2, 4))


def moving(rng: Random, held: bool) -> Clip:
    """One of one or two things moves."""

    def one() -> tuple[str, object]:
        what, way = named(rng, rng.choice((1, 2, 2))), rng.choice(list(WAYS))
        known = [" ".join(n) for n in what]
        return f"clip {known[0]} {way}, {', '.join(sorted(known[1:]))}", (what, way)

    while True:
        (what, way), (height, width, steps, fps) = tasks.draw(held, one), canvas(rng)
        scene = scenes.place(rng, height, width, what)
        if scene is None or (steps_of := path(rng, scene, way, steps)) is None:
            continue
        frames = [replace(scene, things=[t, *scene.things[1:]]) for t in steps_of]
        return Clip(frames, fps, mover=scene.things[0].name, way=way)


def coming(rng: Random, held: bool) -> Clip:
    """Two things appear one after the other, at least two frames apart, and stay."""

    def one() -> tuple[str, object]:
        what = named(rng, 2)
        return "clip " + " then ".join(" ".join(n) for n in what), what

    while True:
        what, (height, width, steps, fps) = tasks.draw(held, one), canvas(rng)
        scene = scenes.place(rng, height, width, what)
        if scene is None:
            continue
        first = rng.randrange(steps - 2)
        second = rng.randrange(first + 2, steps)
        a, b = scene.things
        frames = [
            replace(scene, things=[a] * (i >= first) + [b] * (i >= second)) for i in range(steps)
        ]
        return Clip(frames, fps, order=(a.name, b.name))


def moves(rng: Random, clip: Clip) -> scenes.Question | None:
    """Which thing moves."""
    text = rng.choice(("What moves?", "Which object moves?", "What is moving?"))
    return text, clip.mover, f"The {clip.mover} moves {clip.way}."


def way(rng: Random, clip: Clip) -> scenes.Question | None:
    """Which way it moves."""
    what = rng.choice(("it", f"the {clip.mover}", f"the {clip.mover}"))
    text = rng.choice((f"Which way does {what} move?", f"In which direction does {what} move?"))
    return text, clip.way, f"The {clip.mover} moves {clip.way}."


def first(rng: Random, clip: Clip) -> scenes.Question | None:
    """Which of two things came first or last."""
    a, b = rng.sample(clip.order, 2)
    i = rng.randrange(2)
    word = ("first", "last")[i]
    text = rng.choice((f"What came {word}?", f"What came {word}, the {a} or the {b}?"))
    return text, clip.order[i], f"First the {clip.order[0]}, then the {clip.order[1]}."


QUESTIONS = {"moves": (moving, moves), "way": (moving, way), "first": (coming, first)}


def task(name: str) -> Callable[[Random, bool, float], tasks.Example]:
    """The task that asks question `name` about a clip; training asks others before it."""
    make, _ = QUESTIONS[name]
    related = {n: q for n, (m, q) in QUESTIONS.items() if m is make}

    def build(rng: Random, held: bool, level: float) -> tasks.Example:
        clip = make(rng, held)
        most = 0 if held or rng.random() < 0.4 else rng.randint(1, 2)
        asked = scenes.ask_about(rng, clip, name, related, most)
        part = {"type": "video", "video": render(rng, clip), "fps": clip.fps}
        return scenes.conversation(name, part, asked, clip.labels())

    return build


TASKS = {name: task(name) for name in QUESTIONS}
